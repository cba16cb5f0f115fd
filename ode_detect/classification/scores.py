"""How good a classifier is: class by class, what it takes for what, and how far its confidence can be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tabulate import tabulate

from ode_detect.media.files import write_text
from ode_detect.report.confusion import draw_confusion
from ode_detect.report.metrics import quantity
from ode_detect.report.plots import COLOURS, DPI, INK, Curve, save_figure, style_axes
from ode_detect.report.rows import ResultsError, build, built_from, check_count, check_fraction, check_types, read_json

PLOTS = ("confusion.png", "reliability.png")
# Of more classes than these a table shows the worst and the best.
_LISTED, _WORST, _BEST = 20, 10, 5


@dataclass(frozen=True)
class ClassFigures:
    """One class.

    Attributes:
        name: Of the class.
        pictures: How many there are of it.
        predicted: How many were taken for it.
        precision: Share of those taken for it that are of it, in [0, 1]; 0 where none was.
        recall: Share of its pictures that were taken for it; 0 where it has none.
        f1: Their harmonic mean, 2 TP / (2 TP + FP + FN); 0 where nothing is right.
        taken_for: The class that its pictures are most often wrongly taken for, and how often; None if never.
    """

    name: str
    pictures: int
    predicted: int
    precision: float
    recall: float
    f1: float
    taken_for: tuple[str, int] | None


@dataclass(frozen=True)
class ClassificationScores:
    """All classes of a data set.

    Attributes:
        names: The classes.
        confusion: Counts, ``confusion[true][predicted]``.
        metrics: Of all pictures: fractions by the field's names, and ``nll``.
        reliability: For equal bins of confidence the mean confidence, the share that is right, and the number of
            pictures; both shares are 0 in an empty bin.

    Raises:
        ResultsError: The matrix does not have the size of the classes, or a number is out of range.
    """

    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, float]
    reliability: tuple[tuple[float, float, int], ...]

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, "scores", names=Sequence, confusion=Sequence, metrics=Mapping, reliability=Sequence)
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "confusion", tuple(tuple(row) for row in self.confusion))
        object.__setattr__(self, "reliability", tuple(tuple(one) for one in self.reliability))
        if {len(self.names)} != {len(self.confusion), *map(len, self.confusion)}:
            raise ResultsError(
                f"a confusion matrix needs one row and one column for each of {len(self.names)} classes; its rows have "
                f"{[len(row) for row in self.confusion]}. Evaluate again."
            )
        for row in self.confusion:
            for count in row:
                check_count("a count of the confusion matrix", count)
        for confidence, accuracy, count in self.reliability:
            check_fraction("a mean confidence", confidence)
            check_fraction("the accuracy at a confidence", accuracy)
            check_count("the pictures of a confidence", count)

    def write(self, path: str | Path) -> None:
        """Write the scores as JSON; a reader never sees half a file."""
        write_text(path, json.dumps(asdict(self), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> ClassificationScores:
        """Read what `write` wrote.

        Raises:
            ResultsError: The file is missing, is no JSON, or breaks a rule of this class.
        """
        path = Path(path)
        value = read_json(path, what="scores", missing="Evaluate first.", broken="Evaluate again.")
        with built_from(path, what="scores of classes"):
            return build(cls, value)

    @property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Each class by itself."""
        counts = np.array(self.confusion, dtype=np.int64).reshape(len(self.names), -1)
        hits, pictures, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        wrong = counts - np.diag(hits)
        return tuple(
            ClassFigures(
                name=name,
                pictures=int(pictures[i]),
                predicted=int(predicted[i]),
                precision=float(hits[i] / max(predicted[i], 1)),
                recall=float(hits[i] / max(pictures[i], 1)),
                f1=float(2 * hits[i] / max(pictures[i] + predicted[i], 1)),
                taken_for=(self.names[wrong[i].argmax()], int(wrong[i].max())) if wrong[i].any() else None,
            )
            for i, name in enumerate(self.names)
        )

    def table(self) -> str:
        """A line for each class and one for all, for a terminal; a dash where a number has no meaning.

        Of more than 20 classes the worst ten and the best five by F1.
        """
        rows = [_line(one) for one in self.classes]
        about = ["all: means over the classes"]
        if len(rows) > _LISTED:
            ordered = [_line(one) for one in sorted(self.classes, key=lambda one: one.f1)]
            hidden = len(rows) - _WORST - _BEST
            rows = [*ordered[:_WORST], [f"({hidden} others)"], *ordered[-_BEST:]]
            about.append(f"of {len(self.names)} classes the {_WORST} worst and the {_BEST} best by F1, worst first")
        total = sum(map(sum, self.confusion))
        means = [f"{self.metrics[name]:.3f}" if name in self.metrics else "-" for name in ("precision", "recall", "f1")]
        rows.append(["all", str(total), *means])
        columns = ["class", "pictures", "precision", "recall", "F1", "most often taken for"]
        table = tabulate(
            [[*row, *[""] * (len(columns) - len(row))] for row in rows],
            columns,
            tablefmt="simple",
            colalign=("left", *["right"] * 4, "left"),
            disable_numparse=True,
        )
        overall = [name for name in self.metrics if name not in ("precision", "recall", "f1")]
        words = ", ".join(_in_words(name, self.metrics[name]) for name in overall)
        return f"{table}\n({'; '.join(about)})\n{words}"


def plot_scores(scores: ClassificationScores, folder: str | Path) -> None:
    """Draw all plots, named as in ``PLOTS``, into a folder."""
    confusion, reliability = (Path(folder) / name for name in PLOTS)
    right = sum(row[i] for i, row in enumerate(scores.confusion))
    title = f"Confusion, {right:,} of {sum(map(sum, scores.confusion)):,} right"
    draw_confusion(scores.confusion, scores.names, confusion, title=title)
    plot_reliability(scores, reliability)


def curves(scores: ClassificationScores) -> list[Curve]:
    """The curve that pages of several runs lay over one another: the share that is right against the confidence."""
    shown = [(confidence, accuracy) for confidence, accuracy, count in scores.reliability if count]
    x, y = zip(*shown, strict=True) if shown else ((), ())
    return [Curve("Reliability", "Confidence", "Share that is right", x, y)]


def plot_reliability(scores: ClassificationScores, path: str | Path) -> None:
    """Plot the share that is right against the confidence, and how many pictures have it.

    Args:
        scores: Of a data set.
        path: Picture to write; its suffix says the format.
    """
    figure = Figure(figsize=(5.2, 5.6), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(scores.reliability)
    left = np.arange(bins) / max(bins, 1)
    confidence, accuracy, counts = np.array(scores.reliability, dtype=np.float64).reshape(bins, 3).T
    filled, width = counts > 0, 1 / max(bins, 1)
    bars = {"width": width, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    upper.bar(left[filled], accuracy[filled], color="#8FBCDB", label="share that is right", **bars)
    upper.plot(confidence[filled], accuracy[filled], color=COLOURS[0], marker="o", markersize=4, linewidth=1.4)
    upper.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, label="as right as confident")
    ece = f": ECE {100 * scores.metrics['ece']:.2f} %" if "ece" in scores.metrics else ""
    style_axes(upper, f"Reliability{ece}", "Share that is right")
    style_axes(lower, "", "Pictures")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="")
    lower.bar(left[filled], counts[filled], color="#BBBBBB", **bars)
    # Most pictures lie in the last bin: the others would be invisible next to it.
    lower.set_yscale("log")
    lower.yaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())
    lower.set_ylim(0.7, max(2 * counts.max(initial=1), 10))
    lower.set_xlabel("Confidence", fontsize=10, color=INK)
    lower.set_xticks(np.linspace(0, 1, 6))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def _line(one: ClassFigures) -> list[str]:
    return [
        one.name,
        str(one.pictures),
        f"{one.precision:.3f}" if one.predicted else "-",
        f"{one.recall:.3f}" if one.pictures else "-",
        f"{one.f1:.3f}" if one.pictures else "-",
        f"{one.taken_for[0]} ({one.taken_for[1]})" if one.taken_for else "-",
    ]


def _in_words(name: str, value: float) -> str:
    shown = quantity(name)
    number = f"{shown.factor * value:.{shown.digits}f}"
    return f"{shown.heading.removesuffix(' (%)')} {number}" + (" %" if shown.is_fraction else "")
