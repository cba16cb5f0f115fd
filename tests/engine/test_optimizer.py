import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from ode_detect.engine.checkpoint import CheckpointError
from ode_detect.engine.config import add_ode_config
from ode_detect.engine.optimizer import build_optimizer, build_scheduler, check_warmup, optimizer_state, parameter_names
from ode_detect.ode.names import UnknownNameError


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_an_optimizer_takes_detectron2s_keys(name: str, kind: type) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.SOLVER.merge_from_list(["OPTIMIZER", name, "BASE_LR", 0.5, "WEIGHT_DECAY", 0.1, "WEIGHT_DECAY_NORM", 0.0])
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "norm", "CLIP_VALUE", 1.0])
    model = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, kind)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.5, 0.1), (0.5, 0.0)}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    assert sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt() <= 1.0 * 4


def test_an_unknown_optimizer_tells_those_that_exist() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(UnknownNameError, match="AdamW"):
        build_optimizer(cfg, nn.Linear(1, 1))


def rates(iterations: int, **solver: object) -> list[float]:
    """The learning rate of each iteration, and the one after the last, as shares of the base rate."""
    cfg = get_cfg()
    add_ode_config(cfg)
    for key, value in {"LR_SCHEDULER_NAME": "OneCycleLR", "MAX_ITER": iterations, "BASE_LR": 2.0, **solver}.items():
        cfg.SOLVER[key] = value
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    scheduler = build_scheduler(cfg, optimizer)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(iterations):
        optimizer.step()
        scheduler.step()
        found += scheduler.get_last_lr()
    return [rate / 2.0 for rate in found]


def test_one_cycle_rises_to_one_and_falls_from_there_to_zero() -> None:
    found = rates(20, WARMUP_ITERS=4, WARMUP_FACTOR=0.2)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(17)])


@pytest.mark.parametrize(("warm_up", "expected"), [(0, [1.0, 0.75, 0.25, 0.0]), (9, [0.1, 0.55, 1.0, 0.0])])
def test_one_cycle_without_warm_up_or_with_little_else(warm_up: int, expected: list[float]) -> None:
    assert rates(3, WARMUP_ITERS=warm_up, WARMUP_FACTOR=0.1) == pytest.approx(expected)


def test_detectron2s_schedules_are_there() -> None:
    assert rates(10, LR_SCHEDULER_NAME="WarmupMultiStepLR", WARMUP_ITERS=0, STEPS=(5,))[::9] == pytest.approx([1, 0.1])


def test_an_unknown_schedule_tells_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"SOLVER.LR_SCHEDULER_NAME.*OneCycleLR"):
        rates(3, LR_SCHEDULER_NAME="OneCycle")


def test_the_state_of_a_parameter_finds_it_in_other_groups() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    model = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    before = build_optimizer(cfg, model)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 1.0 + number)
    before.step()
    momentum = {name: before.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    saved, names = before.state_dict(), parameter_names(before, model)
    cfg.SOLVER.merge_from_list(["BIAS_LR_FACTOR", 3.0, "MOMENTUM", 0.4])
    after = build_optimizer(cfg, model)
    assert parameter_names(after, model) != names
    after.load_state_dict(optimizer_state(after, saved, parameter_names(after, model), names))
    assert all(torch.equal(after.state[p]["momentum_buffer"], momentum[name]) for name, p in model.named_parameters())
    assert {(g["momentum"], g["lr"]) for g in after.param_groups} == {(0.4, 0.001), (0.4, 0.003)}
    with pytest.raises(CheckpointError, match="earlier version"):
        optimizer_state(after, saved, parameter_names(after, model), None)


def test_a_run_that_is_warm_up_for_the_most_part_is_told() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 300, 1000
    (warning,) = check_warmup(cfg)
    assert "WARMUP_ITERS 1000 iterations, and SOLVER.MAX_ITER is 300" in warning
    assert "Set WARMUP_ITERS to about 30." in warning
    cfg.SOLVER.WARMUP_ITERS = 150
    assert check_warmup(cfg) == []
    # What it is about: the cosine has fallen to 0 when the warm-up has risen to it.
    assert max(rates(300, LR_SCHEDULER_NAME="WarmupCosineLR", WARMUP_ITERS=1000, WARMUP_FACTOR=0.001)) < 0.002
    assert max(rates(300, LR_SCHEDULER_NAME="WarmupCosineLR", WARMUP_ITERS=30, WARMUP_FACTOR=0.001)) > 0.9
