"""How good a detector is at one overlap: precision, recall and F1 against confidence, and what it takes for what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from ode_detect.media.files import write_text
from ode_detect.report.rows import ResultsError, build, built_from, check_count, check_fraction, check_types, read_json

from .matching import Matches

BACKGROUND = "background"
# A curve keeps at most so many points.
POINTS = 300


@dataclass(frozen=True)
class Operating:
    """What a detector does when every detection below a threshold is left out.

    Attributes:
        threshold: Detections with a score of this or more count, in [0, 1].
        precision: Share of the detections that are right, in [0, 1]; 0 where there is no detection.
        recall: Share of the objects that are found, in [0, 1]; 0 where there is no object.
        f1: Their harmonic mean, 2 TP / (2 TP + FP + FN); 0 where nothing is right.
        true_positives: Detections that are right.
        false_positives: Detections that are not; those on ignored objects and crowds are neither.
        false_negatives: Objects that are not found.

    Raises:
        ResultsError: A number is out of range.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    true_positives: int
    false_positives: int
    false_negatives: int

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("threshold", "precision", "recall", "f1"):
            check_fraction(name, getattr(self, name))
        for name in ("true_positives", "false_positives", "false_negatives"):
            check_count(name, getattr(self, name))

    @classmethod
    def counted(cls, threshold: float, hits: int, detections: int, objects: int) -> Operating:
        """From counts: right detections, all detections, all objects."""
        return cls(
            threshold=float(threshold),
            precision=hits / detections if detections else 0.0,
            recall=hits / objects if objects else 0.0,
            f1=2 * hits / (detections + objects) if detections + objects else 0.0,
            true_positives=int(hits),
            false_positives=int(detections - hits),
            false_negatives=int(objects - hits),
        )


@dataclass(frozen=True)
class ClassScores:
    """One class, or all of them together.

    Attributes:
        name: Of the class.
        objects: How many there are; ignored ones and crowds do not count.
        given: At the threshold that was given.
        best: At the threshold of the best F1, chosen on the same data and so an upper bound; `given` where no threshold
            gives a right detection.
        confidence: Thresholds of the curve, ascending.
        precision: At each of them.
        recall: At each of them.
        ap50: Average precision at IoU 0.5; None where there is no object.

    Raises:
        ResultsError: Counts do not agree, curves differ in length, or a number is out of range.
    """

    name: str
    objects: int
    given: Operating
    best: Operating
    confidence: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    ap50: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, f"scores of {self.name!r}", name=str, given=Operating, best=Operating)
        check_count("objects", self.objects)
        for point in (self.given, self.best):
            if point.true_positives + point.false_negatives != self.objects:
                raise ResultsError(
                    f"found and missed objects must add up; class {self.name!r} has {self.objects} objects, "
                    f"{point.true_positives} found and {point.false_negatives} missed. Evaluate again."
                )
        lengths = {}
        for name in ("confidence", "precision", "recall"):
            values = tuple(check_fraction(f"{name} of {self.name!r}", value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            lengths[name] = len(values)
        if len(set(lengths.values())) > 1:
            raise ResultsError(f"curves of {self.name!r} must have one length; they have {lengths}. Evaluate again.")
        if self.ap50 is not None:
            check_fraction(f"ap50 of {self.name!r}", self.ap50)

    @property
    def f1(self) -> tuple[float, ...]:
        """F1 at each confidence."""
        pairs = zip(self.precision, self.recall, strict=True)
        return tuple(2 * p * r / (p + r) if p + r else 0.0 for p, r in pairs)


@dataclass(frozen=True)
class DetectionScores:
    """All classes of a data set, and which is taken for which.

    Attributes:
        iou: Overlap from which a detection is on an object.
        threshold: The score threshold that was given; the confusion matrix is at this one.
        classes: One after the other.
        overall: Detections and objects of all classes pooled (micro average).
        labels: Names of the classes, then "background".
        confusion: Counts, ``confusion[true][predicted]`` in the order of ``labels``: row "background" holds detections
            on no object, column "background" objects without a detection. Objects and detections are matched
            whatever their classes.

    Raises:
        ResultsError: Labels are not those of the classes, or the matrix does not have their size.
    """

    iou: float
    threshold: float
    classes: tuple[ClassScores, ...]
    overall: ClassScores
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Check every field."""
        check_fraction("iou", self.iou)
        check_fraction("threshold", self.threshold)
        check_types(self, "scores", classes=Sequence, overall=ClassScores, labels=Sequence, confusion=Sequence)
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))
        expected = (*(c.name for c in self.classes), BACKGROUND)
        if self.labels != expected:
            raise ResultsError(f"labels must be {expected}; they are {self.labels}. Correct them.")
        if {len(self.labels)} != {len(self.confusion), *map(len, self.confusion)}:
            raise ResultsError(
                f"a confusion matrix needs one row and one column for each of {len(self.labels)} labels; its rows have "
                f"{[len(row) for row in self.confusion]}. Evaluate again."
            )
        for row in self.confusion:
            for count in row:
                check_count("a count of the confusion matrix", count)

    def write(self, path: str | Path) -> None:
        """Write the scores as JSON; a reader never sees half a file."""
        write_text(path, json.dumps(asdict(self), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> DetectionScores:
        """Read what `write` wrote.

        Raises:
            ResultsError: The file is missing, is no JSON, or breaks a rule of these classes.
        """
        path = Path(path)
        value = read_json(path, what="scores", missing="Evaluate first.", broken="Evaluate again.")
        with built_from(path, what="scores of detections"):
            return build(
                cls,
                value,
                classes=lambda found: tuple(_class_scores(c) for c in found),
                overall=_class_scores,
            )

    @property
    def metrics(self) -> dict[str, float]:
        """What a row of results says: precision, recall, f1, best_f1, best_f1_threshold; nothing without objects."""
        given, best = self.overall.given, self.overall.best
        if not self.overall.objects:
            return {}
        return {
            "precision": given.precision,
            "recall": given.recall,
            "f1": given.f1,
            "best_f1": best.f1,
            "best_f1_threshold": best.threshold,
        }

    def table(self) -> str:
        """A line for each class and one for all, for a terminal; a dash where a number has no meaning."""
        heading = ["class", "objects", "precision", "recall", "F1", "best F1", "at score", "AP50"]
        rows = [_line(c) for c in self.classes]
        rows += [_line(self.overall)] if len(self.classes) != 1 else []
        about = f"IoU {self.iou:g}, score {self.threshold:g} or more; best F1: its threshold is chosen on the same data"
        about += "\nall: every object counts alike; AP50 is the mean of the classes" if len(self.classes) != 1 else ""
        aligned = ("left", *["right"] * 7)
        table = tabulate(rows, heading, tablefmt="simple", colalign=aligned, disable_numparse=True)
        return f"{table}\n({about})"


def score_detections(matches: Matches) -> DetectionScores:
    """Score detections that are matched with objects already.

    Args:
        matches: the detections of each class may come in any order; ``ap50`` may be NaN.

    Raises:
        ResultsError: A score is not finite, or numbers do not agree.
    """
    threshold, names = matches.threshold, matches.names
    known = [float(value) if math.isfinite(value) else None for value in matches.ap50]
    classes = tuple(
        _score(*numbers, threshold)
        for numbers in zip(names, matches.objects, matches.confidence, matches.hits, known, strict=True)
    )
    present = [value for value in known if value is not None]
    overall = _score(
        "all",
        sum(matches.objects),
        np.concatenate([np.empty(0), *matches.confidence]),
        np.concatenate([np.empty(0, dtype=bool), *matches.hits]),
        math.fsum(present) / len(present) if present else None,
        threshold,
    )
    counts = tuple(tuple(int(count) for count in row) for row in matches.confusion)
    return DetectionScores(matches.iou, threshold, classes, overall, (*names, BACKGROUND), counts)


def _score(
    name: str,
    objects: int,
    confidence: NDArray[np.float64],
    hits: NDArray[np.bool_],
    ap50: float | None,
    threshold: float,
) -> ClassScores:
    if not np.isfinite(confidence).all():
        raise ResultsError(f"scores must be finite; class {name!r} has others. Leave those detections out.")
    counted = confidence >= threshold
    given = Operating.counted(threshold, int(hits[counted].sum()), int(counted.sum()), objects)
    order = np.argsort(-confidence, kind="stable")
    confidence, hits = confidence[order], hits[order]
    # Detections with one score come together: a threshold cannot take one and leave the other.
    last = np.flatnonzero(np.diff(confidence, append=-np.inf))
    levels, found, detections = confidence[last], np.cumsum(hits)[last], last + 1
    f1 = 2 * found / (detections + objects)
    best = given
    if found.any():
        at = int(np.argmax(f1))
        best = Operating.counted(levels[at], int(found[at]), int(detections[at]), objects)
    kept = _kept(levels)[::-1]
    return ClassScores(
        name=name,
        objects=int(objects),
        given=given,
        best=best,
        confidence=tuple(levels[kept].tolist()),
        precision=tuple((found / detections)[kept].tolist()),
        recall=tuple((found / objects if objects else np.zeros(len(found)))[kept].tolist()),
        ap50=ap50,
    )


def _kept(levels: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which points of a curve are kept: half evenly in rank, half evenly in confidence, and both ends.

    Args:
        levels: Scores, descending, no two alike.

    Returns:
        Indices, ascending, at most POINTS of them.
    """
    if len(levels) <= POINTS:
        return np.arange(len(levels))
    ranks = np.linspace(0, len(levels) - 1, POINTS // 2).round().astype(np.intp)
    evenly = np.linspace(levels[0], levels[-1], POINTS // 2)
    near = np.clip(np.searchsorted(-levels, -evenly), 0, len(levels) - 1)
    return np.unique(np.concatenate([ranks, near]))


def _line(scores: ClassScores) -> list[str]:
    given, best = scores.given, scores.best
    detections = given.true_positives + given.false_positives
    return [
        scores.name,
        str(scores.objects),
        f"{given.precision:.3f}" if detections else "-",
        f"{given.recall:.3f}" if scores.objects else "-",
        f"{given.f1:.3f}" if scores.objects else "-",
        f"{best.f1:.3f}" if best.true_positives else "-",
        f"{best.threshold:.3f}" if best.true_positives else "-",
        f"{scores.ap50:.3f}" if scores.ap50 is not None else "-",
    ]


def _class_scores(value: Any) -> ClassScores:
    return build(ClassScores, value, given=_operating, best=_operating)


def _operating(value: Any) -> Operating:
    return build(Operating, value)
