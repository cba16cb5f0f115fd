"""The real trainer on the quickstart network and eight small pictures."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine import trainer as trainers
from ode_detect.engine.build import build_network
from ode_detect.engine.checkpoint import CheckpointError
from ode_detect.engine.config import load_config
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.trainer import Trainer
from ode_detect.report.plots import read_metrics
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.task import ConfigError

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
Overrides = Callable[..., list[str]]


def open_run(overrides: list[str], *, resume: bool = False) -> runs.Run:
    cfg = load_config(QUICKSTART, overrides)
    return runs.open_training(cfg, command="test", config_file=str(QUICKSTART), resume=resume)


def open_evaluation(overrides: list[str]) -> runs.Run:
    cfg = load_config(QUICKSTART, overrides)
    return runs.open_evaluation(cfg, command="test", config_file=str(QUICKSTART))


def final(run: runs.Run) -> dict[str, torch.Tensor]:
    return torch.load(run.folder / "model_final.pth", weights_only=True)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_times(state: Any) -> Any:
    if isinstance(state, float):
        return repr(state)  # A score may be NaN, which is like no other.
    if not isinstance(state, dict):
        return [*map(without_times, state)] if isinstance(state, list | tuple) else state
    return {key: without_times(value) for key, value in state.items() if key not in ("time", "data_time")}


class At(HookBase):
    """Does something after an iteration."""

    def __init__(self, iteration: int, do: Callable[[], None]) -> None:
        self.iteration, self.do = iteration, do

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.do()


def train_until(run: runs.Run, iteration: int, do: Callable[[], None], *, resume: bool = False) -> None:
    trainer = Trainer(run.cfg, run.task, lambda model: train.evaluate(run, model))
    trainer._hooks.insert(0, hook := At(iteration, do))
    hook.trainer = trainer
    trainer.resume_or_load(resume=resume)
    trainer.train()


@pytest.fixture(scope="module")
def uninterrupted(whole_run: list[str]) -> runs.Run:
    run = open_run(whole_run)
    train.train(run, resume=False)
    return run


def test_a_run_writes_one_folder_with_everything(uninterrupted: runs.Run) -> None:
    folder = uninterrupted.folder
    expected = [
        *("config.yaml", "environment.json", "log.txt", "metrics.json", "model_final.pth", "model_best.pth"),
        *("results.json", "loss.png", "ap.png", "detections.jpg"),
    ]
    assert [name for name in expected if not (folder / name).exists()] == []
    assert list(folder.glob("events.out.tfevents*"))
    (row,) = Results.read(folder / "results.json").rows
    assert row.role == "ode"
    assert 0 <= row.metrics["AP50"] <= 1
    assert row.cost["parameters"] > 0
    assert row.cost["macs"] > 1e6
    last = [r for r in read_metrics(folder / "metrics.json") if "total_loss" in r][-1]
    evaluations = row.cost["evaluations"]
    assert last["nfe_forward"] == evaluations, "the same flows, the same steps"
    assert last["solver_steps"] > 0
    assert "NFE" in (folder / "log.txt").read_text()


def test_a_run_stopped_by_ctrl_c_and_resumed_is_the_uninterrupted_run(
    uninterrupted: runs.Run, squares_run: Overrides
) -> None:
    run = open_run(squares_run("stopped"))
    with pytest.raises(Interrupted):
        train_until(run, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert not (run.folder / "model_final.pth").exists()
    again = open_run(squares_run("stopped"), resume=True)
    train.train(again, resume=True)
    whole, resumed = final(uninterrupted), final(again)
    assert resumed["trainer"]["iteration"] == 5
    assert same(whole["model"], resumed["model"])
    for key in ("optimizer", "hooks"):
        left, right = (without_times(content["trainer"][key]) for content in (whole, resumed))
        assert same(left, right), key


def test_a_killed_run_resumed_from_its_last_checkpoint_is_the_uninterrupted_run(
    uninterrupted: runs.Run, squares_run: Overrides
) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    run = open_run(squares_run("killed"))
    with pytest.raises(Killed):
        train_until(run, 4, die)
    add_random_state(run.folder / "model_0000003.pth")
    again = open_run(squares_run("killed"), resume=True)
    train.train(again, resume=True)
    assert same(final(uninterrupted)["model"], final(again)["model"])


def add_random_state(path: Path) -> None:
    """Make a checkpoint of it as earlier versions wrote them."""
    content = torch.load(path, weights_only=True)
    content["trainer"]["random"] = {"torch": torch.get_rng_state()}
    torch.save(content, path)


def test_another_seed_gives_another_network(uninterrupted: runs.Run, squares_run: Overrides) -> None:
    other = open_run(squares_run("other", "SEED", "8"))
    train.train(other, resume=False)
    assert not same(final(uninterrupted)["model"], final(other)["model"])


def test_a_finished_run_is_not_run_again(uninterrupted: runs.Run, whole_run: list[str]) -> None:
    before = (uninterrupted.folder / "results.json").stat().st_mtime_ns
    again = open_run(whole_run, resume=True)
    results = train.train(again, resume=True)
    assert (uninterrupted.folder / "results.json").stat().st_mtime_ns == before
    assert results == Results.read(uninterrupted.folder / "results.json")


def test_a_folder_that_holds_a_run_is_not_overwritten(uninterrupted: runs.Run, whole_run: list[str]) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        open_run(whole_run)


def test_evaluation_of_the_last_weights_gives_the_same_metrics(uninterrupted: runs.Run, squares_run: Overrides) -> None:
    trained = Results.read(uninterrupted.folder / "results.json").rows[0].metrics
    run = open_evaluation(squares_run("evaluated", "MODEL.WEIGHTS", str(uninterrupted.folder / "model_final.pth")))
    assert train.evaluate_only(run).rows[0].metrics == trained


def test_the_dial_turns_at_test_time(uninterrupted: runs.Run, squares_run: Overrides) -> None:
    weights = ["MODEL.WEIGHTS", str(uninterrupted.folder / "model_final.pth")]
    costs = {}
    for steps in (1, 4):
        run = open_evaluation(squares_run(f"steps{steps}", *weights, "MODEL.ODE.STEPS", str(steps)))
        costs[steps] = train.evaluate_only(run).rows[0].cost
    assert costs[4]["evaluations"] == 4 * costs[1]["evaluations"]
    assert costs[4]["macs"] > costs[1]["macs"]
    assert costs[4]["parameters"] == costs[1]["parameters"]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_are_spoilt(squares_run: Overrides) -> None:
    run = open_run(squares_run("diverged"))
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=False)
    predictor = trainer.model.roi_heads.box_predictor.cls_score
    trainer._hooks.insert(0, hook := At(2, lambda: torch.nn.init.constant_(predictor.bias, float("nan"))))
    hook.trainer = trainer
    with pytest.raises(FloatingPointError):
        trainer.train()
    saved = torch.load(run.folder / "model_0000001.pth", weights_only=True)["model"]
    assert all(bool(value.isfinite().all()) for value in saved.values())


def test_bfloat16_autocast_trains_on_the_cpu(squares_run: Overrides) -> None:
    run = open_run(squares_run("bfloat16", "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "2"))
    seen = []
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.model.backbone.register_forward_hook(lambda m, i, out: seen.append(next(iter(out.values())).dtype))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    metrics = [json.loads(line) for line in (run.folder / "metrics.json").read_text().splitlines()]
    assert all(record["total_loss"] < 100 for record in metrics if "total_loss" in record)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_resume_uses_the_rates_decay_and_momentum_that_the_config_now_says(
    optimizer: str, squares_run: Overrides
) -> None:
    overrides = squares_run("rates", "SOLVER.OPTIMIZER", optimizer, "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0")
    schedule = ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()"]
    train.train(open_run([*overrides, *schedule, "SOLVER.MAX_ITER", "2"]), resume=False)
    now = {"BASE_LR": "0.0004", "WEIGHT_DECAY": "0.002", "WEIGHT_DECAY_NORM": "0.003", "BIAS_LR_FACTOR": "2.0"}
    words = [word for key, value in {**now, "MOMENTUM": "0.5"}.items() for word in (f"SOLVER.{key}", value)]
    run = open_run([*overrides, *schedule, *words, "SOLVER.MAX_ITER", "4"], resume=True)
    protocol = in_words(train.train(run, resume=True).protocol)
    after = final(run)["trainer"]
    records = read_metrics(run.folder / "metrics.json")
    # The groups are others than before: biases now have a rate of their own.
    assert [r["lr"] for r in records if "lr" in r] == [pytest.approx(0.001), pytest.approx(0.0004)]
    momentum = 0.5 if optimizer == "SGD" else None
    groups = {(g["lr"], g["weight_decay"], g.get("momentum")) for g in after["optimizer"]["param_groups"]}
    assert groups == {(rate, decay, momentum) for rate in (0.0004, 0.0008) for decay in (0.002, 0.003)}
    assert "SOLVER.BASE_LR: 0.001, now 0.0004" in protocol
    state, names = after["optimizer"]["state"], after["parameters"]
    # Each has its own momentum.
    shapes = {names[n]: entry.shape for n, one in state.items() for entry in one.values() if entry.ndim}
    assert len(shapes) > 50
    assert all(shape == final(run)["model"][name].shape for name, shape in shapes.items())


def test_a_run_goes_on_with_the_optimizer_that_it_began_with(squares_run: Overrides) -> None:
    overrides = squares_run("kinds", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0")
    train.train(open_run([*overrides, "SOLVER.OPTIMIZER", "AdamW"]), resume=False)
    other = open_run([*overrides, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", "4"], resume=True)
    with pytest.raises(CheckpointError, match=r"AdamW, while SOLVER.OPTIMIZER is SGD. Set SOLVER.OPTIMIZER AdamW"):
        train.train(other, resume=True)


def test_a_finished_run_that_goes_on_has_no_results_until_it_ends_again(
    squares_run: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(squares_run("longer", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"))
    train.train(run, resume=False)
    scores = [line for line in (run.folder / "metrics.json").read_text().splitlines() if "bbox/AP50" in line]
    longer = open_run(squares_run("longer", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "0"), resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(longer, resume=True)
    assert not (run.folder / "results.json").exists()
    train.train(longer, resume=True)
    assert "4 iterations" in in_words(Results.read(run.folder / "results.json").protocol)
    again = [line for line in (run.folder / "metrics.json").read_text().splitlines() if "bbox/AP50" in line]
    assert again[:-1] == scores
    assert [json.loads(line)["iteration"] for line in again] == [2, 4]


@pytest.mark.parametrize("file", ["environment.json", "config.yaml", "last_checkpoint", "results.json"])
def test_a_record_that_is_cut_ends_no_run(file: str, squares_run: Overrides, said: pytest.LogCaptureFixture) -> None:
    overrides = squares_run("cut", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0")
    train.train(open_run(overrides), resume=False)
    folder = Path(overrides[overrides.index("OUTPUT_DIR") + 1])
    before, records = Results.read(folder).rows, (folder / "metrics.json").read_text()
    for content in ("", (folder / file).read_text()[:9]):
        (folder / file).write_text(content)
        if file in ("environment.json", "config.yaml"):
            (folder / "results.json").unlink()  # killed while it was evaluated
        said.clear()
        assert train.train(open_run(overrides, resume=True), resume=True).rows[0].metrics == before[0].metrics
        assert file in said.text or file in (folder / "log.txt").read_text()
    assert json.loads((folder / "environment.json").read_text())["command"] == "test"
    assert without_times([json.loads(r) for r in records.splitlines()][-1]) == without_times(
        json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    )


def test_checkpoints_that_are_superseded_do_not_outlive_a_stop(squares_run: Overrides) -> None:
    overrides = squares_run("stops", "SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "0")
    for number, iteration in enumerate((2, 3, 6)):
        run = open_run(overrides, resume=number > 0)
        with pytest.raises(Interrupted):
            train_until(run, iteration, lambda: os.kill(os.getpid(), signal.SIGINT), resume=number > 0)
    train.train(open_run(overrides, resume=True), resume=True)
    found = sorted(path.name for path in run.folder.glob("model_*.pth"))
    assert found == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]


def test_two_test_sets_give_two_rows_and_the_first_chooses_the_best(
    squares: Path, squares_run: Overrides, tmp_path: Path
) -> None:
    entries = [
        {"NAME": name, "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
        for name in ("squares", "squares_again")
    ]
    more = ["DATASETS.CUSTOM", json.dumps(entries), "DATASETS.TEST", "('squares', 'squares_again')"]
    run = open_run(squares_run("two", *more, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"))
    rows = train.train(run, resume=False).rows
    assert [row.name for row in rows] == ["quickstart, squares", "quickstart, squares_again"]
    assert rows[0].metrics == rows[1].metrics
    assert (run.folder / "model_best.pth").exists()
    assert (run.folder / "ap.png").exists()


def test_evaluations_between_iterations_are_not_counted_as_training(squares_run: Overrides) -> None:
    run = open_run(squares_run("counted", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"))
    seen = []
    trainer = Trainer(run.cfg, run.task, lambda model: train.evaluate(run, model))
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([hook := At(3, lambda: seen.extend(trainer.storage.history("nfe_forward").values()))])
    hook.trainer = trainer
    trainer.train()
    assert len({count for count, _ in seen}) == 1


def test_only_evaluating_leaves_the_run_as_it_was(uninterrupted: runs.Run, whole_run: list[str]) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in uninterrupted.folder.iterdir() if p.is_file()}
    run = open_evaluation(whole_run)
    (row,) = train.evaluate_only(run).rows
    assert row.metrics == Results.read(uninterrupted.folder / "results.json").rows[0].metrics
    assert {p.name: p.stat().st_mtime_ns for p in uninterrupted.folder.iterdir() if p.is_file()} == before
    assert (uninterrupted.folder / "evaluation" / "results.json").exists()


def with_dropout(cfg: CfgNode) -> torch.nn.Module:
    model = build_network(cfg)
    dropout = torch.nn.Dropout(0.2)
    model.backbone.register_forward_hook(lambda m, i, maps: {name: dropout(one) for name, one in maps.items()})
    return model


# More workers than the cores that the test may use is what torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
def test_a_resume_in_other_circumstances_is_the_uninterrupted_run_too(
    squares_run: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers, grouped pictures, autocast, and a network that draws."""
    built = []

    def drawing(cfg: CfgNode) -> torch.nn.Module:
        built.append(cfg)
        return with_dropout(cfg)

    monkeypatch.setattr(trainers, "build_network", drawing)
    how = ["DATALOADER.NUM_WORKERS", "2", "DATALOADER.ASPECT_RATIO_GROUPING", "True", "SOLVER.AMP.ENABLED", "True"]
    whole = open_run(squares_run("a", *how, "SOLVER.MAX_ITER", "4"))
    train.train(whole, resume=False)
    with pytest.raises(Interrupted):
        train_until(open_run(squares_run("b", *how, "SOLVER.MAX_ITER", "4")), 1, lambda: os.kill(os.getpid(), 2))
    again = open_run(squares_run("b", *how, "SOLVER.MAX_ITER", "4"), resume=True)
    train.train(again, resume=True)
    assert len(built) == 3
    assert same(final(whole)["model"], final(again)["model"])


def test_an_ablation_begins_with_pretrained_weights_by_its_role_alone(squares_run: Overrides) -> None:
    twin = open_run(squares_run("twin", "MODEL.ODE.ROLE", "twin"))
    torch.save({"model": build_network(twin.cfg).state_dict()}, twin.folder / "twin.pth")
    begin = ("MODEL.WEIGHTS", str(twin.folder / "twin.pth"))
    run = open_run(squares_run("ablation", "MODEL.ODE.ROLE", "ablation", *begin))
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=False)
    ours, theirs = trainer._network.state_dict(), torch.load(twin.folder / "twin.pth", weights_only=True)["model"]
    assert set(ours) < set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
