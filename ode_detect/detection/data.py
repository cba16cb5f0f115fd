"""Data sets of boxes: registered with Detectron2, checked before they are read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2.data.datasets  # noqa: F401  registers COCO, LVIS, VOC, Cityscapes
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.build import filter_images_with_few_keypoints, get_detection_dataset_dicts
from detectron2.structures import BoxMode

from ode_detect.media.errors import DatasetError, Problem, describe
from ode_detect.media.places import datasets_root
from ode_detect.ode.names import UnknownNameError, check_name

from . import custom
from .annotations import box_faults, box_problems
from .mapper import Mapper
from .model import head_name

logger = logging.getLogger("ode_detect.detection")
# Data sets whose repairs were told since `register_datasets`, which every run begins with.
_TOLD: set[str] = set()


def register_datasets(cfg: CfgNode) -> None:
    """Make the data sets of ode_detect, and those of ``DATASETS.CUSTOM``, known to Detectron2.

    Raises:
        DatasetError: an entry of CUSTOM lacks a key, or takes the name of another data set.
    """
    _TOLD.clear()
    trees = datasets_root() / "trees"
    for part in ("train", "test"):
        file = trees / "annotations" / f"{part}.json"
        custom.register({"NAME": f"trees_{part}", "IMAGES": str(trees / part), "ANNOTATIONS": str(file)})
    for entry in cfg.DATASETS.CUSTOM:
        custom.register(entry)


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


def train_data(cfg: CfgNode) -> tuple[list[dict[str, Any]], Mapper]:
    """The training pictures and what makes an example of one.

    Returns:
        Dataset dicts in Detectron2's format, and the mapper from one of them to a training example.

    Raises:
        DatasetError: files are missing, cannot be read, hold no picture, or have other classes than the network or
            the test data.
    """
    names = list(cfg.DATASETS.TRAIN)
    dicts = read_dataset(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    _check_classes(cfg, names)
    _check_same_classes([*names, *cfg.DATASETS.TEST])
    _check_masks(cfg, names, dicts)
    if cfg.MODEL.KEYPOINT_ON:
        dicts = filter_images_with_few_keypoints(dicts, cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)
    return dicts, Mapper(cfg, is_train=True)


def test_loader(cfg: CfgNode, name: str) -> Any:
    """Detectron2's loader of a data set in order, without augmentation; one picture at a time."""
    return build_detection_test_loader(read_dataset([name]), mapper=Mapper(cfg, is_train=False))


def check_test_data(cfg: CfgNode) -> None:
    """Read the data sets of ``DATASETS.TEST`` before hours of training, not after.

    Raises:
        DatasetError: as for `train_data`.
    """
    require_datasets(cfg.DATASETS.TEST)
    for name in cfg.DATASETS.TEST:
        with _explained(name):
            dicts = custom.load_with_truth(name)
        dicts = read_dataset([name], tell=False) if dicts is None else dicts
        _check_classes(cfg, [name])
        _check_masks(cfg, [name], dicts)
    _check_same_classes(cfg.DATASETS.TEST)


def read_dataset(names: Sequence[str], *, filter_empty: bool = False, tell: bool = True) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format, without boxes that nothing can be learnt from.

    Args:
        names: the data sets, read one after the other.
        filter_empty: leave out pictures without an object (crowd boxes are none).
        tell: log what was dropped or repaired, once for each data set.

    Raises:
        DatasetError: files are missing, cannot be read, or hold no picture.
    """
    require_datasets(names)
    dicts: list[dict[str, Any]] = []
    for name in names:
        with _explained(name):
            read = get_detection_dataset_dicts([name], filter_empty=False)
        problems = MetadataCatalog.get(name).get("problems")
        if problems is None:
            problems = _drop_boxes(read)
        if tell and problems and name not in _TOLD:
            _TOLD.add(name)
            logger.warning("annotations of %s, all %d pictures kept:\n%s", name, len(read), describe(problems))
        dicts += _without_empty(name, read) if filter_empty else read
    return dicts


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except (AssertionError, ValueError, KeyError, OSError, TypeError, SyntaxError) as error:
        raise DatasetError(
            f"the annotations of {name} cannot be used ({type(error).__name__}: {error}). "
            "They must be COCO JSON, or VOC XML, with at least one picture; datasets/README.md shows the form."
        ) from error


def _without_empty(name: str, dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Difficult objects are crowds to evaluation only.
    kept = [d for d in dicts if any(not a.get("iscrowd") or a.get("difficult") for a in d.get("annotations", [{}]))]
    if not kept:
        raise DatasetError(
            f"no picture of {name} has an object, and pictures without objects are left out; set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False, or check the annotations."
        )
    if len(kept) < len(dicts):
        logger.warning(
            "%s: %d of %d pictures have no object and are left out (DATALOADER.FILTER_EMPTY_ANNOTATIONS True)",
            *(name, len(dicts) - len(kept), len(dicts)),
        )
    return kept


def _drop_boxes(dicts: list[dict[str, Any]]) -> tuple[Problem, ...]:
    """Take bad boxes out of dataset dicts that somebody else has read."""
    if "annotations" not in dicts[0]:
        return ()
    places = [(d, a) for d in dicts for a in d["annotations"]]
    upright = [(d, a) for d, a in places if a.get("bbox_mode") in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)]
    if not upright or len(upright) < len(places):
        return ()
    boxes = np.array([a["bbox"] for _, a in places], dtype=np.float64).reshape(-1, 4)
    corners = np.array([a["bbox_mode"] == BoxMode.XYXY_ABS for _, a in places])
    boxes[corners, 2:] -= boxes[corners, :2]
    sizes = np.array([[d.get("width", np.inf), d.get("height", np.inf)] for d, _ in places], dtype=np.float64)
    faults = box_faults(boxes, sizes)
    problems = box_problems(faults, lambda i: f"{places[i][0]['file_name']}, bbox {list(places[i][1]['bbox'])}")
    for i in np.flatnonzero(faults.over & ~faults.dropped).tolist():
        places[i][1].update(bbox=faults.clipped[i].tolist(), bbox_mode=BoxMode.XYWH_ABS)
    bad = {id(places[i][1]) for i in np.flatnonzero(faults.dropped).tolist()}
    for record in dicts if bad else ():
        record["annotations"] = [a for a in record["annotations"] if id(a) not in bad]
    return tuple(problems)


def _check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    head = head_name(cfg)
    known = cfg.MODEL[head].NUM_CLASSES
    for name in names:
        count = len(MetadataCatalog.get(name).get("thing_classes", []))
        if count != known:
            raise DatasetError(
                f"{name} has {count} classes and the network {known}; set MODEL.{head}.NUM_CLASSES {count}."
            )


def _check_same_classes(names: Sequence[str]) -> None:
    classes = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    known = {name: list(value) for name, value in classes.items() if value is not None}
    for name, value in known.items():
        first = next(iter(known))
        if value != known[first]:
            raise DatasetError(
                "training and test data have the same classes in the same order; "
                f"{first} has {', '.join(known[first])}, and {name} has {', '.join(value)}. Give both the same "
                "categories (VOC XML: the same CLASSES in DATASETS.CUSTOM)."
            )


def _check_masks(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict[str, Any]]) -> None:
    """Masks must be there, and of the kind that the config says, if masks are learnt."""
    if not cfg.MODEL.MASK_ON:
        return
    what = ", ".join(names)
    for record in dicts:
        for annotation in record.get("annotations", ()):
            mask = annotation.get("segmentation")
            if annotation.get("iscrowd", 0) and not annotation.get("difficult"):
                continue
            if mask is None:
                raise DatasetError(
                    f"the network learns masks (MODEL.MASK_ON), and an object in {record['file_name']} of {what} has "
                    "none that can be used; set MODEL.MASK_ON False, or give each object its segmentation."
                )
            if isinstance(mask, dict) and cfg.INPUT.MASK_FORMAT == "polygon":
                raise DatasetError(
                    f"INPUT.MASK_FORMAT is polygon, and an object in {record['file_name']} of {what} has its mask as "
                    "RLE; set INPUT.MASK_FORMAT bitmask, which takes both."
                )


def _expected_files(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    source = metadata.get("source")
    if source is not None:
        return [str(path) for path in source.files()]
    paths = [metadata.get(key) for key in ("json_file", "image_root", "dirname", "image_dir", "gt_dir")]
    if metadata.get("evaluator_type") == "pascal_voc" or {"dirname", "split", "year"} <= set(metadata.as_dict()):
        root = Path(metadata.dirname)
        paths = [root / "Annotations", root / "JPEGImages", root / "ImageSets" / "Main" / f"{metadata.split}.txt"]
    return [str(path) for path in paths if path]
