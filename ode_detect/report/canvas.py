"""A picture to draw on: boxes, labels and text, by Pillow, in a few milliseconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER = "#222222", "#FFFFFF"
_HALO = (0, 0, 0, 115)


class Canvas:
    """A white picture, origin at the upper left, all lengths in pixels.

    Args:
        width: of the canvas.
        height: of the canvas.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self._image = Image.new("RGB", (width, height), _PAPER)
        self._draw = ImageDraw.Draw(self._image, "RGBA")  # what is drawn is blended; the picture has no alpha

    def image(self, pixels: NDArray[np.uint8], x: int, y: int) -> None:
        """Put a picture (RGB, uint8, (H, W, 3)) with its upper left corner at a point."""
        self._image.paste(Image.fromarray(pixels), (x, y))

    def box(
        self,
        box: NDArray[np.float64],
        color: str,
        width: float,
        *,
        dashed: bool = False,
        alpha: float = 1.0,
        halo: bool = True,
    ) -> None:
        """Draw the outline of a box.

        Args:
            box: corners ``x0, y0, x1, y1``; the middle of the line goes through them.
            color: in any form that matplotlib knows.
            width: of the line; it is rounded, and at least 1.
            dashed: whether the line has gaps.
            alpha: opacity in [0, 1].
            halo: whether a dark edge sets the line off from a light ground.
        """
        thick = max(round(width), 1)
        x0, y0, x1, y1 = (round(float(v) - thick / 2) for v in box)
        outer = (x0, y0, max(x1, x0) + thick, max(y1, y0) + thick)
        if halo:
            edge = (outer[0] - 1, outer[1] - 1, outer[2] + 1, outer[3] + 1)
            for strip in _strips(edge, thick + 2):
                self._fill(strip, _HALO)
        for strip in _strips(outer, thick):
            for part in _dashes(strip, round(3.2 * thick), round(1.6 * thick)) if dashed else [strip]:
                self._fill(part, _rgba(color, alpha))

    def patch(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fill a rectangle."""
        self._fill((round(x), round(y), round(x + width), round(y + height)), _rgba(color))

    def text(self, x: float, y: float, text: str, size: float, *, bold: bool = False, color: str = _INK) -> None:
        """Write one line with its base line at ``y`` and letters of ``size``."""
        self._draw.text((round(x), round(y)), _one_line(text), color, _font(int(size), bold), anchor="ls")

    def label(self, box: NDArray[np.float64], text: str, color: str, *, size: float = 12.0) -> None:
        """Write a small label on a tag of the box's colour above its upper edge, inside the picture."""
        self.labels([(box, text, color)], size=size)

    def labels(self, tags: Sequence[tuple[NDArray[np.float64], str, str]], *, size: float = 12.0) -> None:
        """Write labels of boxes, each on a tag of its box's colour, where it hides no other if there is such a place.

        Each tag is opaque and lies above those before it: letters upon letters cannot be read. The last one has the
        first choice.

        Args:
            tags: box, text and colour of each; those without a text are left out.
            size: of the letters.
        """
        unit = int(size) / 12
        height = 15 * unit
        places: list[tuple[float, float, float]] = []
        for box, text, _ in reversed(tags):
            length = measure(text, size) + 6 * unit if text else 0.0
            places.append(self._place(box, length, height, places) if text else (0.0, 0.0, 0.0))
        for (_, text, color), (x, y, length) in zip(tags, reversed(places), strict=True):
            if not text:
                continue
            # Its dark ends show where it stops and a tag below it goes on.
            self._fill((round(x) - 1, round(y - height), round(x + length) + 1, round(y)), _HALO)
            self.patch(x, y - height, length, height, color)
            self.text(x + 3 * unit, y - 4 * unit, text, size, color=letters_on(color))

    def _place(
        self, box: NDArray[np.float64], length: float, height: float, taken: Sequence[tuple[float, float, float]]
    ) -> tuple[float, float, float]:
        """Left end, lower edge and length of a tag: above its box, or the nearest place that no other tag has."""
        x, y = max(min(float(box[0]) - 1, self.width - length), 0), max(float(box[1]), height)
        right = max(min(float(box[2]) + 1, self.width) - length, 0)
        step = height + 1
        others = np.array(taken, dtype=np.float64).reshape(-1, 3)
        for left, lower in (
            (x, y),
            *((x, y - k * step) for k in (1, 2, 3)),
            (right, y),
            *((x, y + k * step) for k in (1, 2, 3, 4, 5, 6)),
            *((right, y + k * step) for k in (1, 2, 3)),
        ):
            apart = (left >= others[:, 0] + others[:, 2]) | (left + length <= others[:, 0])
            apart |= np.abs(lower - others[:, 1]) >= height
            if height <= lower <= max(self._image.height, height) and apart.all():
                return left, lower, length
        return x, y, length

    def pixels(self) -> NDArray[np.uint8]:
        """What was drawn: RGB, uint8, shape (height, width, 3)."""
        return np.array(self._image)

    def _fill(self, corners: tuple[int, int, int, int], color: tuple[int, int, int, int]) -> None:
        x0, y0, x1, y1 = corners
        if x1 > x0 and y1 > y0:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21.

    Source: W3C, Web Content Accessibility Guidelines 2.1, contrast ratio.
    """
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def letters_on(color: str) -> str:
    """The colour in which letters on a ground can be read best: dark, or white."""
    return max((_INK, _PAPER), key=lambda letters: contrast(letters, color))


def _luminance(color: str) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(color)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def measure(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width in pixels that a line of text takes."""
    return _font(int(size), bold).getlength(_one_line(text))


def shortened(text: str, size: float, room: float, *, bold: bool = False) -> str:
    """The text, or as much of its beginning as fits into a width in pixels, with dots for the rest."""
    if measure(text, size, bold=bold) <= room:
        return text
    kept = len(text)
    while kept and measure(f"{text[:kept].rstrip()}…", size, bold=bold) > room:
        kept -= 1
    return f"{text[:kept].rstrip()}…"


def _strips(outer: tuple[int, int, int, int], thick: int) -> Iterator[tuple[int, int, int, int]]:
    """The four sides of a frame; they don't overlap, so that a translucent one has no dark corners."""
    x0, y0, x1, y1 = outer
    yield x0, y0, x1, min(y0 + thick, y1)
    yield x0, max(y1 - thick, y0 + thick), x1, y1
    yield x0, y0 + thick, min(x0 + thick, x1), y1 - thick
    yield max(x1 - thick, x0 + thick), y0 + thick, x1, y1 - thick


def _dashes(strip: tuple[int, int, int, int], dash: int, gap: int) -> Iterator[tuple[int, int, int, int]]:
    x0, y0, x1, y1 = strip
    if x1 - x0 > y1 - y0:
        yield from ((x, y0, min(x + dash, x1), y1) for x in range(x0, x1, dash + gap))
    else:
        yield from ((x0, y, x1, min(y + dash, y1)) for y in range(y0, y1, dash + gap))


@lru_cache(maxsize=64)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", name), max(size, 1))


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _rgba(color: str, alpha: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = (round(255 * v) for v in to_rgb(color))
    return red, green, blue, round(255 * alpha)


class PictureError(ValueError):
    """A picture or boxes of the wrong shape."""


def write_sheet(pixels: NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture (RGB, uint8, (H, W, 3)) as png, jpg or webp, by the suffix of its path.

    Raises:
        PictureError: It cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written = False
    if not written:
        raise PictureError(
            f"a sheet is written as png, jpg or webp; {path} could not be. Check the suffix and the folder."
        )


def check_image(image: NDArray[np.uint8]) -> None:
    """See that a picture is RGB.

    Raises:
        PictureError: It has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise PictureError(
            f"a picture must be RGB, uint8, of shape (H, W, 3); this one is {image.dtype}, {image.shape}. Convert it."
        )
