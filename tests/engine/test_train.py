"""What a run evaluates and reports."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ode_detect.detection.optimize import optimize_detector
from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.config import load_config
from ode_detect.report.results import Results
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART


def a_run(*overrides: str, optimize: Callable[..., Any] = optimize_detector) -> SimpleNamespace:
    cfg = load_config(QUICKSTART, overrides)
    batches = {"trees_test": [["first"], ["second"]]}
    task = SimpleNamespace(test_loader=lambda cfg, name: batches[name], optimize=optimize)
    return SimpleNamespace(cfg=cfg, task=task, folder=Path())


def test_the_model_itself_is_evaluated_unless_asked_otherwise() -> None:
    model = nn.Identity()
    assert train.for_inference(a_run(), model) is model


def test_the_optimised_copy_is_compared_on_the_first_test_picture() -> None:
    given = []
    run = a_run(
        "MODEL.OPTIMIZE_FOR_INFERENCE", "True", optimize=lambda model, batch: (given.append(batch) or "fast", "report")
    )
    assert train.for_inference(run, nn.Identity()) == "fast"
    assert given == [["first"]]


def test_a_model_that_cannot_be_optimised_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"MODEL.OPTIMIZE_FOR_INFERENCE: .* this is a Identity"):
        train.for_inference(a_run("MODEL.OPTIMIZE_FOR_INFERENCE", "True"), nn.Identity())


def no_ink(*_: object) -> None:
    raise RuntimeError("no ink")


def reported(folder: Path, monkeypatch: pytest.MonkeyPatch, config_file: str, role: str) -> Results:
    """The report of a run whose task can draw nothing."""
    monkeypatch.setattr(train, "cost", lambda run, model, minutes: {"parameters": 1})
    (folder / "environment.json").write_text(json.dumps({"command": "c", "commit": "abc"}))
    (folder / "metrics.json").write_text("not json")
    numbers = {"metrics": lambda nested: {"AP": 0.5}, "protocol": lambda cfg: ("by hand",), "plotted": ()}
    task = SimpleNamespace(name="detection", **numbers, table=no_ink, plot=no_ink, draw=no_ink)
    cfg = load_config(QUICKSTART, ["MODEL.ODE.ROLE", role])
    return train.report(runs.Run(cfg, task, folder, "c", config_file), nn.Identity(), {}, minutes=None)


def test_what_cannot_be_drawn_is_told_and_does_not_cost_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(runs.logger, "warning", lambda text, *values: told.append(text % values))
    results = reported(tmp_path, monkeypatch, "x.yaml", "twin")
    assert Results.read(tmp_path / "results.json") == results
    assert [line.split(" could not be made (")[0] for line in told] == [
        "the table of trees_test",
        "the plots of trees_test",
        "the plots of the training",
        "the pictures with predictions",
    ]
    assert "RuntimeError: no ink" in told[0]


@pytest.mark.parametrize(
    ("config_file", "role", "name"),
    [("x.yaml", "twin", "x_twin"), ("x_twin.yaml", "twin", "x_twin"), ("x_twin.yaml", "ablation", "x_twin_ablation")],
)
def test_a_row_is_named_by_config_and_role(
    config_file: str, role: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reported(tmp_path, monkeypatch, config_file, role).rows[0].name == name
