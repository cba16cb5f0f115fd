"""Pictures one by one, drawn to be compared with those of other networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .canvas import PictureError

_WIDE, NARROW = 960, 480


@dataclass(frozen=True)
class Drawn:
    """A picture with what a network said about it.

    Attributes:
        pixels: RGB in 0..255, uint8, shape (H, W, 3).
        name: of the picture, the same for all networks.
        caption: what is right and wrong in it.
    """

    pixels: NDArray[np.uint8]
    name: str
    caption: str

    def write(self, path: str | Path) -> Path:
        """Write a JPEG of at most 960 pixels in width.

        Raises:
            PictureError: it cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        if pixels.shape[1] > _WIDE:
            height = max(round(pixels.shape[0] * _WIDE / pixels.shape[1]), 1)
            pixels = cv2.resize(pixels, (_WIDE, height), interpolation=cv2.INTER_AREA)
        if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 85]):
            raise PictureError(f"a picture is written into a folder that can be written; {path} could not be.")
        return path


@dataclass(frozen=True)
class Examples:
    """Pictures of one network.

    Attributes:
        text: what is shown, a sentence.
        legend: (colour, meaning) of what is drawn.
        pictures: in the order of the data set.
    """

    text: str
    legend: tuple[tuple[str, str], ...]
    pictures: tuple[Drawn, ...]
