"""What is in a data set, as numbers in text, a plot, and a sheet of annotated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from numpy.typing import NDArray

from ode_detect.detection.drawing import draw_boxes
from ode_detect.report.canvas import PictureError
from ode_detect.report.plots import COLOURS, letters_apart, save_figure

from .check import Sample

_INK, _GREY, _ANCHOR, _IGNORED = "#333333", "#B8C4CE", "#D55E00", "#AAAAAA"
_TICKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_SHOWN_CLASSES = 30


def size_table(boxes: NDArray[np.float64], anchors: NDArray[np.float64]) -> str:
    """The histogram of box sizes (square root of the area) in octaves as text, with the anchors of each octave.

    Args:
        boxes: width and height of each box, shape (N, 2).
        anchors: those of the anchors, shape (M, 2).
    """
    sizes, of_anchors = np.sqrt(boxes.prod(axis=1)), np.sqrt(anchors.prod(axis=1))
    if not len(sizes):
        return "  no boxes"
    everything = np.concatenate([sizes, of_anchors])
    first, last = (int(np.floor(np.log2(max(v, 0.5)))) for v in (everything.min(), everything.max()))
    edges = 2.0 ** np.arange(first, last + 2)
    counts = np.histogram(np.maximum(sizes, 0.5), edges)[0]
    lines = []
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        inside = sorted({round(float(a), 1) for a in of_anchors if low <= a < high})
        bar = "#" * round(32 * count / counts.max()) if counts.max() else ""
        anchored = f"  anchors {', '.join(f'{a:g}' for a in inside)}" if inside else ""
        lines.append(f"  {low:>6g} to {high:<6g} {count:>8}  {bar:<32}{anchored}".rstrip())
    return "\n".join(lines)


def class_table(classes: Mapping[str, int]) -> str:
    """The histogram of classes as text, most frequent first."""
    most, width = max([1, *classes.values()]), max([5, *map(len, classes)])
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    return "\n".join(
        f"  {name:<{width}} {count:>8}  {'#' * round(32 * count / most)}".rstrip() for name, count in ordered
    )


def plot_dataset(
    name: str,
    classes: Mapping[str, int],
    boxes: NDArray[np.float64],
    anchors: NDArray[np.float64],
    path: str | Path,
    *,
    unit: str,
) -> None:
    """Plot how many objects each class has, and how large they are compared with the anchors.

    Args:
        name: the data set, for the title.
        classes: objects of each class.
        boxes: width and height of each object, above 0, shape (N, 2).
        anchors: width and height of each anchor, shape (M, 2); M is 0 if there are none to be shown.
        path: picture to write; its suffix says the format.
        unit: of the sizes: "pixels of the network's input".
    """
    shown = sorted(classes.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
    figure = Figure(figsize=(14.5, max(4.2, 1.2 + 0.24 * len(shown))), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 1))
    _bars(left, shown, len(classes))
    if len(boxes):
        _histogram(middle, boxes, anchors, unit)
        _shapes(right, boxes, anchors, unit)
    figure.suptitle(f"{name}: {sum(classes.values())} objects", x=0.01, ha="left", fontsize=13, fontweight="bold")
    save_figure(figure, path)


def sample_sheet(samples: Sequence[Sample], path: str | Path, *, title: str, columns: int = 3) -> None:
    """Write a sheet of pictures with their annotations; ignored boxes are grey.

    Args:
        samples: row by row.
        path: picture to write; its suffix says the format.
        title: above the sheet.
        columns: pictures in a row.

    Raises:
        PictureError: there is no picture, or the file cannot be written in this format.
    """
    if not samples:
        raise PictureError("a sheet needs at least one picture; there is none. Draw one or more.")
    cell, gap, caption, head = 600, 14, 26, 74
    labels = sorted({label for sample in samples for label in sample.labels})
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    drawn = [_draw(sample, cell, colours) for sample in samples]
    columns = min(columns, len(drawn))
    heights = [max(p.shape[0] for p in drawn[i : i + columns]) for i in range(0, len(drawn), columns)]
    width = max(columns * (cell + gap) + gap, 640)
    height = head + sum(h + caption + gap for h in heights)
    figure = Figure(figsize=((width + 0.01) / 100, (height + 0.01) / 100), dpi=100, facecolor="white")
    figure.text(gap / width, 1 - 30 / height, title, fontsize=15, fontweight="bold", color=_INK, parse_math=False)
    x = float(gap)
    for label in labels[: len(COLOURS)] if len(labels) <= len(COLOURS) else []:
        figure.text(x / width, 1 - 58 / height, "■", fontsize=12, color=colours[label])
        x += 20
        text = figure.text(x / width, 1 - 58 / height, label, fontsize=12, color=_INK, parse_math=False)
        x += text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width + 18
    if any(any(sample.ignored) for sample in samples):
        figure.text(x / width, 1 - 58 / height, "■", fontsize=12, color=_IGNORED)
        figure.text((x + 20) / width, 1 - 58 / height, "ignored (crowd, difficult)", fontsize=12, color=_INK)
    y = float(head)
    for i, (sample, pixels) in enumerate(zip(samples, drawn, strict=True)):
        column, row = i % columns, i // columns
        left, top = gap + column * (cell + gap), y + caption
        words = f"{sample.name}   {len(sample.boxes)} boxes"
        figure.text(left / width, 1 - (top - 8) / height, words, fontsize=11, color=_INK, parse_math=False)
        figure.figimage(pixels, left, height - top - pixels.shape[0], origin="upper")
        y += heights[row] + caption + gap if column == columns - 1 else 0
    canvas = FigureCanvasAgg(figure)
    with letters_apart():
        canvas.draw()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(np.asarray(canvas.buffer_rgba())[:, :, :3], cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise PictureError(f"a sheet is written as png, jpg or webp; {path} could not be. Check suffix and folder.")


def _draw(sample: Sample, cell: int, colours: Mapping[str, str]) -> NDArray[np.uint8]:
    """Scale a picture to the width of a cell, and draw its boxes on it."""
    height, width = sample.image.shape[:2]
    scale = min(cell / width, 1.2 * cell / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = np.asarray(cv2.resize(sample.image, size, interpolation=way), dtype=np.uint8)
    boxes = np.asarray(sample.boxes, dtype=np.float64).reshape(-1, 4) * np.tile([size[0] / width, size[1] / height], 2)
    color = [
        _IGNORED if ignored else colours[label] for label, ignored in zip(sample.labels, sample.ignored, strict=True)
    ]
    text = None if len(colours) <= len(COLOURS) else True
    return draw_boxes(image, boxes, sample.labels, color=color, text=text)


def _bars(axes: Axes, classes: Sequence[tuple[str, int]], count: int) -> None:
    names = [name for name, _ in classes]
    bars = axes.barh(range(len(names)), [n for _, n in classes], color=COLOURS[0], height=0.7)
    axes.bar_label(bars, padding=3, fontsize=9, color=_INK)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.16)
    _style(axes, "Objects of each class" + (f" ({len(names)} of {count})" if len(names) < count else ""))
    axes.set_xlabel("objects", fontsize=10, color=_INK)


def _histogram(axes: Axes, boxes: NDArray[np.float64], anchors: NDArray[np.float64], unit: str) -> None:
    sizes = np.sqrt(boxes.prod(axis=1))
    of_anchors = np.unique(np.round(np.sqrt(anchors.prod(axis=1)), 2))
    low, high = _limits(np.concatenate([sizes, of_anchors]))
    axes.hist(
        sizes, np.geomspace(low, high, 41).tolist(), color=_GREY, edgecolor="white", linewidth=0.5, label="objects"
    )
    for i, anchor in enumerate(of_anchors):
        axes.axvline(anchor, color=_ANCHOR, linewidth=1.6, label="anchors" if i == 0 else None)
        axes.text(
            anchor, 1.005, f"{anchor:g}", transform=axes.get_xaxis_transform(), fontsize=8, color=_ANCHOR, ha="center"
        )
    _style(axes, "Size: square root of the area", pad=14 if len(anchors) else 6)
    _log(axes, (low, high), x=True)
    axes.set_xlabel(unit, fontsize=10, color=_INK)
    axes.set_ylabel("objects", fontsize=10, color=_INK)
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=_INK)


def _shapes(axes: Axes, boxes: NDArray[np.float64], anchors: NDArray[np.float64], unit: str) -> None:
    low, high = _limits(np.concatenate([boxes.ravel(), anchors.ravel()]))
    alpha = float(np.clip(300 / len(boxes), 0.03, 0.5))
    axes.scatter(boxes[:, 0], boxes[:, 1], s=7, color=COLOURS[0], alpha=alpha, linewidths=0, rasterized=True)
    axes.scatter([], [], s=20, color=COLOURS[0], label="objects")
    if len(anchors):
        axes.scatter(
            anchors[:, 0], anchors[:, 1], s=70, marker="s", facecolors="none", edgecolors=_ANCHOR, label="anchors"
        )
    axes.plot([low, high], [low, high], color="#999999", linewidth=0.8, zorder=0)
    _style(axes, "Shape")
    _log(axes, (low, high), x=True)
    _log(axes, (low, high), x=False)
    axes.set_xlabel(f"width, {unit}", fontsize=10, color=_INK)
    axes.set_ylabel("height", fontsize=10, color=_INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="upper left")


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(max(values.min(), 0.5)) / 1.2, float(max(values.max(), 0.5)) * 1.2


def _log(axes: Axes, limits: tuple[float, float], *, x: bool) -> None:
    """A logarithmic axis with ticks at powers of two."""
    axis = axes.xaxis if x else axes.yaxis
    (axes.set_xscale if x else axes.set_yscale)("log")
    axis.set_major_locator(FixedLocator([t for t in _TICKS if limits[0] <= t <= limits[1]]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())
    (axes.set_xlim if x else axes.set_ylim)(*limits)


def _style(axes: Axes, title: str, pad: float = 6) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc="left", fontweight="bold", pad=pad)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
