"""From pictures to examples: brought to their size, augmented one by one or a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from ode_detect.ode.names import check_name

from .sources import Pictures, to_format

Example = dict[str, Any]
# Columns of the numbers that are drawn for a picture: one for each change, whatever else is switched on.
_DOWN, _RIGHT, _FLIP, _ANGLE, _SCALE, _BRIGHTNESS, _CONTRAST, _SATURATION, _HOLE_Y, _HOLE_X, _COUNT = range(11)
_GREY = 128
# Of a picture in testing, so many times its shorter side is looked at.
_LONGEST = 8


class Augmentation:
    """Random changes of pictures of one size, a batch at a time.

    Each picture is first turned, scaled, moved and mirrored, then its colours are changed, then a square is cut out.

    Args:
        pad_crop: greatest shift in pixels, down and to the right; the border is repeated.
        flip: mirror every other picture.
        rotation: greatest angle in degrees.
        scale: smallest and largest factor, drawn uniformly in the logarithm; () for none.
        color_jitter: brightness, contrast and saturation change by factors in [1 - x, 1 + x].
        cutout: side in pixels of the square that becomes grey, its middle anywhere in the picture; 0 for none.

    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        pad_crop: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
        scale: Sequence[float] = (),
        color_jitter: float = 0.0,
        cutout: int = 0,
    ) -> None:
        if min(pad_crop, rotation, color_jitter, cutout) < 0:
            raise ValueError(
                f"INPUT.PAD_CROP, ROTATION, COLOR_JITTER and CUTOUT are 0 or more, and they are {pad_crop}, "
                f"{rotation:g}, {color_jitter:g} and {cutout}; 0 switches one off."
            )
        if scale and not (len(scale) == 2 and 0 < scale[0] <= scale[1]):
            raise ValueError(
                f"INPUT.SCALE_JITTER is a smallest and a largest factor above 0, and it is {list(scale)}; write "
                "[0.9, 1.1], or [] for none."
            )
        self.pad_crop, self.flip, self.rotation, self.scale = pad_crop, flip, rotation, tuple(scale)
        self.color_jitter, self.cutout = color_jitter, cutout
        self._affine = rotation > 0 or bool(scale)
        self._moves = pad_crop > 0 or flip
        self.any = self._affine or self._moves or color_jitter > 0 or cutout > 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Augmentation:
        """Read the ``INPUT`` keys."""
        flip = check_name(cfg.INPUT.RANDOM_FLIP, ("horizontal", "none"), "INPUT.RANDOM_FLIP of a classifier")
        return cls(
            pad_crop=cfg.INPUT.PAD_CROP,
            flip=flip == "horizontal",
            rotation=cfg.INPUT.ROTATION,
            scale=cfg.INPUT.SCALE_JITTER,
            color_jitter=cfg.INPUT.COLOR_JITTER,
            cutout=cfg.INPUT.CUTOUT,
        )

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Augment.

        Args:
            images: uint8, shape (N, C, H, W).
            numbers: of `draw`, a row for each picture.

        Returns:
            As ``images``; the same tensor if nothing is switched on.
        """
        columns = numbers.unbind(1)
        if self._affine:
            images = self._turn(images, columns)
        elif self._moves:
            images = self._move(images, columns)
        if self.color_jitter:
            images = self._color(images, columns)
        return self._cut(images, columns) if self.cutout else images

    def _shifts(self, numbers: Tensor) -> Tensor:
        return (numbers * (2 * self.pad_crop + 1)).long() - self.pad_crop

    def _move(self, images: Tensor, columns: Sequence[Tensor]) -> Tensor:
        height, width = images.shape[-2:]
        rows = torch.arange(height) + self._shifts(columns[_DOWN])[:, None]
        places = torch.arange(width).expand(len(images), -1)
        if self.flip:
            places = torch.where((columns[_FLIP] < 0.5)[:, None], places.flip(1), places)
        places = places + self._shifts(columns[_RIGHT])[:, None]
        index = rows.clamp_(0, height - 1)[:, :, None] * width + places.clamp_(0, width - 1)[:, None]
        every = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, every).view_as(images)

    def _turn(self, images: Tensor, columns: Sequence[Tensor]) -> Tensor:
        """Where each pixel comes from is an affine map of where it goes, in coordinates from -1 to 1."""
        height, width = images.shape[-2:]
        angle = (2 * columns[_ANGLE] - 1) * math.radians(self.rotation)
        low, high = map(math.log, self.scale or (1.0, 1.0))
        shrunk = torch.exp(-(low + (high - low) * columns[_SCALE]))
        cosine, sine = angle.cos() * shrunk, angle.sin() * shrunk
        sign = torch.where(columns[_FLIP] < 0.5, -1.0, 1.0) if self.flip else torch.ones(len(images))
        right, down = (self._shifts(columns[column]) for column in (_RIGHT, _DOWN))
        x = torch.stack([sign * cosine, -sine * (height / width), right * (2 / width)], 1)
        y = torch.stack([sign * sine * (width / height), cosine, down * (2 / height)], 1)
        grid = F.affine_grid(torch.stack([x, y], 1), list(images.shape), align_corners=False)
        moved = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return moved.round_().to(torch.uint8)

    def _color(self, images: Tensor, columns: Sequence[Tensor]) -> Tensor:
        def factor(column: int) -> Tensor:
            return (1 + self.color_jitter * (2 * columns[column] - 1))[:, None, None, None]

        values = images * factor(_BRIGHTNESS)
        mean = values.mean((1, 2, 3), keepdim=True)
        values = mean + (values - mean).mul_(factor(_CONTRAST))
        if images.shape[1] == 3:
            grey = (values * values.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
            values = grey + (values - grey).mul_(factor(_SATURATION))
        return values.round_().clamp_(0, 255).to(torch.uint8)

    def _cut(self, images: Tensor, columns: Sequence[Tensor]) -> Tensor:
        def inside(numbers: Tensor, length: int) -> Tensor:
            start = (numbers * length).long() - self.cutout // 2
            places = torch.arange(length) - start[:, None]
            return (places >= 0) & (places < self.cutout)

        height, width = images.shape[-2:]
        hole = inside(columns[_HOLE_Y], height)[:, None, :, None] & inside(columns[_HOLE_X], width)[:, None, None, :]
        return images.masked_fill(hole, _GREY)


def draw(count: int, generator: Generator) -> Tensor:
    """What `Augmentation` needs for so many pictures: a row of numbers in [0, 1) for each."""
    return torch.rand((count, _COUNT), generator=generator)


class Mapper:
    """Makes an example of a picture of any size.

    Args:
        pictures: what the dicts are about.
        side: in pixels; 0 takes pictures as they are, as does one that they have already.
        share: of the shorter side that is kept in testing, in (0, 1].
        augmentation: for training, which also takes a random part of a picture in the place of its middle; None for
            testing.
    """

    def __init__(
        self, pictures: Pictures, *, side: int, share: float = 1.0, augmentation: Augmentation | None = None
    ) -> None:
        self.pictures, self.side, self.share, self.augmentation = pictures, side, share, augmentation
        self._crop = RandomResizedCrop(side, antialias=True) if side and augmentation else None

    def __call__(self, dataset_dict: dict[str, Any]) -> Example:
        """Make one example; draws from torch's generator.

        Args:
            dataset_dict: with "index" and "label"; "file_name" is kept.

        Returns:
            "image", uint8, shape (C, H, W), "label", "height" and "width" (of the image).

        Raises:
            DatasetError: the file of the picture cannot be read.
        """
        image = self.pictures[dataset_dict["index"]]
        if self.side and tuple(image.shape[1:]) != (self.side, self.side):
            image = self._crop(image) if self._crop else middle(image, self.side, self.share)
        if self.augmentation is not None and self.augmentation.any:
            image = self.augmentation(image[None], draw(1, torch.default_generator))[0]
        return _example(image, dataset_dict)


class BatchMapper(Mapper):
    """Makes the examples of a whole batch at once, of pictures that are in memory and have their size."""

    def map_batch(
        self, dicts: Sequence[dict[str, Any]], rows: Sequence[int], total: int, generator: Generator
    ) -> list[Example]:
        """Make examples; which numbers are drawn for one depends on the generator and its row in the batch only.

        Args:
            dicts: of the pictures, a part of a batch or all of it.
            rows: the place of each in the batch.
            total: pictures in the batch.
            generator: seeded for this batch.
        """
        assert self.pictures.images is not None
        images = self.pictures.images.index_select(0, torch.tensor([d["index"] for d in dicts]))
        if self.augmentation is not None and self.augmentation.any:
            images = self.augmentation(images, draw(total, generator)[torch.tensor(rows)])
        return [_example(image, d) for image, d in zip(images.unbind(), dicts, strict=True)]


def build_mapper(cfg: CfgNode, pictures: Pictures, *, is_train: bool) -> Mapper:
    """The mapper of a config: by batches where it can.

    Raises:
        ValueError: an augmentation has a value that it cannot have.
    """
    augmentation = Augmentation.from_config(cfg) if is_train else None
    side = cfg.INPUT.SIDE
    ready = pictures.images is not None and (side == 0 or tuple(pictures.images.shape[2:]) == (side, side))
    kind = BatchMapper if ready else Mapper
    return kind(pictures, side=side, share=cfg.INPUT.CENTER_SHARE, augmentation=augmentation)


def to_side(image: Tensor, cfg: CfgNode) -> Tensor:
    """What a trained classifier sees of a picture: the middle of it, as in testing.

    Args:
        image: RGB, uint8, shape (3, H, W).
        cfg: for ``INPUT.FORMAT``, ``SIDE`` and ``CENTER_SHARE``.

    Returns:
        uint8, shape (C, side, side); (C, H, W) if the side is 0.
    """
    side = cfg.INPUT.SIDE
    given = to_format(image, cfg.INPUT.FORMAT)
    return middle(given, side, cfg.INPUT.CENTER_SHARE) if side and tuple(image.shape[1:]) != (side, side) else given


def middle(image: Tensor, side: int, share: float) -> Tensor:
    """The middle square of a picture (C, H, W), of that share of its shorter side, scaled to ``side`` pixels."""
    # What lies far outside the square is not seen, and a strip of 1 x 3,000 would become gigabytes.
    short = min(image.shape[1:])
    image = transforms.center_crop(image, [min(length, _LONGEST * short) for length in image.shape[1:]])
    height, width = image.shape[1:]
    factor = max(side, round(side / share)) / min(height, width)
    size = [max(side, round(height * factor)), max(side, round(width * factor))]
    return transforms.center_crop(transforms.resize(image, size, antialias=True), [side, side])


def _example(image: Tensor, dataset_dict: dict[str, Any]) -> Example:
    example: Example = {
        "image": image,
        "label": dataset_dict["label"],
        "height": image.shape[1],
        "width": image.shape[2],
    }
    if "file_name" in dataset_dict:
        example["file_name"] = dataset_dict["file_name"]
    return example
