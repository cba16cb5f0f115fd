"""Sets of pictures with a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ode_detect.media.errors import DatasetError
from ode_detect.media.images import read_image
from ode_detect.media.inputs import PICTURES
from ode_detect.media.names import one_line
from ode_detect.ode.names import UnknownNameError, check_name

from .sources import Pictures, Source

_KEYS = ("NAME", "IMAGES")
# Sets of pictures of one size are held in memory if they are no larger than this.
_WHOLE_BYTES = 2 << 30
# Of larger sets, the pictures are not decoded before training, which meets damaged ones on its way.
_TRIED = 5_000
_CHUNK = 256
_LISTED = 20


@dataclass(frozen=True)
class FolderSource(Source):
    """A folder with a folder for each class, whose name it is; their pictures may lie in further folders."""

    def missing(self) -> list[Path]:
        """The folder itself."""
        return [] if self.root.is_dir() else [self.root]

    def class_names(self) -> tuple[str, ...]:
        """The names of the folders, sorted; hidden ones are left out."""
        return tuple(self._folders())

    def _folders(self) -> dict[str, Path]:
        """The folder of each class, in the order of the names as `one_line` gives them."""
        paths = [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
        paths = [path for path in paths if not path.name.startswith(".")]
        folders = {one_line(path.name): path for path in paths}
        if not paths:
            raise DatasetError(
                f"{self.name} has a folder for each class in {self.root}, named after it, and there is none; move the "
                f"pictures of each class into {self.root / 'NAME_OF_THE_CLASS'}."
            )
        if len(folders) < len(paths):
            twice = [ascii(path.name) for path in paths if folders[one_line(path.name)] != path]
            raise DatasetError(
                f"{self.name} has one folder for each class, and in {self.root} the name of another one looks the same "
                f"as {', '.join(twice)}. Join them."
            )
        return dict(sorted(folders.items()))

    def read(self, format: str, side: int) -> Pictures:
        """List the pictures; decode them if all have one size (``side``, if that is given) and fit into memory.

        A class may have none: `require_pictures` refuses that where it is to be learnt.
        """
        files, labels = [], []
        found = [_pictures_in(folder) for folder in self._folders().values()]
        if not any(found):
            self.require_pictures([])
        for number, inside in enumerate(found):
            files += inside
            labels += [number] * len(inside)
        images = self._decode(files, format, side)
        return Pictures(labels, None if images is None else torch.from_numpy(images), tuple(files), format)

    def require_pictures(self, labels: Iterable[int]) -> None:
        """Check that each class has a picture, as one that is to be learnt needs.

        Args:
            labels: of the pictures that there are.

        Raises:
            DatasetError: one has none.
        """
        there = set(labels)
        empty = [name for number, name in enumerate(self.class_names()) if number not in there]
        if empty:
            raise DatasetError(
                f"each class of {self.name} has a picture, and in {self.root} there is none in: {', '.join(empty)}. "
                f"Add pictures ({', '.join(sorted(PICTURES))}), or delete the folders, also those of the other data "
                "sets. (Only in test data a folder may be empty.)"
            )

    def _decode(self, files: Sequence[str], format: str, side: int) -> NDArray[np.uint8] | None:
        decoding = _Decoding(files, format)
        height, width, channels = decoding.shape
        ready = side == 0 or (height, width) == (side, side)
        whole = ready and len(files) * channels * height * width <= _WHOLE_BYTES
        if whole or side == 0 or len(files) <= _TRIED:
            # That sizes differ is all that there is to know of a large set whose pictures will be cropped.
            decoding.run(keep=whole, hasty=side > 0 and len(files) > _TRIED)
            self._refuse(decoding, side)
        return decoding.images if whole and not decoding.others else None

    def _refuse(self, decoding: _Decoding, side: int) -> None:
        if decoding.broken:
            listed = sorted(decoding.broken)
            more = f"\n  and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
            raise DatasetError(
                f"{len(listed)} of the {len(decoding.files)} pictures of {self.name} cannot be read:\n  "
                + "\n  ".join(listed[:_LISTED])
                + more
                + "\nDelete them, or put whole ones in their place."
            )
        if decoding.others and side == 0:
            path, shape = min(decoding.others)
            first = decoding.shape
            raise DatasetError(
                f"INPUT.SIDE 0 takes the pictures of {self.name} as they are, which then have one size; "
                f"{decoding.first} is {first[1]}x{first[0]}, and {path} {shape[1]}x{shape[0]}. Set INPUT.SIDE to the "
                "side in pixels that the network is to see."
            )


class _Decoding:
    """Decodes files in threads.

    Attributes:
        first: the first file that can be read, and `shape`, its (H, W, C).
        images: what was decoded, shape (N, C, H, W), if it was kept.
        broken: what is wrong with files that cannot be read.
        others: files of another size, and their shapes.
    """

    def __init__(self, files: Sequence[str], format: str) -> None:
        self.files, self.format = files, format
        self.broken: list[str] = []
        self.others: list[tuple[str, tuple[int, ...]]] = []
        self.images: NDArray[np.uint8] | None = None
        self.first, self.shape = self._first()

    def _first(self) -> tuple[str, tuple[int, int, int]]:
        for file in self.files:
            try:
                height, width, channels = read_image(file, self.format).shape
            except DatasetError:
                continue
            return file, (height, width, channels)
        return "", (0, 0, 0)

    def run(self, *, keep: bool, hasty: bool) -> None:
        """Decode all; keep them in `images`, or stop at a picture of another size, if asked to."""
        height, width, channels = self.shape
        self.images = np.empty((len(self.files), channels, height, width), np.uint8) if keep else None
        chunks = range(0, len(self.files), _CHUNK)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda start: self._run(start, hasty), chunks):
                pass

    def _run(self, start: int, hasty: bool) -> None:
        for index in range(start, min(start + _CHUNK, len(self.files))):
            if hasty and self.others:
                return
            try:
                image = read_image(self.files[index], self.format)
            except DatasetError as error:
                self.broken.append(str(error).removesuffix(" Replace it, or leave it out."))
                continue
            if image.shape != self.shape:
                self.others.append((self.files[index], image.shape))
            elif self.images is not None:
                self.images[index] = image.transpose(2, 0, 1)


def from_entry(entry: Any) -> FolderSource:
    """An entry of ``DATASETS.CUSTOM``: ``{NAME: my_train, IMAGES: folder}``.

    Raises:
        DatasetError: it lacks a key, or has an unknown one.
    """
    keys = set(entry) if isinstance(entry, dict) else set()
    if not keys.issuperset(_KEYS):
        raise DatasetError(
            f"for a classifier, an entry of DATASETS.CUSTOM has the keys NAME and IMAGES, and this one has "
            f"{', '.join(sorted(map(str, keys))) or 'none'}; write {{NAME: my_train, IMAGES: folder}}, the folder "
            "having one for each class."
        )
    try:
        for key in sorted(map(str, keys)):
            check_name(key, _KEYS, "key in DATASETS.CUSTOM of a classifier")
    except UnknownNameError as error:
        raise DatasetError(str(error)) from error
    root = Path(str(entry["IMAGES"])).expanduser()
    return FolderSource(name=str(entry["NAME"]), root=root, advice="correct IMAGES in DATASETS.CUSTOM")


def _pictures_in(folder: Path) -> list[str]:
    """Files with the suffix of a picture, sorted; other files and hidden ones are left out, and folders met before."""
    found: list[str] = []
    met: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in met:
            folders.clear()  # a link into a folder above it would be followed without end
            continue
        met.add(real)
        found += [
            str(Path(root, file))
            for file in files
            if Path(file).suffix.lower() in PICTURES and not file.startswith(".")
        ]
    return sorted(found)
