"""What is drawn for a picture depends on the picture's place in the whole batch, not on the process."""

import pytest
import torch
from detectron2.utils import comm
from torch import nn

from ode_detect.engine.sampling import drawn_by_picture, seed_iteration, shared_generator


class Drawing(nn.Module):
    """Draws as Detectron2's RPN and ROI heads do: once for each picture."""

    def _subsample_labels(self, count: int) -> list[int]:
        return torch.randperm(count).tolist()

    _sample_proposals = _subsample_labels


def drawn(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, *, iteration: int = 3, seed: int = 0) -> list[object]:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    model, pictures = nn.Sequential(Drawing(), Drawing()), 4 // world
    torch.manual_seed(rank + 100)
    with drawn_by_picture(model, seed=seed, iteration=iteration, pictures=pictures):
        return [
            [(model[0]._subsample_labels(50), model[1]._sample_proposals(50)) for _ in range(pictures)]
            for _ in range(2)
        ]


def test_two_processes_draw_for_each_picture_what_one_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(monkeypatch, 0, 1)
    shares = [drawn(monkeypatch, rank, 2) for rank in range(2)]
    for time in range(2):
        assert [shares[k % 2][time][k // 2] for k in range(4)] == whole[time]


def test_pictures_passes_modules_iterations_and_seeds_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [drawn(monkeypatch, 0, 1), drawn(monkeypatch, 0, 1, iteration=4), drawn(monkeypatch, 0, 1, seed=1)]
    draws = [tuple(draw) for run in runs for time in run for pair in time for draw in pair]
    assert len(set(draws)) == len(draws) == 3 * 2 * 4 * 2


def test_the_model_is_as_before_afterwards() -> None:
    model = Drawing()
    with drawn_by_picture(model, seed=0, iteration=0, pictures=1):
        assert "_subsample_labels" in vars(model)
    assert not {"_subsample_labels", "_sample_proposals"} & set(vars(model))


def test_processes_draw_apart_what_is_theirs_and_alike_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    own, shared = [], []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        seed_iteration(5, 7)
        own.append(torch.rand(()).item())
        shared.append(torch.rand((), generator=shared_generator(5, 7)).item())
    assert own[0] != own[1]
    assert shared[0] == shared[1]
    assert torch.rand((), generator=shared_generator(5, 8)).item() != shared[0]
