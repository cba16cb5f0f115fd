"""The evaluator of classes: what share is right, of which classes, and how far the probabilities can be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ode_detect.media.errors import DatasetError

from .answers import Answers
from .predict import TOP
from .scores import ClassificationScores

# Equal bins of confidence of the calibration error and of the reliability diagram.
BINS = 15


Record = Callable[[ClassificationScores, Answers], None]


def build_evaluator(cfg: CfgNode, name: str, record: Record = lambda scores, answers: None) -> DatasetEvaluator:
    """The evaluator of a data set; its results are ``{"classification": {"top1": 0.9, ...}}``.

    Args:
        cfg: for the number of classes.
        name: the data set; its classes are ``thing_classes`` of Detectron2's metadata.
        record: is given what was found, on the main process, and writes what is to be written.

    Raises:
        DatasetError: the data set has another number of classes than the network.
    """
    count = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    names = MetadataCatalog.get(name).get("thing_classes") or [f"class {index}" for index in range(count)]
    if len(names) != count:
        raise DatasetError(
            f"a network is evaluated on its own classes; it has {count}, and {name} has {len(names)}. "
            f"Set MODEL.CLASSIFIER.NUM_CLASSES to {len(names)} and train, or take the data set it was trained for."
        )
    return ClassificationEvaluator(names, record)


def protocol(cfg: CfgNode) -> tuple[str, ...]:
    """How the metrics are computed, in a few words."""
    shown = ["one view of each picture", "error is 1 - top1", "precision, recall and f1 are means over the classes"]
    shown += [f"ece over {BINS} equal bins of confidence (l1)", "nll is the mean negative log-likelihood (natural)"]
    far = f"unfamiliar: farther from all classes than {cfg.TEST.FAMILIAR_SHARE:g} of familiar pictures are"
    return (*shown, far)


def metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Metrics as a row of results has them, from an evaluator's results; what is not finite is left out."""
    return {key: float(value) for key, value in results.get("classification", {}).items() if math.isfinite(value)}


class ClassificationEvaluator(DatasetEvaluator):
    """Metrics of a classifier by torchmetrics.

    Classes that neither occur nor are predicted do not count in the means over classes; one that is never predicted
    has precision 0 in them, one that does not occur has recall 0. Top-5 is left out where there are at most five.

    Args:
        names: the classes, in the order of the network.
        record: is given what was found, on the main process.
    """

    def __init__(self, names: Sequence[str], record: Record = lambda scores, answers: None) -> None:
        self._names = tuple(names)
        self._record = record
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._logits: list[Tensor] = []
        self._labels: list[int] = []
        self._far: list[Tensor] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Tensor]]) -> None:
        """Take a batch.

        Args:
            inputs: examples with "label", an int.
            outputs: for each "logits" (K,), and "far", a bool tensor, if the network knows its training pictures.

        Raises:
            DatasetError: a label that is none of the classes, or none at all.
            FloatingPointError: logits that are not finite.
        """
        for example in inputs:
            label = example.get("label")
            if label is None or not 0 <= int(label) < len(self._names):
                where = example.get("file_name", f"picture {len(self._labels)} of the test set")
                raise DatasetError(
                    f"a label is the index of one of {len(self._names)} classes, 0 to {len(self._names) - 1}; that of "
                    f"{where} is {label}. Correct the data set, or MODEL.CLASSIFIER.NUM_CLASSES."
                )
            self._labels.append(int(label))
        logits = torch.stack([output["logits"] for output in outputs]).float().cpu()
        spoilt = int((~logits.isfinite().all(dim=1)).sum())
        if spoilt:
            raise FloatingPointError(
                f"the scores of a classifier must be finite; those of {spoilt} of {len(logits)} pictures are not. The "
                "network diverged, or its weights are broken."
            )
        self._logits.append(logits)
        if all("far" in output for output in outputs):
            self._far.append(torch.stack([output["far"] for output in outputs]).cpu())

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluate the pictures of all processes; the results come on the main one, the others get ``{}``.

        Raises:
            DatasetError: there was no picture.
        """
        mine = [torch.cat(found) if found else None for found in (self._logits, self._far)]
        parts = comm.gather((torch.tensor(self._labels), *mine), dst=0)
        if not comm.is_main_process():
            return {}
        # Detectron2 gives each process a run of neighbours, so one after the other they are in the data set's order.
        labels, logits, far = (
            [part for part in column if part is not None and len(part)] for column in zip(*parts, strict=True)
        )
        if not labels:
            raise DatasetError("a classifier is evaluated on pictures; the test set has none. Check DATASETS.TEST.")
        return {"classification": self._measure(torch.cat(logits), torch.cat(labels), torch.cat(far) if far else None)}

    def _measure(self, logits: Tensor, labels: Tensor, far: Tensor | None) -> dict[str, float]:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        probabilities = logits.softmax(dim=1)
        found = _metrics(logits, probabilities, labels)
        if far is not None:
            found["unfamiliar"] = round(float(far.double().mean()), 6)
        best = probabilities.topk(min(TOP, len(self._names)))
        confusion = multiclass_confusion_matrix(best.indices[:, 0], labels, len(self._names))
        scores = ClassificationScores(
            names=self._names,
            confusion=tuple(map(tuple, confusion.tolist())),
            metrics=found,
            reliability=_reliability(best.values[:, 0], best.indices[:, 0] == labels),
        )
        answers = Answers(
            names=self._names,
            labels=tuple(labels.tolist()),
            classes=tuple(map(tuple, best.indices.tolist())),
            probabilities=tuple(tuple(row) for row in best.values.clamp(max=1.0).tolist()),
            far=() if far is None else tuple(far.bool().tolist()),
        )
        self._record(scores, answers)
        return found


def _metrics(logits: Tensor, probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    # Takes seconds to import.
    from torchmetrics.functional import classification as measure

    count = logits.shape[1]
    predicted = probabilities.topk(1).indices[:, 0]
    right = measure.multiclass_accuracy(predicted, labels, count, average="micro")
    found = {"error": 1 - right, "top1": right}
    if count > TOP:
        found["top5"] = measure.multiclass_accuracy(logits, labels, count, average="micro", top_k=TOP)
    of_classes = {
        "precision": measure.multiclass_precision,
        "recall": measure.multiclass_recall,
        "f1": measure.multiclass_f1_score,
    }
    found |= {name: mean(predicted, labels, count, average="macro") for name, mean in of_classes.items()}
    # torchmetrics opens a sixteenth bin for a confidence of exactly 1, which float32 reaches easily.
    below_one = probabilities.clamp(max=1 - torch.finfo(torch.float32).eps)
    found["ece"] = measure.multiclass_calibration_error(below_one, labels, count, n_bins=BINS, norm="l1")
    found["nll"] = F.cross_entropy(logits.double(), labels)
    # More digits than float32 has would only look like more.
    return {name: round(float(value), 6) for name, value in found.items()}


def _reliability(confidence: Tensor, right: Tensor) -> tuple[tuple[float, float, int], ...]:
    bins = (confidence.double() * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    sums = [torch.bincount(bins, weights=values.double(), minlength=BINS) for values in (confidence, right)]
    means = [(total / counts.clamp(min=1)).clamp(max=1.0).tolist() for total in sums]
    return tuple(zip(*means, counts.tolist(), strict=True))
