"""The plot of a dial: quality against evaluations and milliseconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .metrics import quantity
from .plots import DPI, INK, MetricsError, line_colours, save_figure, style_axes
from .rows import Row


def pareto_front(costs: Sequence[float], values: Sequence[float], *, better: str = "max") -> list[int]:
    """Which points no other point beats: none costs as little and is better, none is as good and costs less.

    Args:
        costs: Less is better.
        values: More is better, or less if ``better`` is "min".
        better: "max" or "min".

    Returns:
        Indices of the points, by ascending cost.
    """
    sign = 1.0 if better == "max" else -1.0
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -sign * values[i])):
        if not front or sign * values[index] > sign * values[front[-1]]:
            front.append(index)
    return front


def plot_dial(rows: Sequence[Row], metric: str, path: str | Path, *, full: Sequence[str], better: str = "max") -> None:
    """Plot quality against evaluations, and against milliseconds if all rows have them, with the Pareto front of each.

    Args:
        rows: One for each setting, named by it ("euler_2", "rk4_1-2-2", "dial_euler_2"), with ``evaluations``.
        metric: Which metric; a fraction is shown in percent.
        path: Picture to write; its suffix says the format.
        full: The rows that are marked: the settings of the configs.
        better: "max" or "min".

    Raises:
        MetricsError: No row holds the metric and the evaluations.
    """
    costs = {"evaluations": "Evaluations of the fields", "latency_ms": "Milliseconds for one picture"}
    shown = [row for row in rows if metric in row.metrics and "evaluations" in row.cost]
    if not shown:
        raise MetricsError(
            f"a plot of the dial needs rows with {metric} and evaluations; there is none. Evaluate first."
        )
    costs = {cost: words for cost, words in costs.items() if all(cost in row.cost for row in shown)}
    factor = quantity(metric).factor
    values = [factor * row.metrics[metric] for row in shown]
    figure = Figure(figsize=(10.7 if len(costs) > 1 else 8.0, 4.2), dpi=DPI, layout="constrained")
    for column, (cost, words) in enumerate(costs.items(), start=1):
        axes = figure.add_subplot(1, len(costs), column)
        _settings(axes, shown, [row.cost[cost] for row in shown], values, full, better)
        style_axes(axes, f"{metric} against {cost.removesuffix('_ms')}", f"{metric} (%)" if factor > 1 else metric)
        axes.set_xlabel(words, fontsize=10, color=INK)
        if factor > 1:
            _at_least(axes, 2.0)
        if column == 1:
            figure.legend(
                *axes.get_legend_handles_labels(),
                loc="outside right upper",
                frameon=False,
                fontsize=8,
                labelcolor=INK,
            )
    save_figure(figure, path)


def _at_least(axes: Axes, span: float) -> None:
    """Widen the axis of values to a span, lest differences of nothing fill the picture."""
    low, high = axes.get_ylim()
    missing = max(span - (high - low), 0.0)
    axes.set_ylim(low - missing / 2, high + missing / 2)


def _settings(
    axes: Axes, rows: Sequence[Row], x: Sequence[float], y: Sequence[float], full: Sequence[str], better: str
) -> None:
    """Points by method, joined, each with its steps; and the front as stairs."""
    front = pareto_front(x, y, better=better)
    axes.step([x[i] for i in front], [y[i] for i in front], where="post", color="#999999", linewidth=1.2, zorder=1)
    methods = [_method(row.name) for row in rows]
    for colour, method in zip(line_colours(list(dict.fromkeys(methods))), dict.fromkeys(methods), strict=True):
        mine = sorted((i for i, m in enumerate(methods) if m == method), key=lambda i: x[i])
        points = [x[i] for i in mine], [y[i] for i in mine]
        axes.plot(*points, color=colour, linewidth=0.8, alpha=0.5, zorder=1)
        axes.scatter(*points, s=26, color=colour, label=method, zorder=2)
        for i in mine:
            steps = rows[i].name.removeprefix(method).lstrip("_")
            axes.annotate(
                steps, (x[i], y[i]), (0, -10), textcoords="offset points", ha="center", fontsize=6, color=colour
            )
    marked = [i for i, row in enumerate(rows) if row.name in full]
    if marked:
        label = f"full steps ({rows[marked[0]].name})" if len(marked) == 1 else "full steps"
        ring = axes.scatter([x[i] for i in marked], [y[i] for i in marked], s=110, label=label, zorder=3)
        ring.set(facecolors="none", edgecolors=INK, linewidths=1.2)
    axes.plot([], [], color="#999999", linewidth=1.2, label="Pareto front")
    axes.margins(x=0.12, y=0.15)


def _method(name: str) -> str:
    """The method of "euler_2", "euler_1-2-2" and "dopri5"; "mixed" where flows differ in it."""
    uniform = re.fullmatch(r"(\w+?)_[\d-]+", name)
    return uniform[1] if uniform else "mixed" if "-" in name else name
