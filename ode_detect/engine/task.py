"""What a task brings: its data, its evaluation, its pictures. The trainer and the tools do the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import nn

import ode_detect.backbones  # registers the backbones
import ode_detect.detection.model  # noqa: F401  registers the heads
from ode_detect.detection import data, evaluation, pictures
from ode_detect.detection import predict as detection_predict
from ode_detect.detection.matching import Matches
from ode_detect.detection.optimize import optimize_detector
from ode_detect.ode.names import check_name
from ode_detect.report.curves import plot_scores, summary_curves
from ode_detect.report.detections import draw_detections
from ode_detect.report.examples import DETECTION_LEGEND, Examples, show
from ode_detect.report.pictures import Picture, detection_sheet
from ode_detect.report.plots import Curve
from ode_detect.report.scores import DetectionScores, score_detections

Example = dict[str, Any]


@dataclass(frozen=True)
class Predictor:
    """How a task predicts on pictures that belong to no data set; a picture is RGB, uint8, (H, W, 3).

    Attributes:
        categories: of the file of predictions, ids and names; () if the task has none.
        example: a picture -> what the network takes for it; the tensor is in "image".
        records: the network's output for it -> records of the file of predictions.
        draw: the picture and the output -> a picture with the prediction, of a size that depends on the picture's only.
    """

    categories: Sequence[dict[str, Any]]
    example: Callable[[NDArray[np.uint8]], Example]
    records: Callable[[Any], list[dict[str, Any]]]
    draw: Callable[[NDArray[np.uint8], Any], NDArray[np.uint8]]


@dataclass(frozen=True)
class Task:
    """One task, named by ``cfg.TASK``.

    Attributes:
        name: as in the config.
        metric: the main metric, as the evaluator calls it. The best checkpoint is chosen by it.
        better: "max" if a higher value is better, "min" if a lower one is.
        plotted: the metrics that are plotted over the training.
        protocol: how the metrics are computed with a config, in a few words.
        register: makes the task's data sets known.
        require: raises an error that helps if data sets are not there.
        check_test: raises an error that helps if the test data cannot be evaluated on.
        train_data: dataset dicts, and the mapper that makes a training example of one.
        test_loader: a data set in order, as lists of examples.
        evaluator: Detectron2 evaluator of a data set, writing into a folder.
        metrics: the evaluator's results -> metrics as fractions.
        table: what the evaluator wrote into the folder of a data set, as a table for the terminal; "" if nothing.
        plot: draws plots of it into that folder.
        curves: the curves of it that pages of several runs lay over one another.
        draw: draws predictions for a data set into a file.
        examples: draws the first so many pictures of a data set one by one, to be laid beside those of other networks.
        optimize: a trained model and a batch -> a copy that is faster, and what was done; ValueError if it cannot.
        categories: ids and names of the classes by the data sets of a config, in the network's order; [] if unknown.
        predictor: for a config and categories ([]: unknown).
    """

    name: str
    metric: str
    better: str
    plotted: tuple[str, ...]
    protocol: Callable[[CfgNode], str]
    register: Callable[[CfgNode], None]
    require: Callable[[list[str]], None]
    check_test: Callable[[CfgNode], None]
    train_data: Callable[[CfgNode], tuple[list[Example], Callable[[Example], Any]]]
    test_loader: Callable[[CfgNode, str], Iterable[list[Example]]]
    evaluator: Callable[[CfgNode, str, str], DatasetEvaluator]
    metrics: Callable[[dict[str, Any]], dict[str, float]]
    table: Callable[[Path], str]
    plot: Callable[[Path], None]
    curves: Callable[[Path], Sequence[Curve]]
    draw: Callable[[CfgNode, nn.Module, str, Path], None]
    examples: Callable[[CfgNode, nn.Module, str, int], Examples]
    optimize: Callable[[nn.Module, list[Example]], tuple[nn.Module, object]]
    categories: Callable[[CfgNode], list[dict[str, Any]]]
    predictor: Callable[[CfgNode, Sequence[dict[str, Any]]], Predictor]


def _draw_detections(cfg: CfgNode, model: nn.Module, name: str, path: Path) -> None:
    """The first pictures of a data set with hits, false detections and missed objects."""
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


TASKS = {
    "detection": Task(
        name="detection",
        metric="bbox/AP50",
        better="max",
        plotted=("bbox/AP", "bbox/AP50"),
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
    )
}


def get_task(cfg: CfgNode) -> Task:
    """The task that the config names, with its data sets registered."""
    task = TASKS[check_name(cfg.TASK, TASKS, "TASK")]
    task.register(cfg)
    return task
