"""BatchNorm statistics of the settings of a dial."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ode_detect.detection.data.datasets import DatasetError
from ode_detect.ode import estimate_statistics
from ode_detect.ode.flows import flows_of
from ode_detect.ode.statistics import StatisticsError
from ode_detect.report.protocol import in_words
from ode_detect.studies.dial import statistics
from ode_detect.studies.dial.budget import turn

from .quickstart_dial import STEPS, open_dial


def test_statistics_that_cannot_be_estimated_are_told(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: torch.nn.Module, batches: Any) -> int:
        if any(block.solver.steps == 1 for block in flows_of(model).values()):
            raise StatisticsError("not finite")
        return estimate_statistics(model, batches)

    monkeypatch.setattr(statistics, "estimate_statistics", fail)
    results, _ = turn(open_dial(trained, tmp_path), steps=[1, 3], methods=["euler"])
    assert "batches of 2, but for euler_1: not finite, so those of the full steps; " in in_words(results.protocol)
    again, _ = turn(open_dial(trained, tmp_path), steps=[3], methods=["euler"])
    assert "but for euler_1:" in in_words(again.protocol)


def test_data_that_fails_is_not_taken_for_statistics(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: torch.nn.Module, batches: Any) -> int:
        raise DatasetError("a picture is not there")

    monkeypatch.setattr(statistics, "estimate_statistics", fail)
    with pytest.raises(DatasetError, match="not there"):
        turn(open_dial(trained, tmp_path), **STEPS)
