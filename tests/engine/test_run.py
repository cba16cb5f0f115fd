"""What a run evaluates."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from ode_detect.detection.optimize import optimize_detector
from ode_detect.engine import run as runs
from ode_detect.engine.config import ConfigError, load_config

from ..conftest import QUICKSTART


def a_run(*overrides: str, optimize: Callable[..., Any] = optimize_detector) -> SimpleNamespace:
    cfg = load_config(QUICKSTART, overrides)
    batches = {"trees_test": [["first"], ["second"]]}
    task = SimpleNamespace(test_loader=lambda cfg, name: batches[name], optimize=optimize)
    return SimpleNamespace(cfg=cfg, task=task, folder=Path())


def test_the_model_itself_is_evaluated_unless_asked_otherwise() -> None:
    model = nn.Identity()
    assert runs.for_inference(a_run(), model) is model


def test_the_optimised_copy_is_compared_on_the_first_test_picture() -> None:
    given = []
    run = a_run(
        "MODEL.OPTIMIZE_FOR_INFERENCE", "True", optimize=lambda model, batch: (given.append(batch) or "fast", "report")
    )
    assert runs.for_inference(run, nn.Identity()) == "fast"
    assert given == [["first"]]


def test_a_model_that_cannot_be_optimised_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"MODEL.OPTIMIZE_FOR_INFERENCE: .* this is a Identity"):
        runs.for_inference(a_run("MODEL.OPTIMIZE_FOR_INFERENCE", "True"), nn.Identity())
