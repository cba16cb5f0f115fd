"""Plots of how good a detector is: precision against recall, F1 against confidence, confusion of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ode_detect.report.confusion import draw_confusion, short_name
from ode_detect.report.plots import COLOURS, DPI, INK, Curve, save_figure, style_axes

from .scores import ClassScores, DetectionScores

PLOTS = ("precision_recall.png", "f1_confidence.png", "confusion.png")
# More classes than this are drawn in grey, but for the best and the worst.
_NAMED = 6


def plot_scores(scores: DetectionScores, folder: str | Path) -> None:
    """Draw all plots, named as in ``PLOTS``, into a folder."""
    for plot, name in zip((plot_precision_recall, plot_f1, plot_confusion), PLOTS, strict=True):
        plot(scores, Path(folder) / name)


def summary_curves(scores: DetectionScores) -> list[Curve]:
    """The curves of all classes together: precision against recall, F1 against confidence."""
    everything = scores.overall
    at = f"IoU {scores.iou:g}"
    return [
        Curve(f"Precision and recall, {at}", "Recall", "Precision", everything.recall, everything.precision),
        Curve(f"F1 and confidence, {at}", "Confidence", "F1", everything.confidence, everything.f1),
    ]


def plot_precision_recall(scores: DetectionScores, path: str | Path) -> None:
    """Plot precision against recall for each class and for all together, as measured, without interpolation.

    Args:
        scores: Of a data set.
        path: Picture to write; its suffix says the format.
    """

    def label(one: ClassScores) -> str:
        words = "mean AP50" if one is scores.overall else "AP50"
        return f"{short_name(one.name)}, {words} {one.ap50:.2f}" if one.ap50 is not None else short_name(one.name)

    figure, axes = _figure(f"Precision and recall at IoU {scores.iou:g}", "Recall", "Precision")
    _draw(axes, scores, lambda one: (one.recall, one.precision), label)
    given, best = scores.overall.given, scores.overall.best
    if scores.overall.objects and given.true_positives:
        marker: dict[str, Any] = {"color": INK, "linestyle": "", "zorder": 5}
        axes.plot([given.recall], [given.precision], marker="o", label=f"score {given.threshold:.2f}", **marker)
        axes.plot([best.recall], [best.precision], marker="D", label=f"best F1, score {best.threshold:.2f}", **marker)
    _finish(figure, axes, path)


def plot_f1(scores: DetectionScores, path: str | Path) -> None:
    """Plot F1 against the score threshold for each class and for all together.

    Args:
        scores: Of a data set.
        path: Picture to write; its suffix says the format.
    """

    def label(one: ClassScores) -> str:
        return f"{short_name(one.name)}, best {one.best.f1:.2f} at {one.best.threshold:.2f}"

    figure, axes = _figure(f"F1 and confidence at IoU {scores.iou:g}", "Score threshold", "F1")
    _draw(axes, scores, lambda one: (one.confidence, one.f1), label)
    axes.axvline(scores.threshold, color=INK, linewidth=1.0, linestyle=":", label=f"score {scores.threshold:.2f}")
    best = scores.overall.best
    if best.true_positives:
        axes.plot([best.threshold], [best.f1], color=INK, marker="D", linestyle="", zorder=5)
    _finish(figure, axes, path)


def plot_confusion(scores: DetectionScores, path: str | Path) -> None:
    """Draw the confusion matrix: counts, coloured by the share of each row.

    Args:
        scores: Of a data set.
        path: Picture to write; its suffix says the format.
    """
    title = f"Confusion, IoU {scores.iou:g}, score {scores.threshold:g} or more"
    # What is neither an object nor detected cannot be counted.
    draw_confusion(scores.confusion, scores.labels, path, title=title, uncounted=len(scores.labels) - 1)


def _figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    style_axes(axes, title, ylabel)
    axes.set_xlabel(xlabel, fontsize=10, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xticks(np.linspace(0, 1, 6))
    return figure, axes


def _draw(
    axes: Axes,
    scores: DetectionScores,
    points: Callable[[ClassScores], tuple[Sequence[float], Sequence[float]]],
    label: Callable[[ClassScores], str],
) -> None:
    """All classes, and all together in front of them; those without an object have no curve."""
    classes = [one for one in scores.classes if one.objects]
    shown = _named(classes)
    for one in classes:
        if one not in shown and len(classes) > 1:
            axes.plot(*points(one), color="#CCCCCC", linewidth=0.7, zorder=1)
    for colour, one in zip(COLOURS, shown if len(classes) > 1 else [], strict=False):
        axes.plot(*points(one), **_line(one), color=colour, linewidth=1.4, label=label(one), zorder=2)
    if scores.overall.objects:
        shared = label(classes[0]) if len(classes) == 1 else label(scores.overall)
        axes.plot(*points(scores.overall), **_line(scores.overall), color=INK, linewidth=2.4, label=shared, zorder=3)
    hidden = len(classes) - len(shown)
    if hidden:
        label_of_rest = f"{hidden} other classes\n(named: best and worst by AP50)"
        axes.plot([], [], color="#CCCCCC", linewidth=0.7, label=label_of_rest)


def _line(one: ClassScores) -> dict[str, Any]:
    """A curve of one point is a point."""
    return {"marker": "o"} if len(one.confidence) == 1 else {}


def _named(classes: Sequence[ClassScores]) -> list[ClassScores]:
    """The classes that get a colour: all if they are few, else the best and the worst by AP50."""
    if len(classes) <= _NAMED:
        return list(classes)
    ordered = sorted(classes, key=lambda one: -(one.ap50 or 0.0))
    return [*ordered[: _NAMED // 2], *ordered[-_NAMED // 2 :]]


def _finish(figure: Figure, axes: Axes, path: str | Path) -> None:
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    save_figure(figure, path)
