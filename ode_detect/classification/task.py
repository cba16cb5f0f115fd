"""Classification of pictures as a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor, nn, no_grad

from ode_detect.ode import optimize_for_inference
from ode_detect.report.examples import Examples
from ode_detect.report.plots import Curve
from ode_detect.task import Example, Predictor, Task

from . import evaluation
from .answers import Answers
from .data import datasets as data
from .drawing import CLASSIFICATION_LEGEND, Classified, draw_classified, prediction_sheet, show_classified
from .finish import finish_classifier
from .model import Classifier
from .optimize import optimize_classifier
from .predict import ClassificationPredictor
from .scores import ClassificationScores, curves, plot_scores

_SCORES, _ANSWERS = "scores.json", "predictions.json"
# Pictures on a sheet of predictions.
_SHOWN = 24


def _evaluator(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator of classes, which writes its files into a folder."""
    folder = Path(output_dir)
    if comm.is_main_process():
        # Of an earlier evaluation, which this one replaces even if it comes to nothing.
        for file in (_SCORES, _ANSWERS):
            (folder / file).unlink(missing_ok=True)

    def record(measured: evaluation.Measured, answers: evaluation.Answers) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        ClassificationScores(**vars(measured)).write(folder / _SCORES)
        Answers(**vars(answers)).write(folder / _ANSWERS)

    return evaluation.build_evaluator(cfg, name, record)


def _table(folder: Path) -> str:
    return ClassificationScores.read(folder / _SCORES).table()


def _plot(folder: Path) -> None:
    plot_scores(ClassificationScores.read(folder / _SCORES), folder)


def _curves(folder: Path) -> Sequence[Curve]:
    return curves(ClassificationScores.read(folder / _SCORES))


def _draw(cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
    """Pictures from all over a data set, and those that are wrong with the highest confidence."""
    answers = Answers.read(folder / _ANSWERS)
    spread, wrong = answers.chosen(_SHOWN)
    images = data.images(cfg, name, [*spread, *wrong])
    shown = [answers.classified(index, images[index]) for index in spread]
    mistakes = [answers.classified(index, images[index]) for index in wrong]
    prediction_sheet(shown, path, f"{name}, predicted class and its probability", mistakes=mistakes)


def _examples(cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
    batch = data.spread_examples(cfg, name, count)
    images = data.images(cfg, name, [example["index"] for example in batch])
    predictor = ClassificationPredictor(cfg, data.categories(cfg))
    with inference_context(model), no_grad():
        outputs: list[dict[str, Tensor]] = model(batch)
    names = [category["name"] for category in predictor.categories]
    drawn = [
        show_classified(
            Classified(
                images[example["index"]],
                **predictor.numbers(output),
                truth=names[example["label"]],
                name=Path(example.get("file_name", f"picture {example['index']}")).name,
            )
        )
        for example, output in zip(batch, outputs, strict=True)
    ]
    return Examples("The most likely classes with their probabilities.", CLASSIFICATION_LEGEND, tuple(drawn))


def _finish(cfg: CfgNode, model: nn.Module) -> None:
    if isinstance(model, Classifier):
        finish_classifier(cfg, model)


def _forget(model: nn.Module) -> bool:
    if not isinstance(model, Classifier) or not model.familiarity.fitted:
        return False
    model.familiarity.forget()
    return True


def _class_rows(model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
    if not isinstance(model, Classifier):
        return {}
    return {name: list(order) for name in ("linear.weight", "linear.bias", "familiarity.means")}


def _optimize(model: nn.Module, batch: list[Example]) -> tuple[nn.Module, object]:
    if isinstance(model, Classifier):
        return optimize_classifier(model, batch)
    return optimize_for_inference(model, batch)


def _predictor(cfg: CfgNode, categories: Sequence[dict[str, Any]]) -> Predictor:
    classifier = ClassificationPredictor(cfg, categories)

    def draw(image: NDArray[np.uint8], output: dict[str, Tensor]) -> NDArray[np.uint8]:
        return draw_classified(image, **classifier.numbers(output))

    return Predictor(
        categories=classifier.categories,
        example=classifier.example,
        records=classifier.records,
        draw=draw,
        words=classifier.words,
    )


CLASSIFICATION = Task(
    name="classification",
    metric="classification/top1",
    better="max",
    plotted=("classification/top1", "classification/error"),
    plot_file="accuracy.png",
    sheet_file="predictions.jpg",
    protocol=evaluation.protocol,
    register=data.register_datasets,
    require=data.require_datasets,
    check_test=data.check_test_data,
    train_data=data.train_data,
    test_loader=data.test_loader,
    evaluator=_evaluator,
    metrics=evaluation.metrics,
    table=_table,
    plot=_plot,
    curves=_curves,
    draw=_draw,
    examples=_examples,
    optimize=_optimize,
    categories=data.categories,
    predictor=_predictor,
    class_rows=_class_rows,
    classes_in=lambda record: (record["label"],),
    finish=_finish,
    forget=_forget,
)
