"""The average of the weights: its values on a small network, and in real runs of the quickstart network."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.train_loop import TrainerBase
from torch import Tensor, nn

from ode_detect.engine import run as runs
from ode_detect.engine.config import load_config
from ode_detect.engine.ema import AveragedWeights
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.trainer import Trainer
from ode_detect.task import ConfigError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
Overrides = Callable[..., list[str]]
AVERAGED = ["SOLVER.EMA_DECAY", "0.7", "MODEL.ODE.ROLE", "twin", "MODEL.RESNETS.NORM", "BN"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.frozen = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("unknown", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Loop(TrainerBase):
    """Changes the network in each iteration, and keeps what it was after each."""

    def __init__(self, hook: AveragedWeights, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, [snapshot(model)]
        self.register_hooks([hook])

    def run_step(self) -> None:
        generator = torch.Generator().manual_seed(self.iter)
        self.model(torch.randn(4, 2, 3, 3, generator=generator))
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator)
        self.seen.append(snapshot(self.model))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def nothing(model: nn.Module) -> None:
    pass


def test_the_average_is_that_of_weights_and_statistics_and_little_of_the_start() -> None:
    model = Network()
    loop = Loop(AveragedWeights(model, decay=0.3, finish=nothing), model)
    loop.train(0, 9)
    expected = {name: tensor.double() for name, tensor in loop.seen[0].items()}
    for iteration, latest in enumerate(loop.seen[1:]):
        decay = min(0.3, (1 + iteration) / (10 + iteration))
        expected = {name: decay * e + (1 - decay) * latest[name].double() for name, e in expected.items()}
    averaged_weights, trained = model.state_dict(), loop.seen[-1]
    changed = [n for n in averaged_weights if n.startswith(("conv", "norm")) and "num_batches" not in n]
    assert len(changed) == 6
    for name in changed:
        torch.testing.assert_close(averaged_weights[name].double(), expected[name], rtol=1e-6, atol=1e-6)
        assert not torch.equal(averaged_weights[name], trained[name])
    for name in set(averaged_weights) - set(changed):
        assert torch.equal(averaged_weights[name], trained[name]), name
    assert averaged_weights["norm.num_batches_tracked"] == 9


def test_the_average_is_in_place_only_while_it_is_asked_for() -> None:
    model = Network()
    hook = AveragedWeights(model, decay=0.9, finish=nothing)
    loop = Loop(hook, model)
    loop.train(0, 3)  # ends with the average in place
    again = Network()
    again.load_state_dict(model.state_dict())
    resumed = AveragedWeights(again, decay=0.9, finish=nothing)
    resumed.load_state_dict(hook.state_dict())
    longer = Loop(resumed, again)
    seen: list[dict[str, Tensor]] = []

    class Look(HookBase):
        def after_step(self) -> None:
            if self.trainer.iter == 3:
                with resumed.in_place(), resumed.in_place():
                    seen.append(snapshot(again))

    longer.register_hooks([Look()])
    longer.train(3, 5)
    whole = Network()
    straight = Loop(AveragedWeights(whole, decay=0.9, finish=nothing), whole)
    straight.train(0, 5)
    assert same(longer.seen[1], straight.seen[4]), "a finished run that is made longer goes on with the trained weights"
    assert same(longer.seen[2], straight.seen[5]), "and with them after a look at the average"
    assert not same(seen[0], longer.seen[1])
    assert same(snapshot(again), snapshot(whole))


def test_a_decay_of_one_would_never_learn() -> None:
    with pytest.raises(ValueError, match=r"EMA_DECAY is a share in \[0, 1\), and it is 1"):
        AveragedWeights(Network(), decay=1.0, finish=nothing)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_model_is_finished_once_in_evaluation_with_what_is_handed_out(decay: float) -> None:
    finished: list[tuple[dict[str, Tensor], bool, bool]] = []

    def finish(model: nn.Module) -> None:
        finished.append((snapshot(model), model.training, torch.is_grad_enabled()))
        model.unknown.fill_(1.0)

    model = Network()
    hook = AveragedWeights(model, decay=decay, finish=finish)
    loop = Loop(hook, model)
    loop.train(0, 3)
    (at_finish, training, gradients), unknown = finished[0], model.unknown
    assert (len(finished), training, gradients, model.training, float(unknown)) == (1, False, False, True, 1.0)
    assert same({**snapshot(model), "unknown": at_finish["unknown"]}, at_finish)
    assert same(at_finish, loop.seen[-1]) is (decay == 0)
    loop.train(3, 3)
    assert len(finished) == 1


def open_run(overrides: list[str], *, resume: bool = False) -> runs.Run:
    cfg = load_config(QUICKSTART, overrides)
    return runs.open_training(cfg, command="test", config_file=str(QUICKSTART), resume=resume)


def loaded(run: runs.Run, name: str) -> dict[str, Any]:
    return torch.load(run.folder / f"{name}.pth", weights_only=True)


class StopAt(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), 2)


@pytest.fixture(scope="module")
def averaged(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, list[dict[str, Tensor]]]:
    """A whole run, and the weights that were evaluated."""
    from ..conftest import overrides_for

    run = open_run(overrides_for(squares, tmp_path_factory.mktemp("averaged") / "run", *AVERAGED))
    evaluated: list[dict[str, Tensor]] = []
    trained(run, evaluated)
    return run, evaluated


def trained(run: runs.Run, evaluated: list[dict[str, Tensor]], *, resume: bool = False, stop: int = -1) -> None:
    """Train; the main metric is the number of the evaluation, so that each is the best."""

    def evaluate(model: nn.Module) -> dict[str, Any]:
        evaluated.append(snapshot(model))
        return {"bbox": {"AP50": float(len(evaluated))}}

    trainer = Trainer(run.cfg, run.task, evaluate)
    trainer.resume_or_load(resume=resume)
    trainer.register_hooks([StopAt(stop)])
    trainer.train()


def test_the_average_is_evaluated_and_handed_out_and_the_run_goes_on_with_the_rest(
    averaged: tuple[runs.Run, list[dict[str, Tensor]]], squares_run: Overrides
) -> None:
    run, evaluated = averaged
    assert len(evaluated) == 2
    final, best, on_the_way = (loaded(run, name) for name in ("model_final", "model_best", "model_0000003"))
    assert same(final["model"], evaluated[1])
    assert same(best["model"], evaluated[1])
    without = open_run(squares_run("without", *AVERAGED, "SOLVER.EMA_DECAY", "0.0"))
    trained(without, [])
    assert same(on_the_way["model"], loaded(without, "model_0000003")["model"]), "averaging changes no training"
    last = loaded(without, "model_final")["model"]
    assert all(torch.equal(t, last[n]) for n, t in final["trainer"]["hooks"]["AveragedWeights"]["other"].items())
    assert not same(final["model"], last)


def test_a_run_stopped_and_resumed_is_the_uninterrupted_run(
    averaged: tuple[runs.Run, list[dict[str, Tensor]]], squares_run: Overrides
) -> None:
    evaluated: list[dict[str, Tensor]] = []
    with pytest.raises(Interrupted):
        trained(open_run(squares_run("stopped", *AVERAGED)), evaluated, stop=3)
    again = open_run(squares_run("stopped", *AVERAGED), resume=True)
    trained(again, evaluated, resume=True)
    whole, resumed = loaded(averaged[0], "model_final"), loaded(again, "model_final")
    assert same(whole["model"], resumed["model"])
    kept = [file["trainer"]["hooks"]["AveragedWeights"] for file in (whole, resumed)]
    assert same(kept[0]["other"], kept[1]["other"])
    assert [same(a, b) for a, b in zip(averaged[1], evaluated, strict=True)] == [True, True]


def test_the_task_completes_what_is_written_and_not_again(
    squares_run: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = squares_run("finished", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0")
    run = open_run(overrides)
    calls: list[bool] = []

    def finish(cfg: Any, model: nn.Module) -> None:
        assert cfg is run.cfg
        calls.append(model.training)
        model.pixel_mean.fill_(77.0)

    monkeypatch.setattr(run.task, "after_training", finish)
    evaluated: list[float] = []

    def evaluate(model: Any) -> dict[str, Any]:
        evaluated.append(float(model.pixel_mean.mean()))
        return {}

    for resume in (False, True):
        trainer = Trainer(run.cfg, run.task, evaluate)
        trainer.resume_or_load(resume=resume)
        assert trainer.start_iter == (2 if resume else 0)
        trainer.train()
        assert calls == [False]
    assert evaluated[0] == 77.0


def test_a_decay_out_of_range_is_a_mistake_in_the_config(squares_run: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"^SOLVER\.EMA_DECAY is a number in \[0, 1\), and it is 1\.5"):
        open_run(squares_run("wrong", "SOLVER.EMA_DECAY", "1.5"))


def test_a_run_that_goes_on_without_an_average_has_the_weights_that_were_trained(squares_run: Overrides) -> None:
    short = ["TEST.EVAL_PERIOD", "0", "SOLVER.MAX_ITER"]
    runs_of = {name: squares_run(name, *AVERAGED, *short) for name in ("ended", "with")}
    for decay, name, last in (("0.7", "ended", "2"), ("0.0", "with", "2")):
        trained(open_run([*runs_of[name], last, "SOLVER.EMA_DECAY", decay]), [])
    for name in ("ended", "with"):
        run = open_run([*runs_of[name], "4", "SOLVER.EMA_DECAY", "0.0"], resume=True)
        trained(run, [], resume=True)
    one, other = (Path(runs_of[n][runs_of[n].index("OUTPUT_DIR") + 1]) / "model_final.pth" for n in ("ended", "with"))
    assert same(*(torch.load(file, weights_only=True)["model"] for file in (one, other)))


def test_the_average_of_a_checkpoint_with_its_former_name_is_taken_up(squares_run: Overrides) -> None:
    run = open_run(squares_run("former", "SOLVER.MAX_ITER", "2", "SOLVER.EMA_DECAY", "0.9", "TEST.EVAL_PERIOD", "0"))
    Trainer(run.cfg, run.task, lambda model: {}).train()
    content = loaded(run, "model_final")
    kept = content["trainer"]["hooks"].pop("AveragedWeights")
    assert kept["in_place"]
    content["trainer"]["hooks"]["HandedOut"] = kept
    torch.save(content, run.folder / "model_final.pth")
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=True)
    (average,) = (hook for hook in trainer._hooks if isinstance(hook, AveragedWeights))
    assert average._is_in_place
    assert same(average._other, kept["other"])
