"""Where what is made of an input of a command goes: never over another one, never over what is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ode_detect.media import Input, first_overwritten
from ode_detect.media.files import whole
from ode_detect.task import ConfigError

DRAWN, FRAMES = "drawn", "frames"
# Of these a drawn picture keeps its type; of others it is a JPEG.
_WRITABLE = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# The longest side that a type can hold; a longer picture becomes a PNG.
_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
# Bytes of a name of a file, of which systems allow 255, and writing needs some more.
_LONGEST_NAME = 200


def drawn_paths(folder: Path, items: Sequence[Input]) -> list[Path]:
    """Where the drawn picture or video of each input goes, a file of its own for each."""
    # Those that keep their names get them: of t.gif and t.gif.jpg the first is t.gif_2.jpg.
    order = sorted(range(len(items)), key=lambda i: bool(_suffix(items[i])))
    paths: dict[int, Path] = {}
    taken: set[Path] = set()
    for i in order:
        paths[i] = _free(short(folder / DRAWN / f"{items[i].name}{_suffix(items[i])}"), taken)
        taken.add(paths[i])
    return [paths[i] for i in range(len(items))]


def frames_path(folder: Path, item: Input) -> Path:
    """Where the records of the frames of a video go."""
    return short(folder / FRAMES / f"{item.name}.jsonl")


def short(path: Path) -> Path:
    """A path whose name a file can have: a very long one is cut, and a checksum keeps it apart from others."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST_NAME:
        return path
    mark, suffix = hashlib.sha256(name).hexdigest()[:12], path.suffix if len(path.suffix) < 12 else ""
    return path.with_name(f"{name[: _LONGEST_NAME - 40].decode('utf-8', 'ignore')}~{mark}{suffix}")


def refuse_overwriting(folder: Path, targets: Iterable[Path], inputs: Sequence[Input]) -> None:
    """Refuse to write outside the folder of the output, and over what is read.

    Raises:
        ConfigError: a target lies elsewhere, such as behind a link, or is an input.
    """
    targets, root = list(targets), Path(os.path.realpath(folder))
    for parent in {target.parent for target in targets}:
        if not Path(os.path.realpath(parent)).is_relative_to(root):
            raise ConfigError(
                f"all output goes into {folder}, and {parent} leads to {os.path.realpath(parent)}. Remove that link, "
                "or give another --output."
            )
    if clash := first_overwritten(targets, (item.path for item in inputs)):
        raise ConfigError(
            f"{clash[0]} would be written, and is what is read (--input {clash[1]}). Give another --output."
        )


def write_picture(path: Path, image: NDArray[np.uint8], taken: Collection[Path] = ()) -> Path:
    """Write a picture (RGB, uint8) by the suffix of its path, whole or not at all.

    Args:
        path: as of `drawn_paths`.
        image: a side that is too long for the type makes it a PNG of that name.
        taken: paths that are for others.

    Returns:
        Where it is.

    Raises:
        OSError: it cannot be encoded or written.
    """
    if max(image.shape[:2]) > _LONGEST.get(path.suffix.lower(), max(image.shape[:2])):
        path = _free(short(path.with_name(f"{path.name}.png")), taken)
    try:
        written, coded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise OSError(f"a picture of {image.shape[1]} x {image.shape[0]} cannot be encoded as {path.suffix}") from error
    if not written:
        raise OSError(f"{path} could not be encoded")
    with whole(path) as partial:
        partial.write_bytes(coded.tobytes())
    return path


def _suffix(item: Input) -> str:
    kept = (".mp4",) if item.video else _WRITABLE
    return "" if item.name.suffix.lower() in kept else kept[0]


def _free(path: Path, taken: Collection[Path]) -> Path:
    new, count = path, 1
    while new in taken:
        count += 1
        new = path.with_name(f"{path.stem}_{count}{path.suffix}")
    return new
