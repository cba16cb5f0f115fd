"""What a task brings: its data, its evaluation, its pictures. The trainer and the tools do the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from ode_detect.report.plots import Curve

Example = dict[str, Any]
logger = logging.getLogger("ode_detect.engine")


def _nothing_more(cfg: CfgNode, model: nn.Module) -> None:
    """Most models are finished when they are trained."""


def _nothing_to_check(cfg: CfgNode) -> None:
    """Most configs are checked where a network is built."""


def _nothing_to_forget(model: nn.Module) -> bool:
    """Most models know nothing but their weights."""
    return False


def _no_class_rows(model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
    """Most tensors are of all classes."""
    return {}


def _no_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Most predictions for several copies of a picture cannot be merged."""
    raise ValueError(f"predictions are not merged in the task {cfg.TASK}; set TEST.AUG.ENABLED False.")


def _nothing_to_say(output: Any) -> str:
    """Most predictions are pictures."""
    return ""


@dataclass(frozen=True)
class Predictor:
    """How a task predicts on pictures that belong to no data set; a picture is RGB, uint8, (H, W, 3).

    Attributes:
        categories: of the file of predictions, ids and names; () if the task has none.
        example: a picture -> what the network takes for it; the tensor is in "image".
        records: the network's output for it -> records of the file of predictions.
        draw: the picture and the output -> a picture with the prediction, of a size that depends on the picture's only.
        words: the output -> the prediction in a line for the terminal; "" if a line does not hold it.
    """

    categories: Sequence[dict[str, Any]]
    example: Callable[[NDArray[np.uint8]], Example]
    records: Callable[[Any], list[dict[str, Any]]]
    draw: Callable[[NDArray[np.uint8], Any], NDArray[np.uint8]]
    words: Callable[[Any], str] = _nothing_to_say


@dataclass(frozen=True)
class Task:
    """One task, named by ``cfg.TASK``.

    Attributes:
        name: as in the config.
        metric: the main metric, as the evaluator calls it. The best checkpoint is chosen by it.
        better: "max" if a higher value is better, "min" if a lower one is.
        plotted: the metrics that are plotted over the training.
        plot_file: what that plot is called in the run folder.
        sheet_file: what the pictures with predictions are called there.
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
        draw: draws predictions for a data set, whose evaluation is in a folder, into a file.
        examples: draws so many pictures from all over a data set one by one, to be laid beside those of other networks.
        optimize: a trained model and a batch -> a copy that is faster, and what was done; ValueError if it cannot.
        categories: ids and names of the classes by the data sets of a config, in the network's order; [] if unknown.
        predictor: for a config and categories ([]: unknown).
        class_rows: a model and an order of its classes -> for each tensor with rows of single classes, by name, the
            numbers of its rows in that order.
        classes_in: a dataset dict of `train_data` -> the numbers of the classes that are in it.
        augmented: a model that merges its predictions for several copies of a picture, as ``TEST.AUG`` says;
            ValueError if it cannot.
        finish: completes a model in the last iteration, before it is evaluated and written: it may change buffers in
            place. All processes call it alike, with the weights that are handed out, in evaluation mode, without
            gradients.
        forget: takes away what `finish` found, since the weights or solvers are no longer those that it looked at;
            whether there was anything.
        check_config: raises ConfigError for what Detectron2 would meet with an assertion.
    """

    name: str
    metric: str
    better: str
    plotted: tuple[str, ...]
    plot_file: str
    sheet_file: str
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
    draw: Callable[[CfgNode, nn.Module, str, Path, Path], None]
    examples: Callable[[CfgNode, nn.Module, str, int], Examples]
    optimize: Callable[[nn.Module, list[Example]], tuple[nn.Module, object]]
    categories: Callable[[CfgNode], list[dict[str, Any]]]
    predictor: Callable[[CfgNode, Sequence[dict[str, Any]]], Predictor]
    classes_in: Callable[[Example], Iterable[int]]
    augmented: Callable[[CfgNode, nn.Module], nn.Module] = _no_augmentation
    class_rows: Callable[[nn.Module, Sequence[int]], dict[str, list[int]]] = _no_class_rows
    finish: Callable[[CfgNode, nn.Module], None] = _nothing_more
    forget: Callable[[nn.Module], bool] = _nothing_to_forget
    check_config: Callable[[CfgNode], None] = _nothing_to_check

    @property
    def score(self) -> str:
        """The main metric as results call it: "AP50" of "bbox/AP50"."""
        return self.metric.rpartition("/")[2]

    def learn_anew(self, cfg: CfgNode, model: nn.Module) -> bool:
        """`finish` again a model whose weights or solvers are others now.

        Returns:
            Whether there was anything to `forget`. Where the training data are not there, or the model gives what is
            not finite, it stays forgotten, and that is told.
        """
        if not self.forget(model):
            return False
        try:
            with inference_context(model), torch.no_grad():
                self.finish(cfg, model)
        except (DatasetError, FloatingPointError) as error:
            logger.warning("the network will not know its training pictures: %s", error)
        return True


class ConfigError(ValueError):
    """A config that cannot be used; the message says why and what to do."""
