"""Training for the dial, on the quickstart network and eight small pictures."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from ode_detect.engine import run as runs
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.second_pass import SecondPass, distance
from ode_detect.engine.trainer import Trainer
from ode_detect.ode.dial import solver_override
from ode_detect.ode.flows import flows_of
from ode_detect.ode.statistics import statistics_kept
from ode_detect.task import ConfigError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
Overrides = Callable[..., list[str]]
DIAL = ["SOLVER.DIAL.STEPS", "[1, 3]"]


def trainer_for(overrides: list[str], *, resume: bool = False) -> tuple[runs.Run, Trainer]:
    run = runs.open_training(
        load_config(QUICKSTART, overrides), command="test", config_file=str(QUICKSTART), resume=resume
    )
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=resume)
    return run, trainer


def records(run: runs.Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]


class Each(HookBase):
    """Does something after each iteration."""

    def __init__(self, do: Callable[[int], None]) -> None:
        self.do = do

    def after_step(self) -> None:
        self.do(self.trainer.iter)


def wake(model: nn.Module) -> None:
    """New flows are the identity at any number of steps; these are not."""
    for block in flows_of(model).values():
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.05)


def small(squares_run: Overrides, *more: str) -> tuple[nn.Module, list[dict[str, torch.Tensor]], runs.Run]:
    cfg = load_config(QUICKSTART, squares_run("small", *DIAL, *more))
    run = runs.open_training(cfg, command="test", config_file=str(QUICKSTART), resume=False)
    model = build_network(run.cfg)
    wake(model)
    dicts, mapper = run.task.train_data(run.cfg)
    return model, [mapper(d) for d in dicts[:2]], run


# --- value ---


def test_the_distance_is_relative_to_the_first_features_and_averaged_over_maps() -> None:
    target = {"a": torch.full((1, 2, 2, 2), 2.0), "b": torch.full((1, 1, 4, 4), 10.0, requires_grad=True)}
    features = {"a": torch.full((1, 2, 2, 2), 3.0), "b": torch.full((1, 1, 4, 4), 10.0, requires_grad=True)}
    loss = distance(features, target)
    assert loss.item() == pytest.approx(0.125)  # the mean of (1 / 2)^2 and 0
    loss.backward()
    assert target["b"].grad is None
    assert distance({"a": torch.zeros(1)}, {"a": torch.zeros(1)}).item() == 0.0


def test_the_second_pass_is_the_backbone_at_the_drawn_steps(squares_run: Overrides) -> None:
    model, data, run = small(squares_run)
    second = SecondPass(run.cfg, model)
    seen = []
    handle = model.backbone.register_forward_hook(lambda m, i, out: seen.append((current(model), out)))
    with second.watched(), EventStorage():
        model(data)
    losses = second.run(data, lambda loss: loss.backward(), torch.enable_grad)
    handle.remove()
    (full, first), (drawn, features) = seen
    assert full == [2, 2, 2]
    assert set(drawn) <= {1, 3}
    assert losses.keys() == {"loss_dial"}
    assert losses["loss_dial"] == distance(features, first) > 0
    assert current(model) == full


def current(model: nn.Module) -> list[int]:
    return [block.solver.steps for block in flows_of(model).values()]


def test_the_task_learns_in_the_second_pass_if_asked(squares_run: Overrides) -> None:
    model, data, run = small(squares_run)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.DIAL.TASK_WEIGHT = 0.5
    second = SecondPass(cfg, model)
    with EventStorage() as storage:
        with second.watched():
            model(data)
        logged = dict(storage.latest())
        losses = second.run(data, lambda loss: loss.backward(), torch.enable_grad)
        assert storage.latest() == logged  # the heads' counts are those of the first pass
    assert losses.keys() == {"loss_dial", "loss_dial_task"}
    assert losses["loss_dial_task"] > 0
    assert all(p.grad is not None for p in model.roi_heads.parameters())


# --- contract ---


def test_batch_statistics_are_those_of_the_full_steps(squares_run: Overrides) -> None:
    """An iteration leaves the running statistics that one without the second pass leaves."""
    found = {}
    for name, more in (("plain", []), ("dial", DIAL)):
        _, trainer = trainer_for(squares_run(name, *more, "SOLVER.MAX_ITER", "1"))
        wake_seeded(trainer.model)
        trainer.train()
        found[name] = {k: v for k, v in trainer.model.state_dict().items() if "running" in k or "num_batches" in k}
    assert len(found["plain"]) > 10
    assert all(torch.equal(value, found["dial"][name]) for name, value in found["plain"].items())


def wake_seeded(model: nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wake(model)


def test_the_evaluations_of_both_passes_are_logged(squares_run: Overrides) -> None:
    steps: list[list[int]] = []
    run, trainer = trainer_for(squares_run("counted", *DIAL, "SOLVER.MAX_ITER", "4"))
    trainer.model.backbone.register_forward_hook(lambda m, i, out: steps.append(current(m)))
    logged: list[float] = []
    trainer.register_hooks([hook := Each(lambda i: logged.append(trainer.storage.latest()["nfe_forward"][0]))])
    hook.trainer = trainer
    trainer.train()
    assert logged == [float(sum(a) + sum(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]
    assert len(set(map(tuple, steps[1::2]))) > 1  # drawn anew
    assert any("loss_dial" in record for record in records(run))


def test_a_resumed_run_draws_as_an_uninterrupted_one(squares_run: Overrides) -> None:
    how = [*DIAL, "SOLVER.DIAL.METHODS", "['euler', 'midpoint']", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "0"]
    whole, trainer = trainer_for(squares_run("a", *how))
    trainer.train()
    _, trainer = trainer_for(squares_run("b", *how))
    trainer._hooks.insert(0, hook := Each(lambda i: os.kill(os.getpid(), 2) if i == 1 else None))
    hook.trainer = trainer
    with pytest.raises(Interrupted):
        trainer.train()
    again, trainer = trainer_for(squares_run("b", *how), resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    one, two = (torch.load(r.folder / "model_final.pth", weights_only=True)["model"] for r in (whole, again))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_gradients_pull_the_second_features_towards_the_first(squares_run: Overrides) -> None:
    """A small step against them lessens the distance to features that stay where they are."""
    model, data, run = small(squares_run, "SOLVER.DIAL.STEPS", "[1]")
    second = SecondPass(run.cfg, model)
    calls = []
    handle = model.backbone.register_forward_hook(lambda m, i, out: calls.append((i, out)))
    with torch.no_grad(), second.watched(), EventStorage():
        model(data)
    before = second.run(data, lambda loss: loss.backward(), torch.enable_grad)["loss_dial"]
    handle.remove()
    moved = [p for p in model.parameters() if p.grad is not None]
    length = torch.cat([p.grad.flatten() for p in moved]).norm()
    with torch.no_grad():
        for parameter in moved:
            parameter -= 1e-3 * parameter.grad / length
    inputs, first = calls[0]
    with torch.no_grad(), solver_override(model, steps=1), statistics_kept(model):
        after = distance(model.backbone(*inputs), first)
    expected = before - 1e-3 * length
    assert after < before
    assert after.item() == pytest.approx(expected.item(), rel=0.05)


def test_bfloat16_autocast_covers_both_passes(squares_run: Overrides) -> None:
    _, trainer = trainer_for(
        squares_run("bfloat16", *DIAL, "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    )
    seen = []
    trainer.model.backbone.register_forward_hook(lambda m, i, out: seen.append(next(iter(out.values())).dtype))
    trainer.train()
    assert seen == [torch.bfloat16, torch.bfloat16]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.DIAL.STEPS", "[1, 0]"], r"^SOLVER\.DIAL\.STEPS holds numbers in \[1, 100000\], and it is \[1, 0\]"),
        ([*DIAL, "SOLVER.DIAL.METHODS", "['rk5']"], "unknown method 'rk5'"),
        ([*DIAL, "SOLVER.DIAL.METHODS", "['dopri5']"], "chooses its own steps"),
        ([*DIAL, "SOLVER.DIAL.WEIGHT", "0.0"], "not both 0"),
        ([*DIAL, "SOLVER.DIAL.WEIGHT", "-1.0"], r"^SOLVER\.DIAL\.WEIGHT is a number in \[0, inf\), and it is -1"),
        ([*DIAL, "MODEL.ODE.STAGES", "[]"], "no ODEBlock"),
        (["SOLVER.DIAL.METHODS", "['euler']"], r"SOLVER\.DIAL\.STEPS is empty"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_begins(
    overrides: list[str], message: str, squares_run: Overrides
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_for(squares_run("refused", *overrides))


@pytest.mark.parametrize("role", ["twin", "ablation"])
def test_what_the_network_is_compared_with_is_trained_by_the_same_config(role: str, squares_run: Overrides) -> None:
    overrides = squares_run("other", *DIAL, "MODEL.ODE.ROLE", role, "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")
    run, trainer = trainer_for(overrides)
    trainer.train()
    assert (run.folder / "model_final.pth").exists()


def test_a_second_pass_of_the_task_draws_pictures_when_the_first_does(squares_run: Overrides) -> None:
    model, data, run = small(squares_run, "VIS_PERIOD", "2", "SOLVER.DIAL.TASK_WEIGHT", "1.0")
    second, drawn = SecondPass(run.cfg, model), []
    model.visualize_training = lambda *arguments: drawn.append(get_event_storage().iter)
    for iteration in (1, 2, 3):
        with EventStorage(iteration):
            with second.watched():
                model(data)
            second.run(data, lambda loss: None, torch.enable_grad)
    assert drawn == [2, 2]


def test_a_model_without_a_backbone_is_refused(squares_run: Overrides) -> None:
    cfg = load_config(QUICKSTART, squares_run("refused", *DIAL))
    with pytest.raises(ValueError, match="Conv2d has no module of that name"):
        SecondPass(cfg, nn.Conv2d(1, 1, 1))


def test_a_flow_behind_the_backbone_needs_the_losses_of_the_task(squares_run: Overrides) -> None:
    model, _, run = small(squares_run)
    model.roi_heads.flow = copy.deepcopy(next(iter(flows_of(model).values())))
    with pytest.raises(ValueError, match=r"\(roi_heads\.flow\).*TASK_WEIGHT above 0"):
        SecondPass(run.cfg, model)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.SOLVER.DIAL.TASK_WEIGHT = 1.0
    SecondPass(cfg, model)
