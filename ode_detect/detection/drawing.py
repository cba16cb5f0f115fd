"""Detections drawn for people to look at: class, score and box, and the mask where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike, NDArray

from ode_detect.report.canvas import Canvas, PictureError, check_image

# Apart for colour-blind readers, and apart from vegetation, soil and snow.
HIT, FALSE, MISSED, TRUTH = "#19D3FF", "#FF2E9A", "#FFE600", "#FFFFFF"
# Light, so that dark letters can be read on each of them, and apart for colour-blind readers (after Okabe and Ito).
COLORS = (HIT, "#FFB000", "#5CF29B", "#FF8FC7", "#F5F54A", "#B9A8FF", "#FF9B7A", "#7FE7E0", "#C8E06E", "#E7C6FF")
_SMALL = 320  # the longer side of a picture below which letters would cover it: it is enlarged
CROWDED = 25  # boxes above which labels hide more than they say, or letters and lines get smaller


def draw_detections(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: Sequence[str],
    scores: ArrayLike,
    classes: Sequence[int],
    masks: Sequence[NDArray[np.bool_]] = (),
) -> NDArray[np.uint8]:
    """Draw detections; lines and letters grow with the picture.

    Args:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        boxes: Corners ``x0, y0, x1, y1`` in pixels, shape (N, 4).
        labels: Class name of each box.
        scores: In [0, 1], shape (N,).
        classes: Index of each box's class; a class has the same colour in every picture.
        masks: Of each box, shape (H, W); or empty.

    Returns:
        RGB, uint8, of the same shape, or enlarged by a whole number if the picture is small.

    Raises:
        PictureError: An array has the wrong shape or type.
    """
    # The best comes last, above the others.
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    colors = [COLORS[classes[i] % len(COLORS)] for i in order]
    scale = max(1, -(-_SMALL // max(image.shape[:2])))
    longer = max(image.shape[:2]) * scale
    crowded = len(labels) > CROWDED
    return draw_boxes(
        _overlay(image, [masks[i] for i in order], colors) if len(masks) else image,
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[order],
        [labels[i] for i in order],
        np.asarray(scores, dtype=np.float64)[order],
        color=colors,
        scale=scale,
        width=max(1.0, longer / 600) if crowded else max(2.0, longer / 320),
        text=True,
        size=max(9.0, longer / 85) if crowded else max(12.0, longer / 60),
    )


def _overlay(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], colors: Sequence[str], *, strength: float = 0.4
) -> NDArray[np.uint8]:
    """Tint what the masks cover, and draw their outlines."""
    drawn = image.copy()
    width = max(1, round(max(image.shape[:2]) / 640))
    for mask, color in zip(masks, colors, strict=True):
        paint = np.array(to_rgb(color)) * 255
        x, y, wide, high = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
        part, inside = drawn[y : y + high, x : x + wide], mask[y : y + high, x : x + wide]
        part[inside] = (part[inside] * (1 - strength) + paint * strength).astype(np.uint8)
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        cv2.drawContours(drawn, outlines, -1, tuple(float(v) for v in paint), width, cv2.LINE_AA)
    return drawn


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    labels: Sequence[str] = (),
    scores: ArrayLike | None = None,
    *,
    color: str | Sequence[str] = HIT,
    scale: int = 1,
    width: float = 2.0,
    text: bool | None = None,
    size: float = 12.0,
) -> NDArray[np.uint8]:
    """Draw boxes with their labels and scores.

    Args:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        boxes: Corners ``x0, y0, x1, y1`` in pixels, shape (N, 4).
        labels: Class of each box, or empty.
        scores: Shape (N,), or None.
        color: One colour, or one per box, in any form that matplotlib knows.
        scale: Whole number by which the picture is enlarged first; lines and text are not.
        width: Line width in pixels.
        text: Whether labels and scores are written; None writes them while there are at most 25 boxes.
        size: Height of the letters in pixels.

    Returns:
        A new picture, RGB, uint8, shape (H * scale, W * scale, 3).

    Raises:
        PictureError: An array has the wrong shape or type.
    """
    check_image(image)
    boxes = as_boxes(boxes, "boxes")
    values = np.full(len(boxes), np.nan) if scores is None else np.asarray(scores, dtype=np.float64)
    for what, length in (("labels", len(labels) or len(boxes)), ("scores", values.size)):
        if length != len(boxes):
            raise PictureError(
                f"{what} must have one value per box, {len(boxes)}; there are {length}. Give all or none."
            )
    colors = [color] * len(boxes) if isinstance(color, str) else list(color)
    if len(colors) != len(boxes):
        raise PictureError(f"color must be one or one per box, {len(boxes)}; there are {len(colors)}. Give one.")
    canvas = canvas_of(image, scale)
    written = len(boxes) <= CROWDED if text is None else text
    for i, box in enumerate(boxes):
        canvas.box(box * scale, colors[i], width)
    tags = []
    for i, box in enumerate(boxes if written else []):
        label = " ".join(
            ([labels[i]] if len(labels) else []) + ([f"{values[i]:.2f}"] if np.isfinite(values[i]) else [])
        )
        tags.append((box * scale, label, colors[i]))
    canvas.labels(tags, size=size)
    return canvas.pixels()


def canvas_of(image: NDArray[np.uint8], scale: int) -> Canvas:
    """A canvas that the picture fills, enlarged by a whole number."""
    if scale > 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    canvas = Canvas(image.shape[1], image.shape[0])
    canvas.image(image, 0, 0)
    return canvas


def as_boxes(boxes: ArrayLike, what: str) -> NDArray[np.float64]:
    """Boxes as an array of corners, shape (N, 4).

    Raises:
        PictureError: they are not finite corners of that shape.
    """
    array = np.asarray(boxes, dtype=np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise PictureError(
            f"{what} must be finite corners of shape (N, 4); the shape is {array.shape}. Give x0, y0, x1, y1."
        )
    return array
