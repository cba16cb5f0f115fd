"""What a task brings: its data, its evaluation, its pictures. The trainer and the tools do the rest."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.evaluator import inference_context
from numpy.typing import NDArray
from torch import nn

from ode_detect.media.errors import DatasetError
from ode_detect.report.examples import Examples
from ode_detect.report.metrics import Quantity, quantity
from ode_detect.report.plots import Curve

Example = dict[str, Any]
logger = logging.getLogger("ode_detect.task")


class ConfigError(ValueError):
    """A config that cannot be used; the message says why and what to do."""


class Predictor(ABC):
    """Prediction on pictures that belong to no data set; a picture is RGB, uint8, shape (H, W, 3).

    Attributes:
        categories: of the file of predictions, ids and names; () if the task has none.
    """

    categories: Sequence[dict[str, Any]] = ()

    @abstractmethod
    def example(self, image: NDArray[np.uint8]) -> Example:
        """What the network takes for a picture; the tensor is in "image"."""

    @abstractmethod
    def records(self, output: Any) -> list[dict[str, Any]]:
        """Records of the file of predictions, from the network's output for a picture."""

    @abstractmethod
    def draw(self, image: NDArray[np.uint8], output: Any) -> NDArray[np.uint8]:
        """The picture with the prediction, of a size that depends on the picture's only."""

    def words(self, output: Any) -> str:
        """The prediction in a line for the terminal; "" if a line does not hold it."""
        return ""


class Task(ABC):
    """One task, named by ``cfg.TASK``: a folder with its parts, and this class in its ``task.py``.

    Attributes:
        name: as in the config.
        metric: the main metric, as the evaluator calls it. The best checkpoint is chosen by it.
        quantities: the metrics: how they are called and shown.
        plotted: the metrics that are plotted over the training.
        plot_file: name of that plot in the run folder.
        sheet_file: name of the pictures with predictions there.
    """

    name: str
    metric: str
    quantities: tuple[Quantity, ...] = ()
    plotted: tuple[str, ...] = ()
    plot_file: str = "metrics.png"
    sheet_file: str = "predictions.jpg"

    @property
    def score(self) -> str:
        """The main metric as results call it: "AP50" of "bbox/AP50"."""
        return self.metric.rpartition("/")[2]

    @property
    def better(self) -> str:
        """Direction of the main metric, for the best checkpoint: "max", or "min" if less is better."""
        return "min" if quantity(self.score).better == "less" else "max"

    # Config and data

    def add_config(self, cfg: CfgNode) -> None:  # noqa: B027  most tasks have few keys, and some none
        """Add the keys of the task, with their defaults."""

    def check_config(self, cfg: CfgNode) -> None:  # noqa: B027  most configs are checked where a network is built
        """Check values that Detectron2 would meet with an assertion.

        Raises:
            ConfigError: a value that the task cannot use.
        """

    @abstractmethod
    def register(self, cfg: CfgNode) -> None:
        """Make the data sets of the task known to Detectron2."""

    @abstractmethod
    def require(self, names: list[str]) -> None:
        """Check that data sets are there.

        Raises:
            DatasetError: one is not; the message says how to get it.
        """

    def check_test(self, cfg: CfgNode) -> None:  # noqa: B027  what `require` found is enough for most tasks
        """Check that the test data can be evaluated on.

        Raises:
            DatasetError: it cannot.
        """

    @abstractmethod
    def train_data(self, cfg: CfgNode) -> tuple[list[Example], Callable[[Example], Any]]:
        """Dataset dicts, and the mapper that makes a training example of one."""

    @abstractmethod
    def test_loader(self, cfg: CfgNode, name: str) -> Iterable[list[Example]]:
        """A data set in order, as lists of examples."""

    def categories(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """Ids and names of the classes, in the network's order, by the data sets of a config; [] if there are none."""
        return []

    def classes_in(self, record: Example) -> Iterable[int]:
        """Numbers of the classes in a dataset dict of `train_data`.

        Raises:
            ConfigError: the task has no classes.
        """
        raise ConfigError(
            f"pictures are repeated by their classes, and the task {self.name} has none; set DATALOADER.SAMPLER_TRAIN "
            "TrainingSampler."
        )

    # The network

    def optimize(self, model: nn.Module, batch: list[Example]) -> tuple[nn.Module, object]:
        """A copy of a trained model that is faster, and what was done to it.

        Raises:
            ValueError: it cannot be made faster.
        """
        raise ValueError(f"networks of the task {self.name} are not made faster; set it False.")

    def augmented(self, cfg: CfgNode, model: nn.Module) -> nn.Module:
        """A model that merges its predictions for several copies of a picture, as ``TEST.AUG`` says.

        Raises:
            ValueError: they cannot be merged.
        """
        raise ValueError(f"predictions are not merged in the task {self.name}; set TEST.AUG.ENABLED False.")

    def class_rows(self, model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
        """For each tensor with rows of single classes, by name, the numbers of its rows in another order of classes."""
        return {}

    def after_training(self, cfg: CfgNode, model: nn.Module) -> None:  # noqa: B027  most models are complete
        """Complete a trained model before it is evaluated and written; buffers may change in place.

        All processes call it alike, with the weights that are handed out, in evaluation mode, without gradients.
        """

    def forget(self, model: nn.Module) -> bool:
        """Take away what `after_training` found, since the weights or solvers that it looked at have changed.

        Returns:
            Whether there was anything.
        """
        return False

    def renew(self, cfg: CfgNode, model: nn.Module) -> bool:
        """Complete again a model whose weights or solvers have changed since `after_training`.

        Returns:
            Whether there was anything to `forget`. Where the training data are not there, or the model gives what is
            not finite, it stays incomplete, with a warning.
        """
        if not self.forget(model):
            return False
        training = model.training
        try:
            with inference_context(model), torch.no_grad():
                self.after_training(cfg, model)
        except (DatasetError, FloatingPointError) as error:
            logger.warning("the network could not be completed again after its weights or solvers changed: %s", error)
        finally:
            model.train(training)  # Detectron2's context does not give it back after an error.
        return True

    # Evaluation and report

    @abstractmethod
    def protocol(self, cfg: CfgNode) -> tuple[str, ...]:
        """How the metrics are computed with a config, clause by clause."""

    @abstractmethod
    def evaluator(self, cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
        """The Detectron2 evaluator of a data set, which writes into a folder."""

    @abstractmethod
    def metrics(self, results: dict[str, Any]) -> dict[str, float]:
        """Metrics as fractions, from the evaluator's results."""

    def table(self, folder: Path) -> str:
        """What the evaluator wrote into the folder of a data set, as a table for the terminal; "" if nothing."""
        return ""

    def plot(self, folder: Path) -> None:  # noqa: B027  not every evaluation has plots of its own
        """Draw plots of what the evaluator wrote into a folder, into that folder."""

    def curves(self, folder: Path) -> Sequence[Curve]:
        """Curves of what the evaluator wrote into a folder, which pages of several runs lay over one another."""
        return ()

    @abstractmethod
    def draw(self, cfg: CfgNode, model: nn.Module, name: str, folder: Path, path: Path) -> None:
        """Draw predictions for a data set, whose evaluation is in a folder, into a file."""

    @abstractmethod
    def examples(self, cfg: CfgNode, model: nn.Module, name: str, count: int) -> Examples:
        """Pictures from all over a data set, drawn one by one, to be compared with those of other networks."""

    # Use

    @abstractmethod
    def predictor(self, cfg: CfgNode, categories: Sequence[dict[str, Any]]) -> Predictor:
        """The predictor of a config, for the categories of its classes; [] if they are unknown."""
