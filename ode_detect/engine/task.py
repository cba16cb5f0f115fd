"""What a task brings: its data, its evaluation, its pictures. The trainer and the tools do the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from torch import nn

import ode_detect.backbones  # noqa: F401  registers the backbones
from ode_detect.detection import data, evaluation, pictures
from ode_detect.detection.optimize import optimize_detector
from ode_detect.ode.names import check_name
from ode_detect.report.pictures import Picture, detection_sheet

Example = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task, named by ``cfg.TASK``.

    Attributes:
        name: as in the config.
        metric: the main metric, as the evaluator calls it. The best checkpoint is chosen by it.
        better: "max" if a higher value is better, "min" if a lower one is.
        plotted: the metrics that are plotted over the training.
        protocol: how the metrics are computed, in a few words.
        register: makes the task's data sets known.
        require: raises an error that helps if data sets are not there.
        check_test: raises an error that helps if the test data cannot be evaluated on.
        train_data: dataset dicts, and the mapper that makes a training example of one.
        test_loader: a data set in order, as lists of examples.
        evaluator: Detectron2 evaluator of a data set, writing into a folder.
        metrics: the evaluator's results -> metrics as fractions.
        draw: draws predictions for a data set into a file.
        optimize: a trained model and a batch -> a copy that is faster, and what was done; ValueError if it cannot.
    """

    name: str
    metric: str
    better: str
    plotted: tuple[str, ...]
    protocol: str
    register: Callable[[CfgNode], None]
    require: Callable[[list[str]], None]
    check_test: Callable[[CfgNode], None]
    train_data: Callable[[CfgNode], tuple[list[Example], Callable[[Example], Any]]]
    test_loader: Callable[[CfgNode, str], Iterable[list[Example]]]
    evaluator: Callable[[CfgNode, str, str], DatasetEvaluator]
    metrics: Callable[[dict[str, Any]], dict[str, float]]
    draw: Callable[[CfgNode, nn.Module, str, Path], None]
    optimize: Callable[[nn.Module, list[Example]], tuple[nn.Module, object]]


def _draw_detections(cfg: CfgNode, model: nn.Module, name: str, path: Path) -> None:
    """The first pictures of a data set with hits, false detections and missed objects."""
    shown = [Picture(**numbers) for numbers in pictures.detections(cfg, model, name, count=6)]
    detection_sheet(shown, path, title=f"{name}, detections with a score of {pictures.SHOWN_SCORE:.2f} or more")


TASKS = {
    "detection": Task(
        name="detection",
        metric="bbox/AP50",
        better="max",
        plotted=("bbox/AP", "bbox/AP50"),
        protocol="AP by pycocotools (VOC: by Detectron2)",
        register=data.register_datasets,
        require=data.require_datasets,
        check_test=data.check_test_data,
        train_data=data.train_data,
        test_loader=data.test_loader,
        evaluator=evaluation.build_evaluator,
        metrics=evaluation.metrics,
        draw=_draw_detections,
        optimize=optimize_detector,
    )
}


def get_task(cfg: CfgNode) -> Task:
    """The task that the config names, with its data sets registered."""
    task = TASKS[check_name(cfg.TASK, TASKS, "TASK")]
    task.register(cfg)
    return task
