"""Annotations as COCO content: checked in one pass, repaired where there is only one way to do it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from ode_detect.media.errors import DatasetError, Problem
from ode_detect.media.images import read_size

Content = dict[str, Any]
# A box may reach over the edge by rounding, in pixels, without a word.
_ROUNDING = 1.0
_NUMBERS = frozenset((int, float))
# The name of a class stands in tables, drawings and messages.
_LONGEST_NAME = 200
_NO_IMAGE_ID = "images without a whole number as id, or without file_name"
_SHARED_IMAGE_ID = "images that share their id with another one"


@dataclass(frozen=True)
class BoxFaults:
    """What is wrong with boxes, one flag per box, each of shape (N,).

    Attributes:
        unreal: a coordinate is NaN or infinite.
        empty: width or height is not above 0.
        outside: nothing of it is in the picture.
        over: it reaches over the edge of the picture by more than a pixel.
        clipped: the boxes within the picture, ``x, y, width, height``, shape (N, 4).
    """

    unreal: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    over: NDArray[np.bool_]
    clipped: NDArray[np.float64]

    @property
    def dropped(self) -> NDArray[np.bool_]:
        """Which boxes nothing can be learnt from."""
        return self.unreal | self.empty | self.outside


def box_faults(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> BoxFaults:
    """Judge boxes against their pictures.

    Args:
        boxes: ``x, y, width, height`` in pixels, shape (N, 4).
        sizes: width and height of the picture of each box, shape (N, 2).
    """
    unreal: NDArray[np.bool_] = np.asarray(~np.isfinite(boxes).all(axis=1), dtype=bool)
    x0, y0, width, height = np.where(unreal[:, None], 0.0, boxes).T
    first = np.stack([x0, y0], axis=1)
    last = first + np.stack([width, height], axis=1)
    empty = ~unreal & ((width <= 0) | (height <= 0))
    inside_first, inside_last = np.clip(first, 0, sizes), np.clip(last, 0, sizes)
    outside = ~unreal & ~empty & (inside_last <= inside_first).any(axis=1)
    over = ((first < -_ROUNDING) | (last > sizes + _ROUNDING)).any(axis=1) & ~(unreal | empty | outside)
    return BoxFaults(unreal, empty, outside, over, np.concatenate([inside_first, inside_last - inside_first], axis=1))


def box_problems(faults: BoxFaults, place: Callable[[int], str]) -> list[Problem]:
    """Say what is wrong with boxes; ``place`` tells which box it is."""
    rules = (
        (faults.unreal, "boxes that are not finite", "dropped"),
        (faults.empty, "boxes without width or height", "dropped"),
        (faults.outside, "boxes outside their picture", "dropped"),
        (faults.over, "boxes partly outside their picture", "clipped"),
    )
    return [
        Problem(rule, tuple(place(int(i)) for i in np.flatnonzero(which)), done)
        for which, rule, done in rules
        if which.any()
    ]


def read_coco(file: Path) -> Content:
    """Read COCO JSON.

    Raises:
        DatasetError: it cannot be read, or holds no list of images, annotations or categories, or no image.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} is not COCO JSON ({error}); datasets/README.md shows the form.") from error
    lists = ("images", "annotations", "categories")
    lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    wrong = [key for key in lists if key not in lacking and not all(isinstance(entry, dict) for entry in content[key])]
    if lacking or wrong or not content["images"]:
        raise DatasetError(
            f"COCO JSON holds lists of objects under images, annotations and categories, with at least one image; "
            f"{file} has {', '.join(f'no such list {key!r}' for key in lacking + wrong) or 'no image'}. "
            "datasets/README.md shows the form."
        )
    return dict(content)


def repair(content: Content, images: Path) -> tuple[Content, list[Problem]]:
    """Check COCO content, and repair what has only one cure.

    Args:
        content: with the lists ``images``, ``annotations`` and ``categories``; stays as it is.
        images: folder of the pictures, which are opened only if the size of one is not given.

    Returns:
        The repaired content, and what was found. If a problem has nothing ``done`` about it, the content is not usable.
    """
    problems = _category_problems(content["categories"])
    pictures, found = _repair_images(content["images"], images)
    problems += found
    if any(not p.done for p in problems):
        return content, problems
    annotations, found = _repair_annotations(content["annotations"], pictures, content["categories"])
    repaired = {**content, "images": pictures, "annotations": annotations}
    return repaired, problems + found


def usable(raw: Content, problems: Sequence[Problem], images: Path) -> Content:
    """Leave out what stops `repair`, and join categories of one name, so that the rest can be repaired.

    Args:
        raw: content that `repair` has refused.
        problems: what it found.
        images: folder of the pictures.

    Returns:
        The content without it; as it is where images cannot be told apart.
    """
    if any(problem.rule in (_NO_IMAGE_ID, _SHARED_IMAGE_ID) for problem in problems):
        return raw
    first: dict[str, int] = {}
    same: dict[Any, int] = {}
    categories = []
    for category in raw["categories"]:
        number, name = category.get("id"), category.get("name")
        if type(number) is int and isinstance(name, str) and number not in same:
            name = name[:_LONGEST_NAME]
            if name not in first:
                first[name] = number
                categories.append({**category, "name": name})
            same[number] = first[name]
    pictures = [image for image in raw["images"] if _has_size(image) or _file_size(image, images)]
    known = {image["id"] for image in pictures}
    annotations = []
    for a in raw["annotations"]:
        box = a.get("bbox")
        plain = isinstance(box, list) and len(box) == 4 and _NUMBERS.issuperset(map(type, box))
        ids = a.get("image_id"), a.get("category_id")
        if plain and all(map(_is_id, ids)) and ids[0] in known and ids[1] in same:
            annotations.append({**a, "category_id": same[ids[1]]})
    return {**raw, "images": pictures, "categories": categories, "annotations": annotations}


def to_records(content: Content, images: Path) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format, ordered by image id, of content that `repair` has passed.

    Categories are numbered from 0 in the order of their ids. An object with ``difficult`` keeps that key.
    """
    numbers = {c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        record = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": numbers[annotation["category_id"]],
            "iscrowd": annotation["iscrowd"],
        }
        if annotation.get("difficult"):
            record["difficult"] = 1
        if annotation.get("segmentation"):
            record["segmentation"] = _mask(annotation["segmentation"])
        if annotation.get("keypoints"):
            # COCO's key points are indices of pixels, Detectron2's coordinates.
            record["keypoints"] = [v + 0.5 if i % 3 != 2 else v for i, v in enumerate(annotation["keypoints"])]
        objects[annotation["image_id"]].append(record)
    return [
        {
            "file_name": str(images / image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(content["images"], key=lambda image: image["id"])
    ]


def _category_problems(categories: list[dict[str, Any]]) -> list[Problem]:
    problems = []
    bad = tuple(str(c) for c in categories if not _is_id(c.get("id")) or not isinstance(c.get("name"), str))
    if bad or not categories:
        problems.append(Problem("categories without a whole number as id, or without a name", bad or ("none at all",)))
    names = () if bad else tuple(c["name"] for c in categories if len(c["name"]) > _LONGEST_NAME)
    if names:
        long = tuple(f"{name[:40]}... ({len(name)} letters)" for name in names)
        problems.append(Problem(f"categories with a name of more than {_LONGEST_NAME} letters", long))
    for key in () if bad else ("id", "name"):
        counts = Counter(c[key] for c in categories)
        twice = tuple(f"{key} {value!r}" for value, count in counts.items() if count > 1)
        if twice:
            problems.append(Problem(f"categories that share their {key}", twice))
    return problems


def _repair_images(images: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Drop repeated entries, fill in sizes."""
    bad = tuple(str(i) for i in images if not _is_id(i.get("id")) or not isinstance(i.get("file_name"), str))
    if bad:
        return images, [Problem(_NO_IMAGE_ID, bad)]
    unique = {image["id"]: image for image in reversed(images)}
    other = tuple(f"{i['file_name']} (id {i['id']})" for i in images if unique[i["id"]] != i)
    if other:
        return images, [Problem(_SHARED_IMAGE_ID, other)]
    problems = []
    if len(unique) < len(images):
        counts = Counter(image["id"] for image in images)
        repeated = tuple(f"{unique[i]['file_name']} (id {i})" for i, count in counts.items() if count > 1)
        problems.append(Problem("images listed more than once", repeated, "read once"))
    unique = dict(reversed(unique.items()))
    sizeless = [image for image in unique.values() if not _has_size(image)]
    unreadable = []
    for image in sizeless:
        try:
            width, height = read_size(folder / image["file_name"])
        except DatasetError as error:
            unreadable.append(str(error))
        else:
            unique[image["id"]] = {**image, "width": width, "height": height}
    if unreadable:
        problems.append(Problem("images without width and height that cannot be read", tuple(unreadable)))
    elif sizeless:
        names = tuple(f"{image['file_name']}" for image in sizeless)
        problems.append(Problem("images without width and height", names, "taken from the picture"))
    return list(unique.values()), problems


def _repair_annotations(
    annotations: list[dict[str, Any]], images: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    by_id = {image["id"]: image for image in images}
    problems = _reference_problems(annotations, by_id, {c["id"] for c in categories})
    if problems or not annotations:
        return annotations, problems
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([[by_id[a["image_id"]][k] for k in ("width", "height")] for a in annotations], dtype=np.float64)
    faults = box_faults(boxes, sizes)

    def place(i: int) -> str:
        return (
            f"annotation {annotations[i].get('id', i)} of {by_id[annotations[i]['image_id']]['file_name']}, bbox "
            + ("[" + ", ".join(f"{v:g}" for v in boxes[i]) + "]")
        )

    problems = box_problems(faults, place)
    repaired = list(annotations)
    for i in np.flatnonzero(faults.over & ~faults.dropped).tolist():
        box = faults.clipped[i].tolist()
        area = {} if annotations[i].get("segmentation") else {"area": box[2] * box[3]}
        repaired[i] = {**annotations[i], "bbox": box, **area}
    repaired, found = _fill_in(repaired, by_id, place)
    dropped = faults.dropped
    kept = [a for a, drop in zip(repaired, dropped.tolist(), strict=True) if not drop] if dropped.any() else repaired
    return kept, problems + found


def _reference_problems(
    annotations: list[dict[str, Any]], images: dict[Any, dict[str, Any]], categories: set[Any]
) -> list[Problem]:
    """Annotations that do not say where, what, or of which picture."""
    wrong_box, no_image, no_category = [], [], []
    for i, annotation in enumerate(annotations):
        box, image, category = annotation.get("bbox"), annotation.get("image_id"), annotation.get("category_id")
        if type(box) is not list or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
            wrong_box.append(f"annotation {annotation.get('id', i)}, bbox {box}")
        if type(image) is not int or image not in images:
            no_image.append(f"annotation {annotation.get('id', i)}, image_id {image}")
        if type(category) is not int or category not in categories:
            no_category.append(f"annotation {annotation.get('id', i)}, category_id {category}")
    rules = {
        "annotations whose bbox is not [x, y, width, height]": wrong_box,
        "annotations of an unknown image": no_image,
        "annotations of an unknown category": no_category,
    }
    return [Problem(rule, tuple(where)) for rule, where in rules.items() if where]


def _fill_in(
    annotations: list[dict[str, Any]], images: dict[Any, dict[str, Any]], place: Callable[[int], str]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Ids that pycocotools can count by, ``iscrowd``, ``area``, and masks that are masks."""
    problems = []
    ids = [a.get("id") for a in annotations]
    usable = all(type(i) is int and i > 0 for i in ids)
    if not usable or len(set(ids)) < len(ids):
        counts = Counter(map(repr, ids))
        bad = tuple(place(n) for n, i in enumerate(ids) if type(i) is not int or i <= 0 or counts[repr(i)] > 1)
        # An object with the id 0 counts as missed, whatever is found: pycocotools takes 0 for "no object".
        problems.append(Problem("annotations without an id of their own above 0", bad, "all numbered anew"))
        annotations = [{**a, "id": n} for n, a in enumerate(annotations, start=1)]
    filled: dict[str, list[int]] = {"iscrowd": [], "area": [], "ignore": [], "mask": []}
    repaired = list(annotations)
    for n, annotation in enumerate(annotations):
        changes: dict[str, Any] = {}
        if annotation.get("ignore"):
            filled["ignore"].append(n)
            changes |= {"ignore": 0, "iscrowd": 1}
        elif annotation.get("iscrowd") not in (0, 1):
            filled["iscrowd"].append(n)
            changes["iscrowd"] = 0
        segmentation = annotation.get("segmentation")
        if segmentation and not _is_mask(segmentation, images[annotation["image_id"]]):
            filled["mask"].append(n)
            changes["segmentation"] = []
        area: Any = annotation.get("area")
        if type(area) not in _NUMBERS or not math.isfinite(area):
            filled["area"].append(n)
            changes["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if changes:
            repaired[n] = {**annotation, **changes}
    words = {
        "iscrowd": ("annotations without iscrowd", "taken as 0"),
        "area": ("annotations without area", "taken from the box"),
        "ignore": ("annotations with ignore", "taken as iscrowd"),
        "mask": ("masks that are neither polygons of 3 or more points nor RLE of the picture's size", "left out"),
    }
    problems += [
        Problem(words[key][0], tuple(map(place, where)), words[key][1]) for key, where in filled.items() if where
    ]
    return repaired, problems


def _is_mask(segmentation: Any, image: dict[str, Any]) -> bool:
    if isinstance(segmentation, dict):
        return bool(segmentation.get("counts") and segmentation.get("size") == [image["height"], image["width"]])
    return isinstance(segmentation, list) and any(_is_polygon(polygon) for polygon in segmentation)


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _mask(segmentation: Any) -> Any:
    """Polygons of at least three points, or compressed RLE."""
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if _is_polygon(polygon)]
    if isinstance(segmentation["counts"], list):
        return pycocotools.mask.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _is_id(value: object) -> bool:
    return type(value) is int


def _has_size(image: dict[str, Any]) -> bool:
    return all(type(image.get(key)) is int and image[key] > 0 for key in ("width", "height"))


def _file_size(image: dict[str, Any], folder: Path) -> tuple[int, int] | None:
    try:
        return read_size(folder / image["file_name"])
    except DatasetError:
        return None
