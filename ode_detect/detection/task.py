"""Object detection as a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ode_detect.detection.data.sizes import anchors
from ode_detect.report.examples import Examples
from ode_detect.report.plots import Curve
from ode_detect.task import ConfigError, Example, Task

from . import augmentation, class_layers, evaluation, pictures, predict
from .config import add_detection_config
from .curves import plot_scores, summary_curves
from .data import datasets
from .matching import Matches
from .metrics import METRICS
from .model import head_name
from .optimize import optimize_detector
from .scores import DetectionScores, score_detections

_SCORES = "scores.json"


class Detection(Task):
    """Boxes, classes and masks of objects, by Detectron2's detectors."""

    name = "detection"
    metric = "bbox/AP50"
    plotted = ("bbox/AP", "bbox/AP50")
    quantities = METRICS
    plot_file = "ap.png"
    sheet_file = "detections.jpg"

    def add_config(self, cfg: CfgNode) -> None:
        """Add the keys of detectors."""
        add_detection_config(cfg)

    def check_config(self, cfg: CfgNode) -> None:
        """Check the anchors.

        Raises:
            ConfigError: anchors that do not fit the feature maps.
        """
        proposals = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN" or head_name(cfg) == "RETINANET"
        if not proposals or cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator":
            return
        try:
            anchors(cfg)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def register(self, cfg: CfgNode) -> None:
        """Make the data sets of a config known to Detectron2."""
        datasets.register_datasets(cfg)

    def require(self, names: list[str]) -> None:
        """Check that data sets are there; see `Task.require`."""
        datasets.require_datasets(names)

    def check_test(self, cfg: CfgNode) -> None:
        """Check that the test data can be evaluated on; see `Task.check_test`."""
        datasets.check_test_data(cfg)

    def train_data(self, cfg: CfgNode) -> tuple[list[Example], Callable[[Example], Any]]:
        """Dataset dicts, and the mapper that makes a training example of one."""
        return datasets.train_data(cfg)

    def test_loader(self, cfg: CfgNode, name: str) -> Iterable[list[Example]]:
        """A data set in order, as lists of examples."""
        return datasets.test_loader(cfg, name)

    def categories(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """Ids and names of the classes; see `Task.categories`."""
        return predict.categories(cfg)

    def classes_in(self, record: Example) -> Iterable[int]:
        """Numbers of the classes of the objects in a picture."""
        return {one["category_id"] for one in record.get("annotations", ())}

    def optimize(self, model: nn.Module, batch: list[Example]) -> tuple[nn.Module, object]:
        """A copy that is faster; see `optimize_detector`."""
        return optimize_detector(model, batch)

    def augmented(self, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """Detectron2's test-time augmentation; see `Task.augmented`."""
        return augmentation.augmented(cfg, model)

    def class_rows(self, model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
        """Rows of classes in the heads; see `Task.class_rows`."""
        return class_layers.class_rows(model, order)

    def protocol(self, cfg: CfgNode) -> tuple[str, ...]:
        """How AP, precision, recall and F1 are computed."""
        return evaluation.protocol(cfg)

    def evaluator(self, cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
        """The evaluator of boxes, which writes ``scores.json`` into its folder."""
        file = Path(folder) / _SCORES
        if comm.is_main_process():
            # Of an earlier evaluation, which this one replaces even if it comes to nothing.
            file.unlink(missing_ok=True)

        def record(matches: Matches) -> dict[str, float]:
            scores = score_detections(matches)
            scores.write(file)
            return scores.metrics

        return evaluation.build_evaluator(cfg, name, folder, record)

    def metrics(self, results: dict[str, Any]) -> dict[str, float]:
        """Metrics as fractions, from the evaluator's results."""
        return evaluation.metrics(results)

    def table(self, folder: Path) -> str:
        """Precision, recall and F1 of each class."""
        return "\n".join(scores.table() for scores in _scores(folder))

    def plot(self, folder: Path) -> None:
        """Precision against recall, F1 against confidence, and confusion of classes."""
        for scores in _scores(folder):
            plot_scores(scores, folder)

    def curves(self, folder: Path) -> Sequence[Curve]:
        """The same as curves, over all classes."""
        return [curve for scores in _scores(folder) for curve in summary_curves(scores)]

    def draw(self, cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
        """Pictures from all over a data set with hits, false detections and missed objects."""
        shown = pictures.detections(cfg, model, name, count=6)
        title = f"{name}, detections with a score of {cfg.TEST.SCORE_THRESHOLD:g} or more"
        pictures.detection_sheet(shown, path, title=title)

    def examples(self, cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
        """Pictures from all over a data set with hits, false detections and missed objects, one by one."""
        shown = pictures.detections(cfg, model, name, count=count)
        text = f"Detections with a score of {cfg.TEST.SCORE_THRESHOLD:g} or more."
        return Examples(text, pictures.DETECTION_LEGEND, tuple(map(pictures.show, shown)))

    def predictor(self, cfg: CfgNode, categories: Sequence[dict[str, Any]]) -> predict.DetectionPredictor:
        """The predictor of a config."""
        return predict.DetectionPredictor(cfg, categories)


def _scores(folder: Path) -> list[DetectionScores]:
    """The scores that the evaluator wrote; none where the test data have no annotations."""
    file = folder / _SCORES
    return [DetectionScores.read(file)] if file.exists() else []


DETECTION = Detection()
