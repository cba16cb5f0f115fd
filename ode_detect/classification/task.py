"""Classification of pictures as a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import Tensor, nn, no_grad

from ode_detect.ode import optimize_for_inference
from ode_detect.report.examples import Examples
from ode_detect.report.plots import Curve
from ode_detect.task import Example, Task

from . import evaluation
from .answers import Answers
from .config import add_classification_config
from .data import datasets
from .drawing import CLASSIFICATION_LEGEND, Classified, prediction_sheet, show_classified
from .finish import finish_classifier
from .metrics import METRICS
from .model import Classifier
from .optimize import optimize_classifier
from .predict import ClassificationPredictor
from .scores import ClassificationScores, curves, plot_scores

_SCORES, _ANSWERS = "scores.json", "predictions.json"
# Pictures on a sheet of predictions.
_SHOWN = 24


class Classification(Task):
    """The class of a picture, by a linear layer on any backbone."""

    name = "classification"
    metric = "classification/top1"
    plotted = ("classification/top1", "classification/error")
    quantities = METRICS
    plot_file = "accuracy.png"

    def add_config(self, cfg: CfgNode) -> None:
        """Add the keys of classifiers."""
        add_classification_config(cfg)

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
        return datasets.categories(cfg)

    def classes_in(self, record: Example) -> Iterable[int]:
        """The class of a picture."""
        return (record["label"],)

    def optimize(self, model: nn.Module, batch: list[Example]) -> tuple[nn.Module, object]:
        """A copy that is faster; see `optimize_classifier`."""
        if isinstance(model, Classifier):
            return optimize_classifier(model, batch)
        return optimize_for_inference(model, batch)

    def class_rows(self, model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
        """Rows of classes in the linear layer and in what is known of the training pictures."""
        if not isinstance(model, Classifier):
            return {}
        return {name: list(order) for name in ("linear.weight", "linear.bias", "familiarity.means")}

    def after_training(self, cfg: CfgNode, model: nn.Module) -> None:
        """Let the classifier know its training pictures; see `finish_classifier`."""
        if isinstance(model, Classifier):
            finish_classifier(cfg, model)

    def forget(self, model: nn.Module) -> bool:
        """Let the classifier know no training pictures; see `Task.forget`."""
        if not isinstance(model, Classifier) or not model.familiarity.fitted:
            return False
        model.familiarity.forget()
        return True

    def protocol(self, cfg: CfgNode) -> tuple[str, ...]:
        """How error, precision, recall, F1 and calibration are computed."""
        return evaluation.protocol(cfg)

    def evaluator(self, cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
        """The evaluator of classes, which writes ``scores.json`` and ``predictions.json`` into its folder."""
        files = Path(folder) / _SCORES, Path(folder) / _ANSWERS
        if comm.is_main_process():
            for file in files:  # Of an earlier evaluation, which this one replaces even if it comes to nothing.
                file.unlink(missing_ok=True)

        def record(scores: ClassificationScores, answers: Answers) -> None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            scores.write(files[0])
            answers.write(files[1])

        return evaluation.build_evaluator(cfg, name, record)

    def metrics(self, results: dict[str, Any]) -> dict[str, float]:
        """Metrics as fractions, from the evaluator's results."""
        return evaluation.metrics(results)

    def table(self, folder: Path) -> str:
        """Precision, recall and F1 of each class."""
        return ClassificationScores.read(folder / _SCORES).table()

    def plot(self, folder: Path) -> None:
        """Confusion of classes, and how far the confidence can be believed."""
        plot_scores(ClassificationScores.read(folder / _SCORES), folder)

    def curves(self, folder: Path) -> Sequence[Curve]:
        """The same as curves."""
        return curves(ClassificationScores.read(folder / _SCORES))

    def draw(self, cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
        """Pictures from all over a data set, and those that are wrong with the highest confidence."""
        answers = Answers.read(folder / _ANSWERS)
        spread, wrong = answers.chosen(_SHOWN)
        images = datasets.images(cfg, name, [*spread, *wrong])
        shown = [answers.classified(index, images[index]) for index in spread]
        mistakes = [answers.classified(index, images[index]) for index in wrong]
        prediction_sheet(shown, path, f"{name}, predicted class and its probability", mistakes=mistakes)

    def examples(self, cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
        """Pictures from all over a data set with their most likely classes, one by one."""
        batch = datasets.spread_examples(cfg, name, count)
        images = datasets.images(cfg, name, [example["index"] for example in batch])
        predictor = self.predictor(cfg, datasets.categories(cfg))
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

    def predictor(self, cfg: CfgNode, categories: Sequence[dict[str, Any]]) -> ClassificationPredictor:
        """The predictor of a config."""
        return ClassificationPredictor(cfg, categories)


CLASSIFICATION = Classification()
