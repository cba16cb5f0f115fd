"""Opening the folder of a run: what is refused, what a resume keeps."""

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from torch import nn

from ode_detect.engine import run as runs
from ode_detect.engine.config import load_config
from ode_detect.engine.tasks import TASKS
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART


@pytest.mark.parametrize(("task", "message"), [("detection", "this is a Identity"), ("classification", "not merged")])
def test_a_model_whose_predictions_cannot_be_merged_is_a_mistake_of_the_config(task: str, message: str) -> None:
    cfg = load_config(QUICKSTART, ["TEST.AUG.ENABLED", "True", "TASK", task])
    run = SimpleNamespace(cfg=cfg, task=TASKS[task])
    with pytest.raises(ConfigError, match=rf"TEST\.AUG\.ENABLED: .*{message}"):
        runs.tested(run, nn.Identity())
    model = nn.Identity()
    cfg.TEST.AUG.ENABLED = False
    assert runs.tested(run, model) is model


Overrides = Callable[..., list[str]]


def open_run(overrides: list[str], *, resume: bool = False) -> runs.Run:
    cfg = load_config(QUICKSTART, overrides)
    return runs.open_training(cfg, command="test", config_file=str(QUICKSTART), resume=resume)


def test_frozen_statistics_without_weights_are_refused(squares_run: Overrides) -> None:
    with pytest.raises(ConfigError, match="explode"):
        open_run(squares_run("frozen", "MODEL.RESNETS.NORM", "FrozenBN"))


def test_a_seed_that_is_left_open_is_drawn_once_and_kept_by_a_resume(squares_run: Overrides) -> None:
    first = open_run(squares_run("open", "SEED", "-1"))
    assert first.cfg.SEED >= 0
    again = open_run(squares_run("open", "SEED", "-1"), resume=True)
    assert again.cfg.SEED == first.cfg.SEED


def test_a_resume_with_another_config_tells_what_changed(squares_run: Overrides) -> None:
    run = open_run(squares_run("changed"))
    open_run(squares_run("changed"), resume=True)
    assert "another value" not in (run.folder / "log.txt").read_text()
    open_run(squares_run("changed", "SOLVER.BASE_LR", "0.5"), resume=True)
    assert "another value of SOLVER.BASE_LR: 0.001, now 0.5" in (run.folder / "log.txt").read_text()


def test_a_resumed_run_whose_records_are_gone_gets_new_ones(squares_run: Overrides) -> None:
    folder = open_run(squares_run("lost")).folder
    (folder / "metrics.json").touch()
    (folder / "environment.json").unlink()
    open_run(squares_run("lost"), resume=True)
    assert json.loads((folder / "environment.json").read_text())["command"] == "test"
