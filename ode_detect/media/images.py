"""Reading pictures: of any mode, upright, 8 bits, or refused with a message that names the file."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DatasetError

logger = logging.getLogger("ode_detect.media")
# Kinds of files for which a warning was given: they hold several frames.
_TOLD: set[str] = set()

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Files whose further frames are an animation, not a preview or a page.
_ANIMATED = ("GIF", "PNG", "WEBP")
# ITU-R BT.601, as Detectron2 has it.
_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# Of what Pillow knows, the kinds that are pictures and decoded by Pillow itself: EPS, for one, is a program, for which
# Ghostscript is started, whatever the suffix of the file says.
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)
# Pixels of the largest picture that is decoded, and the variable that gives another number.
_MOST_PIXELS, _VARIABLE = 120_000_000, "ODE_DETECT_MAX_PIXELS"
# Ours is the limit; Pillow's error at twice its own stays behind it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | Path, format: str = "BGR", *, upright: bool = True) -> NDArray[Any]:
    """Read a picture as training, test and prediction see it.

    It is turned upright by its EXIF tag. Grey, palette, 1-bit and CMYK become colour; of 16 bits the upper 8 are kept;
    what is transparent is laid on white. Of several frames the first is read, with a warning for the first animation.

    Args:
        path: a BMP, GIF, JPEG, PNG, TIFF, WebP or one of a few others that Pillow knows, whatever its extension says.
        format: order of the channels, "BGR" or "RGB", or "L" for grey; another of Detectron2's ``INPUT.FORMAT`` gives
            what Detectron2 gives for it.
        upright: turn it as its EXIF tag says; False gives it as it is stored.

    Returns:
        Values in 0..255, shape (H, W, 3); (H, W, 1) of "L".

    Raises:
        DatasetError: it is not there, is not a picture, is cut short, is too large, or has more than 16 bits.
    """
    with opened(path) as image:
        turn = _TURNS.get(orientation(image)) if upright else None
        colour = _to_rgb(image, path)
        _tell_frames(image, path)
        turned = colour.transpose(turn) if turn is not None else colour
        return np.array(to_channels(turned, format), order="C")


def read_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture, upright, from its header.

    Raises:
        DatasetError: it is not there, or is not a picture.
    """
    with opened(path) as image:
        width, height = image.size
        return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture, of which only the header is read.

    Raises:
        DatasetError: it is not there, is not a picture, or is too large, or what is done with it finds it broken.
    """
    most_pixels()  # before Pillow looks at its own limit
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise OSError("it is a folder, a pipe or a device, not a file")
        with Path(path).open("rb") as file, Image.open(file, formats=_formats()) as image:
            check_pixels(path, *image.size)
            yield image
    except DatasetError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DatasetError(_too_large(path, str(error).partition(" exceeds")[0])) from error
    except Exception as error:  # what a broken file makes its decoder raise is nobody's contract
        raise DatasetError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}). Replace it, or leave it out."
        ) from error


def check_pixels(path: str | Path, width: int, height: int) -> None:
    """Refuse a picture, or the frames of a video, that would fill the memory.

    Raises:
        DatasetError: it has more than ``$ODE_DETECT_MAX_PIXELS`` (120 million) pixels.
    """
    if width * height > most_pixels():
        raise DatasetError(_too_large(path, f"{width} x {height}"))


@functools.cache
def most_pixels() -> int:
    """Pixels of the largest picture that is decoded; the limit of Pillow is moved out of the way.

    Raises:
        DatasetError: ``$ODE_DETECT_MAX_PIXELS`` is not a number above 0.
    """
    text = os.environ.get(_VARIABLE, str(_MOST_PIXELS))
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text)):
        raise DatasetError(f"{_VARIABLE} is a number of pixels above 0, and it is {text!r}; write {_MOST_PIXELS}.")
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, int(text))
    return int(text)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that the installed Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def to_channels(image: Image.Image, format: str) -> NDArray[Any]:
    """The values of a picture, (H, W, C): a mode of Pillow, "BGR", or "YUV-BT.601" (float)."""
    if format == "YUV-BT.601":
        yuv: NDArray[np.float64] = np.asarray(image.convert("RGB")) / 255.0 @ _YUV.T
        return yuv
    values = np.asarray(image.convert("RGB" if format == "BGR" else format))
    values = values[:, :, None] if values.ndim == 2 else values
    return values[:, :, ::-1] if format == "BGR" else values


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 (upright) to 8; 1 where there is none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag says nothing about the picture, and may raise anything
        return 1


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode in ("RGB", "L", "1", "CMYK", "YCbCr", "RGBX") and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode == "P" and "transparency" not in image.info and image.palette and image.palette.mode == "RGB":
        return image.convert("RGB")  # with a quarter of the memory of what follows
    if image.mode.startswith("I"):
        # Pillow would cut every value above 255 to 255. That one of them is transparent is left aside.
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 0xFFFF):
            raise DatasetError(_too_deep(path, f"values from {values.min()} to {values.max()}"))
        return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info or image.mode == "P":
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    raise DatasetError(_too_deep(path, f"Pillow's mode {image.mode}"))


def _tell_frames(image: Image.Image, path: str | Path) -> None:
    if image.format not in _ANIMATED or image.format in _TOLD:
        return
    # A broken second frame is no reason to do without the first.
    with contextlib.suppress(Exception):
        if getattr(image, "is_animated", False):
            _TOLD.add(image.format)
            logger.warning("%s is animated; of such a %s the first frame is read.", path, image.format)


def _too_large(path: str | Path, found: str) -> str:
    return (
        f"a picture has at most {most_pixels():,} pixels, and {path} has more ({found}). Make it smaller, or set the "
        f"environment variable {_VARIABLE} to a larger number."
    )


def _too_deep(path: str | Path, found: str) -> str:
    return (
        f"a picture has 8 or 16 bits a channel, and {path} has {found}; nobody but you knows which value is white. "
        "Save it with 8 bits."
    )
