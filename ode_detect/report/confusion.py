"""The confusion matrix: which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .plots import DPI, INK, save_figure

# A larger matrix is drawn without its numbers.
_COUNTED = 12
# And one that is larger than this without its names, which could not be read.
_NAMED = 120
_LONGEST_NAME = 18


def draw_confusion(
    confusion: Sequence[Sequence[int]],
    labels: Sequence[str],
    path: str | Path,
    *,
    title: str,
    uncounted: int | None = None,
) -> None:
    """Draw a confusion matrix: counts, coloured by the share of each row.

    Args:
        confusion: Counts, ``confusion[true][predicted]``.
        labels: Of rows and columns.
        path: Picture to write; its suffix says the format.
        title: Above the matrix.
        uncounted: Place on the diagonal that cannot be counted, if any.
    """
    counts = np.array(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    size = len(labels)
    cell = 0.75 if size <= _COUNTED else 0.13 if size <= _NAMED else 11.0 / size
    width = max(size * cell + 2.4, 4.6)
    figure = Figure(figsize=(width, width - 0.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    # A few mistakes in a row of a hundred must still be seen: the root lifts them.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    _ticks(axes, labels)
    axes.set_xlabel("Predicted", fontsize=10, color=INK)
    axes.set_ylabel("True", fontsize=10, color=INK)
    axes.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold")
    if size <= _COUNTED:
        _numbers(axes, counts, shares, uncounted)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("share of the row", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    save_figure(figure, path)


def short_name(name: str) -> str:
    """The name of a class, cut where a plot has no room for it."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    size = len(labels)
    if size <= _NAMED:
        names = [short_name(name) for name in labels]
        letters = 9 if size <= _COUNTED else 5
        level = size <= 4 or max(map(len, names)) <= 2
        axes.set_xticks(range(size), names, rotation=0 if level else 90, fontsize=letters, color=INK)
        axes.set_yticks(range(size), names, fontsize=letters, color=INK)
    axes.tick_params(length=0, colors=INK)


def _numbers(axes: Axes, counts: NDArray[np.float64], shares: NDArray[np.float64], uncounted: int | None) -> None:
    for row, column in np.ndindex(*counts.shape):
        text = "–" if row == column == uncounted else f"{int(counts[row, column])}"
        colour = "white" if shares[row, column] > 0.36 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
