"""Pictures with the classes that a network takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ode_detect.report.canvas import Canvas, PictureError, check_image, measure, shortened, write_sheet
from ode_detect.report.examples import Drawn

# Apart for colour-blind readers too.
RIGHT, WRONG, UNFAMILIAR = "#009E73", "#D55E00", "#F0C000"
CLASSIFICATION_LEGEND = (
    (RIGHT, "right"),
    (WRONG, "wrong, with the true class"),
    (UNFAMILIAR, "? unlike the training pictures"),
)
_BAR, _OTHER_BARS = "#0072B2", "#A9CCE3"
# The longer side of a picture on a sheet: those below are enlarged, those above are made smaller.
_LEAST, _MOST = 112, 224
# Of a single picture: below this it is enlarged, for letters next to it to be readable.
_SMALL = 320
# Up to this side a picture is enlarged as the squares that its pixels are.
_PIXELS = 64
# So many classes have a bar.
_BARS = 5
_GAP, _FRAME, _LINE = 16, 4, 19


@dataclass(frozen=True)
class Classified:
    """A picture with what a classifier said about it.

    Attributes:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        labels: Names of the most likely classes, most likely first; at least one.
        probabilities: Of them, in [0, 1].
        truth: Name of the true class; None if it is unknown.
        far: Whether the picture is unlike the training pictures.
        name: Of the picture.

    Raises:
        PictureError: The image has the wrong shape or type, or labels and probabilities do not fit together.
    """

    image: NDArray[np.uint8]
    labels: Sequence[str]
    probabilities: Sequence[float]
    truth: str | None = None
    far: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        """Check the shapes."""
        check_image(self.image)
        if not len(self.labels) or len(self.labels) != len(self.probabilities):
            raise PictureError(
                f"each label needs a probability, and a picture at least one label; there are {len(self.labels)} "
                f"labels and {len(self.probabilities)} probabilities. Give one for each."
            )

    @property
    def right(self) -> bool:
        """Whether the first label is the true one."""
        return self.labels[0] == self.truth


def draw_classified(
    image: NDArray[np.uint8], labels: Sequence[str], probabilities: Sequence[float], far: bool
) -> NDArray[np.uint8]:
    """Draw a picture with a bar for each of its most likely classes below it.

    Args:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        labels: Class names, the most likely first; at most five are shown.
        probabilities: Of them, in [0, 1].
        far: Whether the picture is unlike the training pictures, which is then written below.

    Returns:
        RGB, uint8; enlarged by a whole number if the picture is small, and of a size that depends on its size only.

    Raises:
        PictureError: The image has the wrong shape or type, or labels and probabilities do not fit together.
    """
    return _with_bars(Classified(image, labels, probabilities, far=far))


def show_classified(picture: Classified) -> Drawn:
    """Draw one picture with its bars, framed by whether it is right, to be compared with those of other networks."""
    said = f"{picture.labels[0]} {picture.probabilities[0]:.2f}"
    if picture.truth is not None:
        said += ", right" if picture.right else f", wrong: it is {picture.truth}"
    said += ", unlike the training pictures" if picture.far else ""
    return Drawn(_with_bars(picture), picture.name, said)


def prediction_sheet(
    shown: Sequence[Classified],
    path: str | Path,
    title: str,
    *,
    mistakes: Sequence[Classified] = (),
    columns: int = 6,
) -> None:
    """Write a sheet of pictures with what they are taken for.

    Args:
        shown: Pictures as they come, row by row.
        path: File to write; its suffix says the format (png, jpg, webp).
        title: Of the sheet.
        mistakes: Wrong ones that are worth a look; they come below, under a heading of their own.
        columns: Pictures in a row.

    Raises:
        PictureError: There is no picture, or the file cannot be written in this format.
    """
    pictures = [*shown, *mistakes]
    if not pictures:
        raise PictureError("a sheet needs at least one picture; there is none. Give some.")
    cells = [_fitted(picture.image) for picture in pictures]
    wide, high = (max(cell.shape[axis] for cell in cells) + 2 * _FRAME for axis in (1, 0))
    columns = max(min(columns, len(pictures)), -(-_LEAST * 4 // (wide + _GAP)))  # room for the title
    width = columns * (wide + _GAP) + _GAP
    groups = [("From all over the set", shown), ("Wrong with the highest confidence", mistakes)]
    groups = [(words if mistakes else "", group) for words, group in groups if group]
    row = high + 2 * _LINE + _GAP
    rows = sum(-(-len(group) // columns) for _, group in groups)
    head = _header(Canvas(width, 1), title)
    canvas = Canvas(width, head + rows * row + (len(groups) * 34 if mistakes else 0))
    y = _header(canvas, title)
    drawn = iter(cells)
    for words, group in groups:
        if words:
            canvas.text(_GAP, y + 16, words, 16, bold=True)
            y += 34
        for place, picture in enumerate(group):
            at = _GAP + place % columns * (wide + _GAP), y + place // columns * row
            _cell(canvas, picture, next(drawn), *at, wide, high)
        y += -(-len(group) // columns) * row
    write_sheet(canvas.pixels(), path)


def _cell(canvas: Canvas, picture: Classified, image: NDArray[np.uint8], x: int, y: int, wide: int, high: int) -> None:
    """A picture in the middle of its place, with frame, mark and two lines of text."""
    left, upper = x + (wide - image.shape[1]) // 2, y + (high - image.shape[0]) // 2
    _framed(canvas, picture, image, left, upper, _FRAME)
    probability = f"{picture.probabilities[0]:.2f}"
    label = shortened(picture.labels[0], 13, wide - 6 - measure(probability, 13), bold=True)
    canvas.text(x, y + high + 15, label, 13, bold=True)
    canvas.text(x + measure(label, 13, bold=True) + 6, y + high + 15, probability, 13)
    if picture.truth is not None and not picture.right:
        canvas.text(x, y + high + 32, shortened(f"true: {picture.truth}", 13, wide), 13)


def _framed(canvas: Canvas, picture: Classified, image: NDArray[np.uint8], x: int, y: int, thick: int) -> None:
    canvas.image(image, x, y)
    if picture.truth is not None:
        high, wide = image.shape[:2]
        corners = np.array([x, y, x + wide, y + high]) + np.array([-1, -1, 1, 1]) * thick / 2
        canvas.box(corners, RIGHT if picture.right else WRONG, thick, halo=False)
    if picture.far:
        _mark(canvas, x + image.shape[1], y, 5 * thick)


def _mark(canvas: Canvas, right: float, top: float, side: int) -> None:
    """A question mark in a square, in an upper right corner."""
    canvas.patch(right - side, top, side, side, UNFAMILIAR)
    size = 0.8 * side
    canvas.text(right - side / 2 - measure("?", size, bold=True) / 2, top + 0.8 * side, "?", size, bold=True)


def _header(canvas: Canvas, title: str) -> int:
    """Write title and legend, in as many lines as the width asks for; returns the height used in pixels."""
    room = canvas.width - 2 * _GAP
    size = max(min(22.0, 22 * room / max(measure(title, 22, bold=True), 1)), 12.0)
    canvas.text(_GAP, 34, shortened(title, size, room, bold=True), size, bold=True)
    x, y = _GAP, 50
    for color, words in CLASSIFICATION_LEGEND:
        words = words.removeprefix("? ")
        length = 28 + round(measure(words, 14))
        if x > _GAP and x + length > canvas.width - _GAP:
            x, y = _GAP, y + 26
        if color == UNFAMILIAR:
            _mark(canvas, x + 20, y, 20)
        else:
            canvas.box(np.array([x + 2, y + 2, x + 18, y + 18]), color, _FRAME, halo=False)
        canvas.text(x + 28, y + 15, words, 14)
        x += length + 24
    return y + 36


def _with_bars(picture: Classified) -> NDArray[np.uint8]:
    """The picture, and below it names, bars and probabilities, and what is to be said about it."""
    image = _enlarged(picture.image, -(-_SMALL // max(picture.image.shape[:2])))
    high, wide = image.shape[:2]
    # Letters grow with the picture, but not so far that five classes and their bars have no room below a narrow one.
    size = max(13, min(max(high, wide) // 60, wide // 24))
    line, frame, width = round(1.6 * size), max(4, size // 3), max(wide, _SMALL)
    margin = frame + size // 2
    canvas = Canvas(width + 2 * frame, high + 2 * frame + (_BARS + 1) * line + margin)
    _framed(canvas, picture, image, frame + (width - wide) // 2, frame, frame)
    room = min(width, 40 * size) - 2 * margin
    names, number = round(0.42 * room), round(measure("0.00", size))
    bars = room - names - number - 2 * size
    y = high + 2 * frame + line
    for place, (label, probability) in enumerate(list(zip(picture.labels, picture.probabilities, strict=True))[:_BARS]):
        first = place == 0
        canvas.text(margin, y, shortened(label, size, names, bold=first), size, bold=first)
        canvas.patch(
            margin + names + size, y - 0.8 * size, max(bars * probability, 1), size, _color(picture, label, first)
        )
        canvas.text(margin + room - number, y, f"{probability:.2f}", size, bold=first)
        y += line
    note = "unlike the training pictures" if picture.far else ""
    if picture.truth is not None and not picture.right:
        note = f"true: {picture.truth}" + (f"; {note}" if note else "")
    y = high + 2 * frame + (_BARS + 1) * line
    if picture.far:
        _mark(canvas, margin + 1.25 * size, y - size - size // 8, round(1.25 * size))
    indent = round(1.75 * size) if picture.far else 0
    canvas.text(margin + indent, y, shortened(note, size, width - 2 * margin - indent), size)
    return canvas.pixels()


def _color(picture: Classified, label: str, first: bool) -> str:
    if label == picture.truth:
        return RIGHT
    if first:
        return _BAR if picture.truth is None else WRONG
    return _OTHER_BARS


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As large as pictures are on a sheet."""
    longer = max(image.shape[:2])
    if longer <= _MOST:
        return _enlarged(image, -(-_LEAST // longer))
    high, wide = (max(round(side * _MOST / longer), 1) for side in image.shape[:2])
    return np.asarray(cv2.resize(image, (wide, high), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _enlarged(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    if scale <= 1:
        return image
    how = cv2.INTER_NEAREST if max(image.shape[:2]) <= _PIXELS else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), dtype=np.uint8)
