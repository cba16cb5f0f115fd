import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler

from ode_detect.engine import stream
from ode_detect.engine.stream import BatchStream, build_stream, random_state_kept


def first(batches: BatchStream, count: int) -> list[list[tuple[int, int]]]:
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("wide", [None, [True, False, True, True, False, True, False]])
@pytest.mark.parametrize("start", [1, 5, 9])
def test_a_stream_that_starts_later_is_the_rest_of_the_whole(start: int, wide: list[bool] | None) -> None:
    whole = first(BatchStream(size=7, batch=3, seed=1, wide=wide), 14)
    late = first(BatchStream(size=7, batch=3, seed=1, wide=wide, start=start), 14 - start)
    assert late == whole[start:]


def test_every_picture_comes_once_before_any_comes_twice() -> None:
    draws = list(itertools.chain(*first(BatchStream(size=6, batch=3, seed=0), 4)))
    assert sorted(index for index, _ in draws[:6]) == list(range(6))
    assert sorted(index for index, _ in draws[6:]) == list(range(6))
    assert [position for _, position in draws] == list(range(12))
    assert draws[:6] != draws[6:]


def test_grouped_batches_are_alike() -> None:
    wide = [True, False, True, False, True]
    for batch in first(BatchStream(size=5, batch=2, seed=3, wide=wide), 10):
        assert len({wide[index] for index, _ in batch}) == 1


@pytest.mark.parametrize("wide", [None, [True, False, True, True, False, True, False]])
def test_pictures_of_rare_classes_come_as_often_as_detectron2_says(wide: list[bool] | None) -> None:
    repeats = torch.tensor([1.0, 2.5, 1.0, 1.2, 3.0, 1.0, 1.0])
    whole = first(BatchStream(size=7, batch=3, seed=1, repeats=repeats, wide=wide), 400)
    assert first(BatchStream(size=7, batch=3, seed=1, repeats=repeats, wide=wide, start=123), 277) == whole[123:]
    counts = torch.bincount(torch.tensor([index for batch in whole for index, _ in batch]), minlength=7)
    torch.testing.assert_close(counts / counts[0], repeats, atol=0.15, rtol=0)
    if wide is None:
        theirs = RepeatFactorTrainingSampler(repeats, seed=1)
        assert [index for batch in whole for index, _ in batch] == list(itertools.islice(theirs, 1200))


def test_processes_share_each_batch() -> None:
    whole = first(BatchStream(size=9, batch=4, seed=2), 5)
    shares = [first(BatchStream(size=9, batch=4, seed=2, rank=r, world=2), 5) for r in range(2)]
    for batch, a, b in zip(whole, *shares, strict=True):
        assert sorted(batch) == sorted(a + b)
        assert len(a) == len(b) == 2


@pytest.mark.parametrize(
    ("arguments", "message"), [({"size": 0}, "no picture"), ({"batch": 3, "world": 2}, "multiple")]
)
def test_impossible_streams_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchStream(**{"size": 4, "batch": 2, "seed": 0, **arguments})


def drawing(record: dict[str, int]) -> tuple[int, float, float, float]:
    return record["id"], random.random(), float(np.random.rand()), float(torch.rand(()))


# More workers than the cores that the test may use is what torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_depends_on_the_position_alone(workers: int) -> None:
    dicts = [{"id": index} for index in range(5)]
    torch.manual_seed(0)
    loader = iter(build_stream(dicts, drawing, batch=2, seed=4))
    whole = [next(loader) for _ in range(6)]
    torch.manual_seed(99)
    late = iter(build_stream(dicts, drawing, batch=2, seed=4, start=2, workers=workers))
    assert [next(late) for _ in range(4)] == whole[2:]
    assert len({draws[1:] for batch in whole for draws in batch}) == 12


class BatchDrawing:
    """A mapper of batches: a row of random numbers for each example."""

    def __call__(self, record: dict[str, int]) -> None:
        raise AssertionError("a batch is mapped at once")

    def map_batch(
        self, dicts: list[dict[str, int]], rows: list[int], total: int, generator: torch.Generator
    ) -> list[tuple[int, float]]:
        numbers = torch.rand(total, generator=generator).tolist()
        return [(record["id"], numbers[row]) for record, row in zip(dicts, rows, strict=True)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_mapper_of_batches_depends_on_seed_and_position_alone(workers: int, grouped: bool) -> None:
    dicts = [{"id": index, "width": index, "height": 3} for index in range(7)]
    loader = iter(build_stream(dicts, BatchDrawing(), batch=3, seed=4))
    whole = [next(loader) for _ in range(8)]
    torch.manual_seed(99)
    before = torch.get_rng_state()
    late = build_stream(dicts, BatchDrawing(), batch=3, seed=4, start=3, workers=workers, group_by_shape=grouped)
    iterator = iter(late)
    assert [next(iterator) for _ in range(5)] == whole[3:]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({number for batch in whole for _, number in batch}) == 24
    other = iter(build_stream(dicts, BatchDrawing(), batch=3, seed=5))
    assert next(other) != whole[0]


@pytest.mark.parametrize("mapper", [drawing, BatchDrawing()])
def test_processes_see_what_one_would(mapper: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dicts = [{"id": index} for index in range(7)]

    def batches(rank: int, world: int) -> list[list[Any]]:
        monkeypatch.setattr(stream.comm, "get_rank", lambda: rank)
        monkeypatch.setattr(stream.comm, "get_world_size", lambda: world)
        loader = iter(build_stream(dicts, mapper, batch=4, seed=4, start=1))
        return [next(loader) for _ in range(4)]

    for whole, *shares in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert [whole[rank::2] for rank in range(2)] == shares


def test_loading_leaves_the_training_random_states_alone() -> None:
    loader = iter(build_stream([{"id": 0}, {"id": 1}], drawing, batch=2, seed=4))
    before = (random.getstate(), torch.get_rng_state())
    next(loader)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def drawn() -> tuple[float, float, float]:
    return random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))


def test_kept_states_are_kept_through_an_error() -> None:
    random.gauss(0, 1)  # leaves a second number for the next call
    np.random.normal()

    def draws_and_fails() -> None:
        with random_state_kept():
            drew.append(drawn())
            raise KeyError

    drew: list[tuple[float, float, float]] = []
    with pytest.raises(KeyError):
        draws_and_fails()
    assert drawn() == drew[0]
