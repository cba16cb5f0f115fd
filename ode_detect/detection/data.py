"""Data sets of boxes: registered with Detectron2, checked before they are read, augmented."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.data.datasets  # noqa: F401  registers COCO, LVIS, VOC, Cityscapes
import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.build import get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from fvcore.transforms.transform import Transform

from ode_detect.ode.names import UnknownNameError, check_name


class DatasetError(ValueError):
    """A data set that is not there or not as it should be; the message says what is expected where."""


def datasets_root() -> Path:
    """Where data sets are: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_datasets(cfg: CfgNode) -> None:
    """Make the data sets of ode_detect, and those of ``DATASETS.CUSTOM``, known to Detectron2.

    Raises:
        DatasetError: an entry of CUSTOM lacks a key, or takes the name of another data set.
    """
    trees = datasets_root() / "trees"
    for part in ("train", "test"):
        _register(f"trees_{part}", trees / "annotations" / f"{part}.json", trees / part)
    for entry in cfg.DATASETS.CUSTOM:
        keys = {"NAME", "IMAGES", "ANNOTATIONS"}
        if not isinstance(entry, dict) or set(entry) != keys:
            raise DatasetError(
                f"an entry of DATASETS.CUSTOM has the keys NAME, IMAGES and ANNOTATIONS, and this one has "
                f"{', '.join(sorted(entry)) if isinstance(entry, dict) and entry else 'none'}; "
                "write {NAME: my_train, IMAGES: folder, ANNOTATIONS: file.json}."
            )
        _register(entry["NAME"], Path(entry["ANNOTATIONS"]), Path(entry["IMAGES"]))


def require_datasets(names: Sequence[str]) -> None:
    """Check that data sets are known and their files are there.

    Raises:
        DatasetError: in one message, every data set that is missing, the files it expects, and where to read on.
    """
    missing = []
    for name in names:
        if name not in DatasetCatalog.list():
            try:
                check_name(name, DatasetCatalog.list(), "data set")
            except UnknownNameError as error:
                raise DatasetError(f"{error} One's own are added by DATASETS.CUSTOM.") from error
        missing += [f"  {name}: {path}" for path in _expected_files(name) if not Path(path).exists()]
    if missing:
        raise DatasetError(
            "data that the config asks for is not there. Expected:\n"
            + "\n".join(missing)
            + f"\nData sets are looked for in {str(datasets_root())!r}; DETECTRON2_DATASETS names another place. "
            "datasets/README.md says how to get or make each of them (the tree crowns: "
            "python datasets/prepare_trees.py)."
        )


def train_data(cfg: CfgNode) -> tuple[list[dict[str, Any]], DatasetMapper]:
    """The training pictures and what makes an example of one.

    Returns:
        Dataset dicts in Detectron2's format, and the mapper from one of them to a training example.

    Raises:
        DatasetError: files are missing, cannot be read, hold no picture, or have more classes than the network.
    """
    names = list(cfg.DATASETS.TRAIN)
    dicts = read_dataset(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    _check_classes(cfg, names)
    return dicts, Mapper(cfg, is_train=True)


def test_loader(cfg: CfgNode, name: str) -> Any:
    """Detectron2's loader of a data set in order, without augmentation; one picture at a time."""
    return build_detection_test_loader(read_dataset([name]), mapper=Mapper(cfg, is_train=False))


def check_test_data(cfg: CfgNode) -> None:
    """Read the data sets of ``DATASETS.TEST`` before hours of training, not after.

    Raises:
        DatasetError: as for `train_data`.
    """
    for name in cfg.DATASETS.TEST:
        read_dataset([name])
        _check_classes(cfg, [name])


def read_dataset(names: list[str], *, filter_empty: bool = False) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format.

    Raises:
        DatasetError: files are missing, cannot be read, or hold no picture.
    """
    require_datasets(names)
    try:
        return get_detection_dataset_dicts(names, filter_empty=filter_empty)
    except (AssertionError, ValueError, KeyError, OSError) as error:
        raise DatasetError(
            f"the annotations of {', '.join(names)} cannot be used ({type(error).__name__}: {error}). "
            "They must be COCO JSON with at least one picture; datasets/README.md shows the form."
        ) from error


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
        if is_train:
            arguments["augmentations"] = _augmentations(cfg, arguments["augmentations"])
            arguments["min_visible"] = cfg.INPUT.MIN_VISIBLE
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Make an example of a picture; one that cannot be read is named."""
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, SizeMismatchError) as error:
            raise DatasetError(
                f"{dataset_dict['file_name']} cannot be read as the picture that its annotations describe ({error}). "
                "Replace it, or take it out of the annotations; then go on by --resume."
            ) from error

    def _transform_annotations(self, dataset_dict: dict[str, Any], transforms: Any, image_shape: Any) -> None:
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
        super()._transform_annotations(dataset_dict, transforms, image_shape)


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


def _augmentations(cfg: CfgNode, base: list[Any]) -> list[Any]:
    augmentations = list(base)
    if cfg.INPUT.SCALE_JITTER:
        smallest, largest = cfg.INPUT.SCALE_JITTER
        augmentations.insert(0, ScaleJitter(smallest, largest))
    if cfg.INPUT.ANY_ORIENTATION:
        augmentations.append(T.RandomRotation([0, 90, 180, 270], sample_style="choice"))
    if cfg.INPUT.COLOR_JITTER:
        low, high = 1 - cfg.INPUT.COLOR_JITTER, 1 + cfg.INPUT.COLOR_JITTER
        augmentations += [T.RandomBrightness(low, high), T.RandomContrast(low, high), T.RandomSaturation(low, high)]
    return augmentations


def _check_classes(cfg: CfgNode, names: list[str]) -> None:
    key = "MODEL.RETINANET.NUM_CLASSES" if "Retina" in cfg.MODEL.META_ARCHITECTURE else "MODEL.ROI_HEADS.NUM_CLASSES"
    head = cfg.MODEL.RETINANET if "RETINANET" in key else cfg.MODEL.ROI_HEADS
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes", [])
        if len(classes) != head.NUM_CLASSES:
            raise DatasetError(
                f"{name} has {len(classes)} classes and the network {head.NUM_CLASSES}; set {key} {len(classes)}."
            )


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _register(name: str, annotations: Path, images: Path) -> None:
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("json_file") == str(annotations):
            return
        raise DatasetError(f"a data set named {name!r} is registered already; choose another NAME in DATASETS.CUSTOM.")
    register_coco_instances(name, {}, str(annotations), str(images))


def _expected_files(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    paths = [metadata.get(key) for key in ("json_file", "image_root", "dirname", "image_dir", "gt_dir")]
    return [str(path) for path in paths if path]
