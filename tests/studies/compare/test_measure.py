"""What is measured of networks beside each other, on networks small enough to count by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ode_detect.engine.config import load_config
from ode_detect.ode import BasicField, FixedStep, ODEBlock
from ode_detect.report.results import Comparison, Row
from ode_detect.studies.compare import measure
from ode_detect.studies.compare.measure import (
    MANY,
    ONE,
    STEP,
    Loaded,
    TrainingStep,
    ratios_of,
    sizes,
    time_networks,
    training_costs,
    with_times,
)

from ...conftest import QUICKSTART


class Network(nn.Module):
    """Losses of a flow in training, nothing else."""

    def __init__(self, gradient: str = "backprop", steps: int = 3) -> None:
        super().__init__()
        self.flow = ODEBlock(field=BasicField(channels=4), solver=FixedStep("euler", steps=steps), gradient=gradient)
        self.seen: list[list[int]] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.seen.append([example["number"] for example in batch])
        out = self.flow(torch.stack([example["image"] for example in batch]))
        return {"loss_a": out.square().mean(), "loss_b": out.mean().reshape(1)}


def loaded(name: str, model: nn.Module, role: str = "ode") -> Loaded:
    pictures = [{"image": torch.rand(4, 16, 16), "number": number} for number in range(5)]
    task = SimpleNamespace(
        require=lambda names: None,
        train_data=lambda cfg: (pictures, dict),
        test_loader=lambda cfg, test: [[picture] for picture in pictures],
    )
    cfg = load_config(QUICKSTART, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.AMP.ENABLED", "False"])
    return Loaded(name, role, SimpleNamespace(cfg=cfg, task=task), model)


def costs(network: Loaded) -> dict[str, float]:
    return training_costs(TrainingStep(network))


def test_the_pyramid_is_no_part_of_the_backbone() -> None:
    model = nn.Module()
    model.head = nn.Linear(3, 2)
    assert sizes(model) == {"parameters": 8}
    model.backbone = nn.Linear(4, 4, bias=False)
    assert sizes(model) == {"parameters": 24, "backbone_parameters": 16}
    model.backbone.bottom_up = nn.Linear(2, 1, bias=False)
    assert sizes(model) == {"parameters": 26, "backbone_parameters": 2}


@pytest.mark.parametrize(("gradient", "backward"), [("backprop", 0), ("checkpoint", 3)])
def test_a_training_step_counts_and_leaves_the_network_as_it_is(gradient: str, backward: int) -> None:
    model = Network(gradient).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = costs(loaded("a", model))
    assert found["backward_evaluations"] == backward
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_checkpoints_keep_less_for_the_gradient() -> None:
    kept = {g: costs(loaded(g, Network(g, steps=8)))["kept_mib"] for g in ("backprop", "checkpoint")}
    state = 2 * 4 * 16 * 16 * 4 / 2**20
    assert kept["checkpoint"] < kept["backprop"]
    assert 8 * state <= kept["checkpoint"] < 12 * state


def test_the_memory_of_a_step_is_left_out_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "growth", lambda run: None)
    assert set(costs(loaded("a", Network()))) == {"backward_evaluations", "kept_mib"}


def test_the_smallest_of_the_peaks_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([5, 3, 4])
    monkeypatch.setattr(measure, "growth", lambda run: run() or SimpleNamespace(peak=next(peaks) * 2**20))
    assert costs(loaded("a", Network()))["train_memory_mib"] == 3


def test_networks_are_timed_in_turns_on_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: None)  # of this process, for good
    monkeypatch.setattr(measure, "PICTURES", 3)
    ode, twin = loaded("ode", Network()), loaded("twin", Network(), "twin")
    steps = {network.name: TrainingStep(network) for network in (ode, twin)}
    rows, ratios = time_networks([ode, twin], steps, {"ode": "twin"}, seconds=0)
    many = f"{MANY} of 3"
    assert [(row.name, row.role) for row in rows] == [
        *((f"{ONE}: ode", "ode"), (f"{ONE}: twin", "twin")),
        *((f"{many}: ode", "ode"), (f"{many}: twin", "twin")),
        *((f"{STEP}: ode", "ode"), (f"{STEP}: twin", "twin")),
    ]
    assert steps["ode"].model.seen == steps["twin"].model.seen
    assert {tuple(batch) for batch in steps["ode"].model.seen} == {tuple(steps["ode"].model.seen[0])}
    assert ode.model.seen == twin.model.seen
    assert {tuple(batch) for batch in ode.model.seen} == {(0,), (1,), (2,), (0, 1, 2)}
    assert not ode.model.training
    assert "pictures_per_second" not in rows[0].cost
    assert rows[2].cost["pictures_per_second"] == pytest.approx(3000 / rows[2].cost["latency_ms"])
    assert [(c.ours, c.other) for c in ratios] == [(rows[i].name, rows[i + 1].name) for i in (0, 2, 4)]


def test_no_training_step_is_timed_unless_all_networks_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: None)  # of this process, for good
    networks = [loaded("ode", Network()), loaded("twin", Network(), "twin")]
    rows, _ = time_networks(networks, {"ode": TrainingStep(networks[0])}, {}, seconds=0)
    assert {row.name.partition(": ")[0] for row in rows} == {ONE, f"{MANY} of 5"}


def test_a_training_step_finds_the_same_gradients_again() -> None:
    step = TrainingStep(loaded("a", Network()))
    found = []
    for _ in range(2):
        step()
        found.append([p.grad.clone() for p in step.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(g.any() for g in found[0])


def test_times_of_a_batch_become_throughput() -> None:
    times = [
        Row(f"{ONE}: a", "ode", 0, "c", {}, {"latency_ms": 20.0}, ONE),
        Row(f"{MANY} of 8: a", "ode", 0, "c", {}, {"latency_ms": 80.0, "pictures_per_second": 100.0}, f"{MANY} of 8"),
    ]
    assert with_times({"a": {"parameters": 1}}, times) == {
        "a": {"parameters": 1, "latency_ms": 20.0, "pictures_per_second": 100.0}
    }
    sides = (f"{MANY} of 8: a", f"{MANY} of 8: b", "latency_ms")
    ratios = ratios_of([Comparison(f"{MANY} of 8", *sides, ratio=0.5, low=0.4, high=0.8)])
    assert ratios == {("a", "b", "pictures_per_second"): pytest.approx((2.0, 1.25, 2.5))}
