"""Detection as a task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from ode_detect.detection.curves import PLOTS
from ode_detect.detection.matching import Matches
from ode_detect.detection.scores import DetectionScores, score_detections
from ode_detect.engine.config import add_ode_config, load_config
from ode_detect.engine.tasks import TASKS, get_task

from ..conftest import QUICKSTART, overrides_for


def test_the_quickstart_data_is_registered() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    get_task(cfg)
    assert {"trees_train", "trees_test"} <= set(DatasetCatalog.list())


def test_what_the_evaluator_wrote_becomes_a_table_plots_and_curves(tmp_path: Path) -> None:
    task = TASKS["detection"]
    assert (task.table(tmp_path), list(task.curves(tmp_path))) == ("", [])
    task.plot(tmp_path)
    assert not list(tmp_path.iterdir())
    matches = Matches(
        iou=0.5, threshold=0.5, names=("cell",), objects=(2,), confidence=(np.array([0.9, 0.4]),),
        hits=(np.array([True, False]),), ap50=(0.5,), confusion=np.array([[1, 1], [0, 0]]),
    )  # fmt: skip
    score_detections(matches).write(tmp_path / "scores.json")
    assert "cell" in task.table(tmp_path)
    assert [curve.ylabel for curve in task.curves(tmp_path)] == ["Precision", "F1"]
    task.plot(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores.json", *PLOTS}


def test_the_evaluator_of_boxes_writes_scores_in_place_of_those_of_before(squares: Path, tmp_path: Path) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path))
    task = get_task(cfg)
    task.check_test(cfg)
    (tmp_path / "scores.json").write_text("of before")
    evaluator = task.evaluator(cfg, "squares", str(tmp_path))
    assert not (tmp_path / "scores.json").exists()
    evaluator.reset()
    nothing = Instances(
        (80, 96), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0)
    )
    for record in DatasetCatalog.get("squares"):
        evaluator.process([record], [{"instances": nothing}])
    metrics = task.metrics(evaluator.evaluate())
    scores = DetectionScores.read(tmp_path / "scores.json")
    assert scores.overall.given.false_negatives == 18
    assert metrics["AP50"] == metrics["recall"] == 0
    assert set(scores.metrics) <= set(metrics)
