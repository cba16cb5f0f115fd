"""From a dataset dict to an example: the picture read, augmented, its objects turned with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import Transform
from numpy.typing import NDArray

from ode_detect.media.errors import DatasetError
from ode_detect.media.images import read_image

from .cropping import RandomCrop


class Mapper(DatasetMapper):
    """Detectron2's mapper with the augmentations of ``INPUT.SCALE_JITTER``, ``ANY_ORIENTATION``, ``COLOR_JITTER``.

    Args:
        min_visible: an object of which less than this share of the box is left is not trained on, in [0, 1].
        arguments: of Detectron2's ``DatasetMapper``.
    """

    @configurable
    def __init__(self, *, min_visible: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.min_visible = min_visible

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read the ``INPUT`` keys."""
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = at_least_a_pixel(arguments["augmentations"])
        if is_train:
            arguments["augmentations"] = _augmentations(cfg, arguments["augmentations"])
            arguments["min_visible"] = cfg.INPUT.MIN_VISIBLE
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make an example of a picture, as Detectron2's mapper does, with our reading of files.

        Raises:
            DatasetError: the picture cannot be read, or is not of the size that its annotations are for.
        """
        example = copy.deepcopy(dataset_dict)
        image = read_image(example["file_name"], format=self.image_format)
        try:
            utils.check_image_size(example, image)
        except utils.SizeMismatchError as error:
            raise DatasetError(
                f"{example['file_name']} cannot be read as the picture that its annotations describe ({error}). "
                "tools/check_dataset.py lists all such pictures."
            ) from error
        semantic = example.pop("sem_seg_file_name", None) if self.is_train else None
        classes = read_image(semantic, "L").squeeze(2) if semantic else None
        augmented = T.AugInput(image, sem_seg=classes)
        transforms = self.augmentations(augmented)
        shape = augmented.image.shape[:2]
        example["image"] = torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if semantic:
            example["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(example, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            example.pop("annotations", None)
        elif "annotations" in example:
            self._transform_annotations(example, transforms, shape)
        return example

    def _transform_annotations(self, dataset_dict: dict[str, Any], transforms: Any, image_shape: Any) -> None:
        for annotation in dataset_dict["annotations"]:
            # Detectron2 trains on the difficult objects of VOC, and leaves them out of evaluation.
            if annotation.pop("difficult", 0):
                annotation["iscrowd"] = 0
        if self.min_visible > 0:
            height, width = image_shape
            kept = []
            for annotation in dataset_dict["annotations"]:
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                whole = transforms.apply_box(np.array([box]))[0]
                left = np.clip(whole, 0, [width, height, width, height])
                if _area(left) >= self.min_visible * _area(whole):
                    kept.append(annotation)
            dataset_dict["annotations"] = kept
        if all(annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            # Detectron2 would take the boxes of no object from masks that are not there.
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
            return
        super()._transform_annotations(dataset_dict, transforms, image_shape)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, but that no side of a strip becomes 0."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """The size for one picture."""
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform):
            resize.new_h, resize.new_w = max(1, resize.new_h), max(1, resize.new_w)
        return resize


def at_least_a_pixel(augmentations: Sequence[Any]) -> list[Any]:
    """Detectron2's augmentations, with our own `ResizeShortestEdge`."""
    return [
        ResizeShortestEdge(a.short_edge_length, a.max_size, a.sample_style, a.interp)
        if type(a) is T.ResizeShortestEdge
        else a
        for a in augmentations
    ]


class ScaleJitter(T.Augmentation):
    """Resize by a random factor, drawn uniformly in the logarithm.

    Args:
        smallest: least factor, > 0.
        largest: greatest factor.
    """

    def __init__(self, smallest: float, largest: float) -> None:
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the factor for one picture."""
        height, width = image.shape[:2]
        factor = float(np.exp(np.random.uniform(np.log(self.smallest), np.log(self.largest))))
        return T.ResizeTransform(height, width, max(1, round(height * factor)), max(1, round(width * factor)))


def scale_factors(cfg: CfgNode, sizes: Sequence[tuple[int, int]], *, is_train: bool) -> NDArray[np.float64]:
    """By what pictures are resized, on the average over what is drawn at random.

    Args:
        cfg: with the ``INPUT`` keys.
        sizes: height and width of each picture.
        is_train: as in training, else as in the test.

    Returns:
        The factors of width and height, shape (N, 2).
    """
    augmentations = Mapper.from_config(cfg, is_train)["augmentations"]
    draws = max(1, min(16, 4000 // max(len(sizes), 1))) if is_train else 1
    state = np.random.get_state()  # which is that of the training
    np.random.seed(0)
    try:
        logs = [
            np.mean([np.log(_scaled(augmentations, height, width)) for _ in range(draws)], axis=0)
            for height, width in sizes
        ]
    finally:
        np.random.set_state(state)
    return np.asarray(np.exp(np.array(logs, dtype=np.float64).reshape(-1, 2)))


def _scaled(augmentations: list[Any], height: int, width: int) -> tuple[float, float]:
    """The factors of width and height by the transforms that are drawn for one picture."""
    x, y = 1.0, 1.0
    for augmentation in augmentations:
        if not isinstance(augmentation, (ScaleJitter, T.ResizeShortestEdge, T.RandomCrop)):
            continue
        # Only the shape is looked at.
        transform = augmentation.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
        if isinstance(transform, T.ResizeTransform):
            new_height, new_width = max(transform.new_h, 1), max(transform.new_w, 1)
            x, y = x * new_width / width, y * new_height / height
            height, width = new_height, new_width
        elif isinstance(transform, T.CropTransform):
            height, width = max(transform.h, 1), max(transform.w, 1)
    return x, y


def _augmentations(cfg: CfgNode, base: list[Any]) -> list[Any]:
    augmentations = [RandomCrop(a.crop_type, a.crop_size) if isinstance(a, T.RandomCrop) else a for a in base]
    if cfg.INPUT.SCALE_JITTER:
        smallest, largest = cfg.INPUT.SCALE_JITTER
        first: list[Any] = [ScaleJitter(smallest, largest)]
        if max(cfg.INPUT.MIN_SIZE_TRAIN):
            # Detectron2 resizes what the crop has left, by which a crop of so many pixels would say how large objects
            # are. Where MIN_SIZE_TRAIN is 0 nothing is resized there, and what is drawn keeps its order.
            resize = next(a for a in augmentations if isinstance(a, T.ResizeShortestEdge))
            augmentations.remove(resize)
            first.insert(0, resize)
        augmentations = first + augmentations
    if cfg.INPUT.ANY_ORIENTATION:
        augmentations.append(T.RandomRotation([0, 90, 180, 270], sample_style="choice"))
    if cfg.INPUT.COLOR_JITTER:
        low, high = 1 - cfg.INPUT.COLOR_JITTER, 1 + cfg.INPUT.COLOR_JITTER
        augmentations += [T.RandomBrightness(low, high), T.RandomContrast(low, high), T.RandomSaturation(low, high)]
    return augmentations


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
