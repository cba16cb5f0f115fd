"""Sets of labelled pictures: what is expected where, and reading them."""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray
from torch import Tensor

from ode_detect.media.errors import DatasetError
from ode_detect.media.images import read_image

# Of the files that MNIST comes in; the datasets of torchvision unpack them into a folder of their own.
_IDX_PARTS = {"train": "train", "test": "t10k"}
_IDX_FOLDERS = ("", "MNIST/raw", "FashionMNIST/raw")
# What INPUT.FORMAT of a classifier may be.
FORMATS = ("RGB", "L")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their labels, in memory or as files.

    Attributes:
        labels: the number of the class of each.
        images: uint8, shape (N, C, H, W), C being 3 of the format "RGB" and 1 of "L"; None: they are read from `files`.
        files: the file of each; () if they come in one.
        format: "RGB" or "L".
    """

    labels: Sequence[int]
    images: Tensor | None
    files: Sequence[str]
    format: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        """One picture, uint8, shape (C, H, W); memory of its own.

        Raises:
            DatasetError: its file cannot be read.
        """
        if self.images is not None:
            return self.images[index].clone()
        return torch.from_numpy(read_image(self.files[index], self.format)).permute(2, 0, 1)


@dataclass(frozen=True)
class Source(ABC):
    """Where a set of labelled pictures is.

    Attributes:
        name: by which ``DATASETS.TRAIN`` and ``TEST`` name it.
        root: its folder.
        advice: how to get it.
    """

    name: str
    root: Path
    advice: str

    @abstractmethod
    def missing(self) -> list[Path]:
        """Files that are expected and not there."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers.

        Raises:
            DatasetError: they are not known, because the set is not there.
        """

    @abstractmethod
    def read(self, format: str, side: int) -> Pictures:
        """Read the set.

        Args:
            format: "RGB" or "L".
            side: to which pictures are brought later; 0: they are taken as they are, so that all must have one size.

        Raises:
            DatasetError: files are missing or damaged.
        """


@dataclass(frozen=True)
class IdxSource(Source):
    """Pictures as MNIST comes: IDX files, of pictures and of labels, gzipped or not.

    Attributes:
        part: "train" or "test".
        classes: their names.
    """

    part: str
    classes: tuple[str, ...]

    def missing(self) -> list[Path]:
        """The files of pictures and labels."""
        return [self.root / f"{stem}.gz" for stem in self._stems() if self._find(stem) is None]

    def class_names(self) -> tuple[str, ...]:
        """They are known whether the set is there or not."""
        return self.classes

    def read(self, format: str, side: int) -> Pictures:
        """Read both files."""
        found = [self._find(stem) for stem in self._stems()]
        images, labels = (self._read(path) for path in found if path is not None)
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(self.classes):
            raise DatasetError(
                f"{self.name} has a label in 0..{len(self.classes) - 1} for each picture; {found[0]} has the shape "
                f"{images.shape}, and {found[1]} {labels.shape} with labels up to {labels.max(initial=0)}. Delete "
                f"both, and get them again: {self.advice}."
            )
        return Pictures(labels.tolist(), to_format(torch.from_numpy(images)[:, None], format), (), format)

    def _stems(self) -> list[str]:
        return [f"{_IDX_PARTS[self.part]}-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]

    def _find(self, stem: str) -> Path | None:
        paths = (self.root / folder / f"{stem}{suffix}" for folder in _IDX_FOLDERS for suffix in ("", ".gz"))
        return next((path for path in paths if path.is_file()), None)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            return read_idx(path)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DatasetError(
                f"{path} is not a whole IDX file of bytes ({error}). Delete it, and get it again: {self.advice}."
            ) from error


@dataclass(frozen=True)
class CifarSource(Source):
    """CIFAR-10 or CIFAR-100, as torchvision reads them.

    Attributes:
        part: "train" or "test".
        kind: "CIFAR10" or "CIFAR100".
        classes: their names.
    """

    part: str
    kind: str
    classes: tuple[str, ...]

    def missing(self) -> list[Path]:
        """The files that torchvision unpacks."""
        kind = self._kind()
        names = [kind.meta["filename"], *(name for name, _ in [*kind.train_list, *kind.test_list])]
        return [path for path in (self.root / kind.base_folder / name for name in names) if not path.is_file()]

    def class_names(self) -> tuple[str, ...]:
        """They are known whether the set is there or not."""
        return self.classes

    def read(self, format: str, side: int) -> Pictures:
        """Read it by torchvision, which compares the checksums."""
        try:
            data = self._kind()(str(self.root), train=self.part == "train", download=False)
        except RuntimeError as error:
            raise DatasetError(
                f"the files of {self.name} in {self.root} are not those that were published ({error}). Delete them, "
                f"and get them again: {self.advice}."
            ) from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return Pictures(list(data.targets), to_format(images, format), (), format)

    def _kind(self) -> Any:
        return getattr(torchvision.datasets, self.kind)


@functools.lru_cache(maxsize=4)
def read_pictures(source: Source, format: str, side: int) -> Pictures:
    """Read a set, or give what was read before in this process: decoding takes longer than anything else here.

    Raises:
        DatasetError: as for `Source.read`.
    """
    return source.read(format, side)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, gzipped if its name ends so.

    Raises:
        OSError, EOFError, zlib.error, ValueError: it is no such file, or not a whole one.
    """
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("it does not begin as one")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start].ljust(4 * data[3], b"\0"), dtype=">u4").tolist()
    if len(data) != start + math.prod(shape):
        raise ValueError(f"it has {len(data)} bytes, and says {start + math.prod(shape)}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()


def to_format(images: Tensor, format: str) -> Tensor:
    """Pictures of 1 or 3 channels in the format, as Pillow converts them; uint8, shape (..., C, H, W).

    Grey becomes colour without copies.
    """
    channels = images.shape[-3]
    if format == "RGB":
        return images.expand(*images.shape[:-3], 3, -1, -1) if channels == 1 else images
    return images if channels == 1 else _grey(images)


def _grey(images: Tensor) -> Tensor:
    if images.ndim == 4:  # a little at a time: the sums have four times the bytes
        return torch.cat([_grey_sum(part) for part in images.split(4096)])
    return _grey_sum(images)


def _grey_sum(images: Tensor) -> Tensor:
    red, green, blue = images.to(torch.int32).unbind(-3)
    # ITU-R 601-2 in fixed point, to the bit what Pillow computes.
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(-3)
