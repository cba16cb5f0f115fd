from collections.abc import Iterator

import pytest
import torch

from ode_detect.studies.benchmark import classification
from ode_detect.studies.benchmark.classification import AIM, OURS, PLAIN
from ode_detect.studies.timing import Case


@pytest.fixture
def each() -> Iterator[Iterator[Case]]:
    cases = classification.cases(quick=True)
    yield cases
    cases.close()


def test_our_trainer_is_beside_a_plain_loop_of_the_same_network(
    each: Iterator[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[torch.Size, float]] = []
    build, networks = classification.build_network, []
    monkeypatch.setattr(classification, "build_network", lambda cfg: networks.append(build(cfg)) or networks[-1])
    case = next(each)
    assert case.name == "training of the ODE-Net of Chen et al., 4x1x28x28, bfloat16 autocast"
    assert [(name, side.role, side.pictures) for name, side in case.sides.items()] == [
        (OURS, "ode", 4),
        (PLAIN, "baseline", 4),
    ]
    assert [(ratio.ours, ratio.other, ratio.aim) for ratio in case.ratios] == [(OURS, PLAIN, AIM)]
    (plain,) = networks
    plain.register_forward_pre_hook(lambda m, inputs: batches.append((len(inputs[0]), torch.is_grad_enabled())))
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    for side in case.sides.values():
        for _ in range(2):
            side.run()
    assert batches == [(4, True)] * 2
    assert not all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))
    assert next(each).name == "training of a CIFAR ODE-ResNet, 4x3x32x32, bfloat16 autocast"


def test_our_side_runs_the_hooks_of_a_training(each: Iterator[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []

    class Trainer(classification.Trainer):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            trainers.append(self)

    monkeypatch.setattr(classification, "Trainer", Trainer)
    case = next(each)
    for _ in range(3):
        case.sides[OURS].run()
    (trainer,) = trainers
    latest = trainer.storage.latest()
    assert (latest["nfe_forward"], trainer.iter) == ((8.0, 2), 3), "two steps of rk4"
    assert {"total_loss", "lr", "time"} <= set(latest)
