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
from numpy.typing import NDArray

from ode_detect.detection.model import head_name
from ode_detect.media.errors import DatasetError, Problem, describe
from ode_detect.media.places import datasets_root
from ode_detect.ode.names import UnknownNameError, check_name

from . import custom
from .annotations import nothing_counts
from .boxes import are_corners, box_faults, box_problems, form_problems
from .classes import difference, listed
from .custom import class_names
from .mapper import Mapper
from .shapes import read_mask
from .sizes import anchor_problems, seen_boxes, size_problems

logger = logging.getLogger("ode_detect.detection")
# Data sets whose repairs were logged since `register_datasets`, which every run begins with.
_LOGGED: set[str] = set()
# Boxes of test sets as the network sees them, of those that `check_test_data` has read since.
_TESTED: dict[str, NDArray[np.float64]] = {}


def register_datasets(cfg: CfgNode) -> None:
    """Make the data sets of ode_detect, and those of ``DATASETS.CUSTOM``, known to Detectron2.

    Raises:
        DatasetError: an entry of CUSTOM lacks a key, or takes the name of another data set.
    """
    _LOGGED.clear()
    _TESTED.clear()
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
        DatasetError: files are missing, cannot be read, hold no picture or no object that counts, or have other
            classes than the network or the test data.
    """
    names = list(cfg.DATASETS.TRAIN)
    parts = [(name, read_dataset([name])) for name in names]
    dicts = [record for _, part in parts for record in part]
    _check_objects("trained", names, dicts)
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dicts = [record for name, part in parts for record in _without_empty(name, part)]
    _check_same_classes([*names, *cfg.DATASETS.TEST])
    _check_classes(cfg, names)
    _check_masks(cfg, names, dicts)
    _check_key_points(cfg, names, dicts)
    if cfg.MODEL.KEYPOINT_ON:
        dicts = filter_images_with_few_keypoints(dicts, cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)
    _warn_of_sizes(cfg, names, dicts)
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
        dicts = read_dataset([name], log=False) if dicts is None else dicts
        _check_objects("tested", [name], dicts)
        _check_classes(cfg, [name])
        _check_masks(cfg, [name], dicts)
        _check_key_points(cfg, [name], dicts)
        _TESTED[name] = seen_boxes(cfg, dicts, is_train=False)
    _check_same_classes(cfg.DATASETS.TEST)


def read_dataset(names: Sequence[str], *, log: bool = True) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format, without boxes that nothing can be learnt from.

    Args:
        names: the data sets, read one after the other.
        log: log what was dropped or repaired, once for each data set.

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
        if log and problems and name not in _LOGGED:
            _LOGGED.add(name)
            logger.warning("annotations of %s, all %d pictures kept:\n%s", name, len(read), describe(problems))
        dicts += read
    return dicts


def _warn_of_sizes(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict[str, Any]]) -> None:
    """Say what lets a training come to little and is no error: other sizes in the test, anchors that fit nothing."""
    what, boxes = ", ".join(names), seen_boxes(cfg, dicts, is_train=True)
    tests = [(name, _TESTED[name]) for name in cfg.DATASETS.TEST if name in _TESTED]
    for problem in [*anchor_problems(cfg, what, boxes, "training"), *size_problems(cfg, (what, boxes), tests)]:
        logger.warning("%s", " ".join(problem.where))


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


def _check_objects(what: str, names: Sequence[str], dicts: Sequence[dict[str, Any]]) -> None:
    """There must be something to learn, or to find, unless pictures come without any list of objects."""
    if not all("annotations" in record for record in dicts):
        return
    reason = nothing_counts([a for record in dicts for a in record["annotations"]], difficult=what == "trained")
    if reason:
        raise DatasetError(
            f"what is {what} on has an object at least that counts, and {', '.join(names)} has none: {reason}"
        )


def _without_empty(name: str, dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [d for d in dicts if not nothing_counts(d.get("annotations", [{}]), difficult=True)]
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
    if not corners.any() and are_corners(boxes, sizes):
        raise DatasetError(
            f"a box of COCO JSON is [x, y, width, height], and those of {places[0][0]['file_name']} and other pictures "
            "fit only as corners [x0, y0, x1, y1]. Write [x0, y0, x1 - x0, y1 - y0], or name the file in "
            "DATASETS.CUSTOM, which does."
        )
    faults = box_faults(boxes, sizes)
    kept = np.flatnonzero(~faults.dropped)

    def place(i: int) -> str:
        return f"{places[i][0]['file_name']}, bbox {list(places[i][1]['bbox'])}"

    problems = form_problems(boxes[kept], sizes[kept], lambda i: place(int(kept[i])))
    problems += box_problems(faults, place) + _drop_masks(places)
    for i in np.flatnonzero(faults.over & ~faults.dropped).tolist():
        places[i][1].update(bbox=faults.clipped[i].tolist(), bbox_mode=BoxMode.XYWH_ABS)
    bad = {id(places[i][1]) for i in np.flatnonzero(faults.dropped).tolist()}
    for record in dicts if bad else ():
        record["annotations"] = [a for a in record["annotations"] if id(a) not in bad]
    return tuple(problems)


def _drop_masks(places: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Problem]:
    """Take masks that are none out of dataset dicts that somebody else has read."""
    where = []
    for record, annotation in places:
        mask = annotation.get("segmentation")
        if mask and record.get("height") and record.get("width"):
            read = read_mask(mask, record["height"], record["width"])
            if read is None:
                del annotation["segmentation"]
                where.append(f"{record['file_name']}, bbox {list(annotation['bbox'])}")
            elif read is not mask:
                annotation["segmentation"] = read
    return (
        [Problem("masks that are neither polygons nor RLE of the picture's size", tuple(where), "left out")]
        if where
        else []
    )


def _check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    head = head_name(cfg)
    known = cfg.MODEL[head].NUM_CLASSES
    for name in names:
        found = class_names(name)
        classes = found.names if found else ()
        if len(classes) == known:
            continue
        # That one of them lacks a class is likelier than that the network has one too many.
        _check_same_classes([*_readable(cfg.DATASETS.TRAIN), name])
        raise DatasetError(
            f"{name} has {len(classes)} classes ({listed(classes)}) and the network {known}; set "
            f"MODEL.{head}.NUM_CLASSES {len(classes)} to train on these. A test set without an object of some class of "
            "the network names it all the same: VOC XML in CLASSES of DATASETS.CUSTOM, COCO JSON in its categories."
        )


def _readable(names: Sequence[str]) -> list[str]:
    """Those that can be read here: what is trained on need not be there to be tested, nor in order."""
    found = []
    for name in names:
        with contextlib.suppress(DatasetError):
            if class_names(name) is None:
                read_dataset([name], log=False)
            found.append(name)
    return found


def _check_same_classes(names: Sequence[str]) -> None:
    classes = [found for name in names if (found := class_names(name))]
    for other in classes[1:]:
        if wrong := difference(classes[0], other):
            raise DatasetError(wrong)


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


def _check_key_points(cfg: CfgNode, names: Sequence[str], dicts: Sequence[dict[str, Any]]) -> None:
    """An object has as many key points as the network, or none."""
    count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    learnt = [name for name in names if name in cfg.DATASETS.TRAIN]
    nameless = [name for name in learnt if not MetadataCatalog.get(name).get("keypoint_names")]
    if cfg.MODEL.KEYPOINT_ON and nameless:
        raise DatasetError(
            "key points (MODEL.KEYPOINT_ON) need names, and which of them change places in a mirror; "
            f"{', '.join(nameless)} has none. Set keypoint_names and keypoint_flip_map of "
            "detectron2.data.MetadataCatalog.get(NAME), as Detectron2 asks for it."
        )
    for record in dicts if cfg.MODEL.KEYPOINT_ON else ():
        for annotation in record.get("annotations", ()):
            points = annotation.get("keypoints")
            if points is not None and len(points) != 3 * count:
                raise DatasetError(
                    f"the network has {count} key points (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS), and an object in "
                    f"{record['file_name']} of {', '.join(names)} has {len(points) / 3:g}; set NUM_KEYPOINTS to what "
                    "the data have."
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
