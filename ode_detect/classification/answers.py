"""What a classifier said about each picture of a data set, so that it can be drawn without asking again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ode_detect.media.files import write_text
from ode_detect.report.rows import ResultsError, built_from, check_fraction, check_types, read_json

from .drawing import Classified

_DIGITS = 6


@dataclass(frozen=True)
class Answers:
    """One entry for each picture, in the order of the data set.

    Attributes:
        names: The classes.
        labels: The true class of each picture, an index.
        classes: The most likely classes of each, most likely first.
        probabilities: Of them, in [0, 1].
        far: Whether each is unlike the training pictures; () if that is unknown.

    Raises:
        ResultsError: Lengths differ, a class has no name, or a probability is out of range.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]
    probabilities: tuple[tuple[float, ...], ...]
    far: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, "answers", **dict.fromkeys(("names", "labels", "classes", "probabilities", "far"), Sequence))
        for name in ("classes", "probabilities"):
            object.__setattr__(self, name, tuple(tuple(row) for row in getattr(self, name)))
        lengths = {len(self.labels), len(self.classes), len(self.probabilities), len(self.far) or len(self.labels)}
        if len(lengths) > 1 or any(len(c) != len(p) for c, p in zip(self.classes, self.probabilities, strict=False)):
            raise ResultsError("each picture needs its label, classes and their probabilities. Evaluate again.")
        indices = {*self.labels, *(index for classes in self.classes for index in classes)}
        if not indices <= set(range(len(self.names))) or not all(self.classes):
            raise ResultsError(
                f"labels and classes must be indices of {len(self.names)} names, and each picture needs a class; found "
                f"{sorted(indices - set(range(len(self.names))))[:3]}. Evaluate again."
            )
        # There may be a quarter of a million: only those out of range are reported.
        for probability in (p for row in self.probabilities for p in row if not 0 <= p <= 1):
            check_fraction("a probability", probability)

    def write(self, path: str | Path) -> None:
        """Write them as JSON: the names, and for each picture label, classes, probabilities, and whether it is far."""
        rounded = [[round(p, _DIGITS) for p in row] for row in self.probabilities]
        columns = [self.labels, self.classes, rounded, *([self.far] if self.far else [])]
        value = {"names": self.names, "pictures": list(zip(*columns, strict=True))}
        write_text(path, json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Answers:
        """Read what `write` wrote.

        Raises:
            ResultsError: The file is missing, is no JSON, or breaks a rule of this class.
        """
        path = Path(path)
        value = read_json(path, what="predictions", missing="Evaluate first.", broken="Evaluate again.")
        with built_from(path, what="predictions of classes"):
            columns = [tuple(column) for column in zip(*value["pictures"], strict=True)] or [(), (), ()]
            return cls(tuple(value["names"]), *columns)

    def chosen(self, count: int) -> tuple[list[int], list[int]]:
        """Which pictures show best what a classifier does.

        Args:
            count: How many at most.

        Returns:
            Some that are evenly spread over the data set, which often lies class by class, and, at most as many, those
            of the others that are wrong with the highest confidence, the most confident first.
        """
        size = len(self.labels)
        spread = np.linspace(0, size - 1, min(-(-count // 2), size)).round().astype(int).tolist()
        others = set(range(size)) - set(spread)
        wrong = [i for i in sorted(others) if self.classes[i][0] != self.labels[i]]
        wrong.sort(key=lambda i: -self.probabilities[i][0])
        return spread, wrong[: count // 2]

    def classified(self, index: int, image: NDArray[np.uint8], name: str = "") -> Classified:
        """A picture of the data set with what was said about it.

        Args:
            index: Of the picture.
            image: RGB, uint8, shape (H, W, 3).
            name: Of the picture.
        """
        return Classified(
            image,
            labels=[self.names[i] for i in self.classes[index]],
            probabilities=self.probabilities[index],
            truth=self.names[self.labels[index]],
            far=bool(self.far) and self.far[index],
            name=name,
        )
