"""Plots: curves of a training run, from the ``metrics.json`` that Detectron2 writes, and what benchmarks measured."""

from __future__ import annotations

import functools
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator
from numpy.typing import NDArray

from .metrics import quantity

logger = logging.getLogger("ode_detect.report")
_NO_GLYPH = r"Glyph \d+ .* missing from"

# Okabe and Ito's palette: these colours stay apart for colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK = "#333333"
DPI = 150


class MetricsError(ValueError):
    """A file of metrics that cannot be read, or that holds nothing to plot."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read Detectron2's ``metrics.json``: one JSON object per line.

    A run that was killed may have cut its last line. A run that was resumed then wrote on behind the cut. Neither is an
    error: the cut record is left out.

    Raises:
        MetricsError: The file is missing, or a line is broken in another way.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise MetricsError(f"metrics are read from a file; {path}: {error.strerror}. Check the path.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse(line)
        if record is None:
            record = _parse(line[line.rfind("{") :]) if line.rfind("{") > 0 else None
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise MetricsError(
                f"every line of {path} must be a JSON object; line {number} is {line[:60]!r}. Remove that line."
            )
    return records


def series(metrics: Iterable[Mapping[str, Any]], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Take one quantity out of the records.

    After a resume an iteration can occur twice; the last record counts.

    Returns:
        Iterations, ascending, and values, both of shape (N,). Values may be NaN or infinite.
    """
    values = {int(m["iteration"]): float(m[name]) for m in metrics if "iteration" in m and _is_number(m.get(name))}
    iterations = sorted(values)
    return np.array(iterations, dtype=np.int64), np.array([values[i] for i in iterations], dtype=np.float64)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Average over a centred window of ``window`` records, shorter at both ends; what is not finite is left out.

    Args:
        values: Shape (N,).
        window: Odd number of records.

    Returns:
        Shape (N,); NaN where the whole window holds nothing finite.
    """
    finite = np.isfinite(values)
    kernel = np.ones(window)
    half = window // 2
    total = np.convolve(np.where(finite, values, 0.0), kernel)[half : half + len(values)]
    count = np.convolve(finite.astype(np.float64), kernel)[half : half + len(values)]
    average = np.full(len(values), np.nan)
    np.divide(total, count, out=average, where=count > 0.5)
    return average


def plot_losses(metrics: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot the total loss and its parts against the iteration: as recorded (faint) and smoothed.

    Args:
        metrics: Records with ``iteration``, ``total_loss`` and parts named ``loss_...``, see ``read_metrics``.
        path: Picture to write; its suffix says the format (png, svg, pdf).

    Raises:
        MetricsError: No record holds a loss.
    """
    names = dict.fromkeys(name for record in metrics for name in record)
    parts = [name for name in names if name.startswith("loss_")]
    curves = {name: series(metrics, name) for name in (["total_loss"] if "total_loss" in names else []) + parts}
    if not curves:
        raise MetricsError(
            "a plot of losses needs records with total_loss or loss_...; there is none. Train some iterations."
        )
    longest = max(len(values) for _, values in curves.values())
    window = max(longest // 20, 1) // 2 * 2 + 1
    groups = [group for group in (["total_loss"] if "total_loss" in curves else [], parts) if group]
    figure = Figure(figsize=(5.2 * len(groups) + 0.3, 3.7), dpi=DPI, layout="constrained")
    for column, group in enumerate(groups):
        axes = figure.add_subplot(1, len(groups), column + 1)
        for colour, name in zip(line_colours(group, black=group == ["total_loss"]), group, strict=True):
            _curve(axes, *curves[name], window, name, colour)
        total = group == ["total_loss"]
        style_axes(axes, "Total loss" if total else "Parts of the loss", "Loss")
        axes.set_ylim(*_loss_limits([curves[name][1] for name in group], window))
        if not total:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    notes = [f"bold: mean of {window} records"] if window > 1 else []
    lost = sum(int((~np.isfinite(values)).sum()) for _, values in curves.values())
    notes += [f"values left out because they are not finite: {lost}"] if lost else []
    if notes:
        figure.supxlabel("; ".join(notes), fontsize=8, color="#666666", x=0.99, ha="right")
    save_figure(figure, path)


def plot_metric(metrics: Sequence[Mapping[str, Any]], names: Sequence[str], path: str | Path) -> None:
    """Plot metrics of the evaluations during training in percent, for example ``bbox/AP`` and ``bbox/AP50``.

    Args:
        metrics: Records with ``iteration`` and the named values as the evaluators write them.
        names: The metrics, one curve each.
        path: Picture to write; its suffix says the format.

    Raises:
        MetricsError: No record holds a finite value of any of the metrics.
    """
    curves = {}
    for name in names:
        iterations, values = series(metrics, name)
        if np.isfinite(values).any():
            curves[name] = iterations, values
    if not curves:
        known = sorted({name for record in metrics for name in record if "/" in name})
        raise MetricsError(
            f"a plot of {', '.join(names)} needs records that hold it; there are "
            f"{', '.join(known) or 'no evaluations'}. Set TEST.EVAL_PERIOD, or choose another name."
        )
    # What is wrong is seen on a logarithmic scale, what is right on a linear one.
    groups = [[name for name in curves if _is_error(name) == errors] for errors in (False, True)]
    figure = Figure(figsize=(5.2 * sum(map(bool, groups)) + 0.3, 3.7), dpi=DPI, layout="constrained")
    groups = [group for group in groups if group]
    for column, group in enumerate(groups, start=1):
        _evaluations(figure.add_subplot(1, len(groups), column), {name: curves[name] for name in group})
    save_figure(figure, path)


def _evaluations(axes: Axes, curves: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]) -> None:
    """Metrics in percent, each with its last value."""
    highest = 0.0
    for colour, (name, (iterations, values)) in zip(line_colours(list(curves)), curves.items(), strict=True):
        finite = np.isfinite(values)
        metric = name.rpartition("/")[2]
        x, y = iterations[finite], values[finite] * (1.0 if _in_percent(name) else quantity(metric).factor)
        label = f"{metric}, last {y[-1]:.{quantity(metric).digits}f}"
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
        highest = max(highest, float(y.max()))
    heads = {name.rpartition("/")[0] for name in curves}
    style_axes(axes, "Evaluation" + (f" ({heads.pop()})" if len(heads) == 1 and "" not in heads else ""), "Metric (%)")
    axes.set_ylim(0, min(max(highest * 1.15, 1.0), 100))
    errors = all(map(_is_error, curves))
    if errors and highest > 0:
        axes.set_yscale("log")
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter(minor_thresholds=(1.5, 0.7)))
        axes.autoscale(axis="y")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right" if errors else "lower right")


def _is_error(name: str) -> bool:
    return name.rpartition("/")[2] == "error"


def _in_percent(name: str) -> bool:
    """Whether an evaluator writes a metric in percent, as Detectron2's do; ours write fractions."""
    return name.partition("/")[0] in ("bbox", "segm", "keypoints")


@dataclass(frozen=True)
class Curve:
    """A curve that pages of several runs draw into one set of axes.

    Attributes:
        title: Above the axes; curves of one title come into the same.
        xlabel: What x is.
        ylabel: What y is.
        x: Shape (N,).
        y: Shape (N,).

    Raises:
        ValueError: x and y differ in length.
    """

    title: str
    xlabel: str
    ylabel: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the lengths."""
        if len(self.x) != len(self.y):
            raise ValueError(f"a curve needs as many x as y; {self.title!r} has {len(self.x)} and {len(self.y)}.")


def _curve(axes: Axes, x: NDArray[np.int64], y: NDArray[np.float64], window: int, label: str, colour: str) -> None:
    y = np.where(np.isfinite(y), y, np.nan)
    if window > 1:
        axes.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
    axes.plot(x, smooth(y, window), color=colour, linewidth=1.8, label=label, marker="o" if len(x) == 1 else None)


def _loss_limits(values: Sequence[NDArray[np.float64]], window: int) -> tuple[float, float]:
    """Show every smoothed value and nearly all raw ones: a single spike must not flatten the curve."""
    finite = [v[np.isfinite(v)] for v in values]
    raw = np.concatenate(finite)
    if not len(raw):
        return 0.0, 1.0
    smoothed = np.concatenate([smooth(v, window) for v in finite])
    return min(0.0, 1.05 * float(smoothed.min())), 1.05 * max(
        float(np.quantile(raw, 0.99)), float(smoothed.max()), 1e-9
    )


def line_colours(names: Sequence[str], *, black: bool = False) -> list[str]:
    """A colour for each line, in the order of `COLOURS`; all are `INK` if black."""
    return [INK] if black else [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def style_axes(axes: Axes, title: str, ylabel: str) -> None:
    """Give axes the looks of all our plots; x is the iteration unless it is set afterwards."""
    axes.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold")
    axes.set_xlabel("Iteration", fontsize=10, color=INK)
    axes.set_ylabel(ylabel, fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure without pyplot, so that a user's backend and open figures are not touched.

    Dollars are dollars: in the names of classes, networks and data sets, matplotlib would read formulas.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
    with letters_apart():
        figure.savefig(path, facecolor="white")


@contextmanager
def letters_apart() -> Iterator[None]:
    """Log once that the font lacks letters of a name, where matplotlib warns of each one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=_NO_GLYPH)
        yield
    for warning in caught:
        if re.match(_NO_GLYPH, str(warning.message)):
            _say_letters_missing()
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@functools.cache
def _say_letters_missing() -> None:
    logger.warning(
        "the font of the plots lacks letters of some names, and boxes stand in their place; set font.family in your "
        "matplotlibrc to a font that has them."
    )


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
