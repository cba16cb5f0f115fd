"""Object detection as a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ode_detect.detection.data.sizes import anchors
from ode_detect.report.examples import Examples
from ode_detect.report.plots import Curve
from ode_detect.task import ConfigError, Example, Predictor, Task

from . import evaluation, pictures
from . import predict as detection_predict
from .augmentation import augmented
from .class_layers import class_rows
from .curves import plot_scores, summary_curves
from .data import datasets as data
from .drawing import draw_detections
from .matching import Matches
from .model import head_name
from .optimize import optimize_detector
from .pictures import DETECTION_LEGEND, Picture, detection_sheet, show
from .scores import DetectionScores, score_detections


def _draw_detections(cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
    """Pictures from all over a data set with hits, false detections and missed objects."""
    shown = [Picture(**numbers) for numbers in pictures.detections(cfg, model, name, count=6)]
    detection_sheet(shown, path, title=f"{name}, detections with a score of {cfg.TEST.SCORE_THRESHOLD:g} or more")


_SCORES = "scores.json"


def _box_evaluator(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator of boxes, which writes ``scores.json`` into its folder."""
    file = Path(output_dir) / _SCORES
    if comm.is_main_process():
        # Of an earlier evaluation, which this one replaces even if it comes to nothing.
        file.unlink(missing_ok=True)

    def record(matches: Matches) -> dict[str, float]:
        scores = score_detections(**vars(matches))
        scores.write(file)
        return scores.metrics

    return evaluation.build_evaluator(cfg, name, output_dir, record)


def _detection_scores(folder: Path) -> list[DetectionScores]:
    """The one that the evaluator wrote; none where the test data have no annotations."""
    return [DetectionScores.read(folder / _SCORES)] if (folder / _SCORES).exists() else []


def _table_of_scores(folder: Path) -> str:
    return "\n".join(scores.table() for scores in _detection_scores(folder))


def _plot_scores(folder: Path) -> None:
    for scores in _detection_scores(folder):
        plot_scores(scores, folder)


def _score_curves(folder: Path) -> list[Curve]:
    return [curve for scores in _detection_scores(folder) for curve in summary_curves(scores)]


def _example_detections(cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
    shown = [Picture(**numbers) for numbers in pictures.detections(cfg, model, name, count=count)]
    text = f"Detections with a score of {cfg.TEST.SCORE_THRESHOLD:g} or more."
    return Examples(text, DETECTION_LEGEND, tuple(map(show, shown)))


def _detection_predictor(cfg: CfgNode, categories: Sequence[dict[str, Any]]) -> Predictor:
    detector = detection_predict.DetectionPredictor(cfg, categories)
    return Predictor(
        categories=detector.categories,
        example=detector.example,
        records=detector.records,
        draw=lambda image, output: draw_detections(image, **detector.numbers(output)),
    )


def _check_anchors(cfg: CfgNode) -> None:
    proposals = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN" or head_name(cfg) == "RETINANET"
    if not proposals or cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator":
        return
    try:
        anchors(cfg)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _classes_in(record: Example) -> Iterable[int]:
    return {one["category_id"] for one in record.get("annotations", ())}


DETECTION = Task(
    name="detection",
    metric="bbox/AP50",
    better="max",
    plotted=("bbox/AP", "bbox/AP50"),
    plot_file="ap.png",
    sheet_file="detections.jpg",
    protocol=evaluation.protocol,
    register=data.register_datasets,
    require=data.require_datasets,
    check_test=data.check_test_data,
    train_data=data.train_data,
    test_loader=data.test_loader,
    evaluator=_box_evaluator,
    metrics=evaluation.metrics,
    table=_table_of_scores,
    plot=_plot_scores,
    curves=_score_curves,
    draw=_draw_detections,
    examples=_example_detections,
    optimize=optimize_detector,
    categories=detection_predict.categories,
    predictor=_detection_predictor,
    check_config=_check_anchors,
    class_rows=class_rows,
    classes_in=_classes_in,
    augmented=augmented,
)
