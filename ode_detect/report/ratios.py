"""Plots of what benchmarks measured: panels of points, and bars of ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from .plots import COLOURS, DPI, INK, MetricsError, line_colours, save_figure, style_axes
from .rows import Comparison


@dataclass(frozen=True)
class Panel:
    """One set of axes with several curves.

    Attributes:
        title: Above it.
        ylabel: What the curves show.
        curves: Points (x, y) of each curve, by its name; the same name has the same colour in every panel.
        logarithmic: Whether y is drawn on a logarithmic scale.
    """

    title: str
    ylabel: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    logarithmic: bool = False


def plot_panels(panels: Sequence[Panel], xlabel: str, path: str | Path) -> None:
    """Plot panels two in a row, over one x axis (logarithmic, base 2, with a tick at each point) and with one legend.

    Args:
        panels: Row by row.
        xlabel: What x is.
        path: Picture to write; its suffix says the format.

    Raises:
        MetricsError: There is no curve.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    if not names:
        raise MetricsError("a plot of panels needs at least one curve; there is none. Measure something first.")
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.3 * rows + 0.5), dpi=DPI, layout="constrained")
    colours = dict(zip(names, line_colours(names), strict=True))
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        for name, points in panel.curves.items():
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, color=colours[name], linewidth=1.8, marker="o", markersize=3.5, label=name)
        style_axes(axes, panel.title, panel.ylabel)
        axes.set_xlabel(xlabel, fontsize=10, color=INK)
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in panel.curves.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        if panel.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter(minor_thresholds=(1.5, 0.7)))
        else:
            axes.set_ylim(bottom=0)
    handles = {h.get_label(): h for axes in figure.axes for h in axes.get_lines()}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    save_figure(figure, path)


def plot_ratios(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Plot ratios with their quartiles, one below the other, and the aim of each as a bar; below it is met.

    Args:
        comparisons: In the order in which they are drawn, from above.
        path: Picture to write; its suffix says the format.

    Raises:
        MetricsError: There is no comparison.
    """
    if not comparisons:
        raise MetricsError("a plot of ratios needs at least one comparison; there is none. Measure something first.")
    colours = {True: COLOURS[2], False: COLOURS[1], None: COLOURS[0]}
    words = {True: "aim met", False: "aim missed", None: "no aim"}
    figure = Figure(figsize=(9.0, 0.33 * len(comparisons) + 1.3), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for place, c in enumerate(comparisons):
        axes.plot([c.low, c.high], [place, place], color=colours[c.met], linewidth=1.5)
        axes.plot([c.ratio], [place], color=colours[c.met], marker="o", markersize=5, linestyle="", label=words[c.met])
        if c.aim is not None:
            axes.plot([c.aim, c.aim], [place - 0.35, place + 0.35], color=INK, linewidth=1.5)
    style_axes(axes, "", "")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_xlabel("Ratio of times: median, quartiles; bar: aim", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    labels = [f"{c.case}:\n{' / '.join(c.sides)}" for c in comparisons]
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    legend = {line.get_label(): line for line in axes.get_lines() if line.get_label() in words.values()}
    names = list(map(str, legend))
    figure.legend(list(legend.values()), names, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)
