"""Plots with several networks in one set of axes, small enough to be read on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .plots import COLOURS, DPI, MetricsError, save_figure, smooth

_INK = "#222222"
# Beside colours, so that lines stay apart in print.
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))


@dataclass(frozen=True)
class Line:
    """One run of one network in a plot.

    Attributes:
        network: lines of one network share colour, dashes and entry in the legend.
        x: shape (N,).
        y: shape (N,); what is not finite is left out.
    """

    network: str
    x: Sequence[float] | NDArray[np.generic]
    y: Sequence[float] | NDArray[np.generic]


def plot_lines(
    lines: Sequence[Line],
    path: str | Path,
    *,
    xlabel: str,
    ylabel: str,
    networks: Sequence[str],
    smoothed: bool = False,
    unit_square: bool = False,
) -> None:
    """Plot lines of several networks.

    Args:
        lines: one for each run; further seeds of a network are drawn thinner.
        path: picture to write; its suffix says the format.
        xlabel: what x is.
        ylabel: what y is.
        networks: all networks of the page in its order, so that each has one colour in all plots.
        smoothed: draw means over a window of a tenth of the records.
        unit_square: both axes are fractions.

    Raises:
        MetricsError: no line holds a finite value.
    """
    figure = Figure(figsize=(4.6, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    drawn: list[str] = []
    for line in lines:
        x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
        finite = np.isfinite(y)
        if not finite.any():
            continue
        x, y = x[finite], y[finite]
        if smoothed:
            y = smooth(y, max(len(y) // 10, 1) // 2 * 2 + 1)
        place = networks.index(line.network)
        first = line.network not in drawn
        drawn.append(line.network)
        axes.plot(
            x,
            y,
            color=COLOURS[place % len(COLOURS)],
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.8 if first else 1.0,
            alpha=1.0 if first else 0.55,
            marker="o" if len(y) <= 12 else None,
            markersize=3.5,
            label=line.network if first else None,
        )
    if not drawn:
        raise MetricsError(
            f"a plot of {ylabel} needs at least one finite value; there is none. Train or evaluate first."
        )
    _style(figure, xlabel, ylabel, unit_square)
    save_figure(figure, path)


def _style(figure: Figure, xlabel: str, ylabel: str, unit_square: bool) -> None:
    axes = figure.axes[0]
    axes.set_xlabel(xlabel, fontsize=11, color=_INK)
    axes.set_ylabel(ylabel, fontsize=11, color=_INK)
    axes.tick_params(colors=_INK, labelsize=10, length=3)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=not unit_square))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    if unit_square:
        axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    columns = 1 if max((len(text) for text in axes.get_legend_handles_labels()[1]), default=0) > 28 else 2
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, fontsize=10
    )
