"""Annotations as COCO content: checked in one pass, repaired where there is only one way to do it."""

from __future__ import annotations

import math
import os.path
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.structures import BoxMode

from ode_detect.media.errors import DatasetError, Problem, describe
from ode_detect.media.images import read_size
from ode_detect.media.names import one_line, other_spellings, same_name
from ode_detect.media.text import read_json

from .boxes import are_corners, box_faults, box_problems, corner_problem, form_problems
from .formats import other_json
from .numbers import NUMBERS, read_numbers
from .shapes import fill_boxes, repair_shapes

Content = dict[str, Any]
# The name of a class stands in tables, drawings and messages.
_LONGEST_NAME = 200
_NO_IMAGE_ID = "images without a whole number as id, or without file_name"
_JOINED = "joined under the first id"
_SHARED_IMAGE_ID = "images that share their id with another one"


def read_coco(file: Path) -> Content:
    """Read COCO JSON.

    Raises:
        DatasetError: it cannot be read, or holds no list of images, annotations or categories, or no image.
    """
    content = read_json(file)
    lists = ("images", "annotations", "categories")
    lacking = [key for key in lists if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    wrong = [key for key in lists if key not in lacking and not all(isinstance(entry, dict) for entry in content[key])]
    if lacking or wrong or not content["images"]:
        raise DatasetError(
            f"COCO JSON holds lists of objects under images, annotations and categories, with at least one image; "
            f"{file} has {', '.join(f'no such list {key!r}' for key in lacking + wrong) or 'no image'}. "
            f"{other_json(content) or 'datasets/README.md shows the form.'}"
        )
    return dict(content)


def repair(content: Content, images: Path) -> tuple[Content, list[Problem]]:
    """Check COCO content, and repair what has only one cure.

    Args:
        content: with the lists ``images``, ``annotations`` and ``categories``; stays as it is.
        images: folder of the pictures, which are opened only if the size of one is not given.

    Returns:
        The repaired content, and what was found. If a problem has nothing ``done`` about it, the content is not usable,
        and only its numbers and missing boxes are read.
    """
    content, problems = read_numbers(content)
    content, found = fill_boxes(content)
    problems += found
    categories, found = _repair_categories(content["categories"])
    problems += found
    pictures, found = _repair_images(content["images"], images)
    problems += found
    if any(not p.done for p in problems):
        return content, problems
    annotations, found = _repair_annotations(content["annotations"], pictures, categories)
    repaired = {**content, "images": pictures, "annotations": annotations, "categories": categories}
    problems += found
    if any(not p.done for p in found):
        return repaired, problems
    # The size belongs to it: boxes in pixels of another size must be scaled first.
    of = {i["id"]: (os.path.normpath(i["file_name"]), i["width"], i["height"]) for i in pictures}
    groups = spread(repaired, of)
    return (
        (join(repaired, groups), [*problems, spread_problem(repaired, groups, _JOINED)])
        if groups
        else (
            repaired,
            problems,
        )
    )


def same_pictures(content: Content, pictures: Mapping[int, Hashable]) -> list[list[int]]:
    """Ids of entries for the same picture, in their order, for each picture of several entries.

    Args:
        content: as `repair` gives it.
        pictures: which picture an entry is for, by the id of the entry; an id that is missing is for none.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    if len(set(pictures.values())) < len(pictures):
        for image in content["images"]:
            if image["id"] in pictures:
                groups[pictures[image["id"]]].append(image["id"])
    return [ids for ids in groups.values() if len(ids) > 1]


def spread(content: Content, pictures: Mapping[int, Hashable]) -> list[list[int]]:
    """Those of `same_pictures` with other boxes in one entry than in another, which teaches that objects are none."""
    groups = same_pictures(content, pictures)
    boxes: dict[int, set[Hashable]] = {number: set() for ids in groups for number in ids}
    for annotation in content["annotations"] if groups else ():
        if annotation["image_id"] in boxes:
            boxes[annotation["image_id"]].add(_box_key(annotation))
    return [ids for ids in groups if any(boxes[number] != boxes[ids[0]] for number in ids)]


def join(content: Content, groups: Sequence[Sequence[int]]) -> Content:
    """Put the boxes of entries for one picture into the first of them, each once, and leave out the others."""
    first = {number: ids[0] for ids in groups for number in ids}
    owner: dict[Hashable, int] = {}
    annotations = []
    for annotation in content["annotations"]:
        number = annotation["image_id"]
        if number in first:
            # One entry may repeat a box, which is another fault.
            if owner.setdefault((first[number], _box_key(annotation)), number) != number:
                continue
            annotation = {**annotation, "image_id": first[number]}
        annotations.append(annotation)
    images = [image for image in content["images"] if first.get(image["id"], image["id"]) == image["id"]]
    return {**content, "images": images, "annotations": annotations}


def spread_problem(content: Content, groups: Sequence[Sequence[int]], done: str) -> Problem:
    """Say which pictures have their boxes in several entries."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    where = tuple(
        f"{' = '.join(dict.fromkeys(names[number] for number in ids))} (ids {', '.join(map(str, ids))})"
        for ids in groups
    )
    return Problem("pictures whose boxes are spread over several entries", where, done)


def usable(raw: Content, problems: Sequence[Problem], images: Path) -> Content:
    """Leave out what stops `repair`, and join categories of one name, so that the rest can be repaired.

    Args:
        raw: content that `repair` has refused.
        problems: what it found.
        images: folder of the pictures.

    Returns:
        The content without it; as it is where images cannot be distinguished.
    """
    if any(problem.rule in (_NO_IMAGE_ID, _SHARED_IMAGE_ID) for problem in problems):
        return raw
    first: dict[str, int] = {}
    same: dict[Any, int] = {}
    categories = []
    for category in raw["categories"]:
        number, name = category.get("id"), category.get("name")
        if type(number) is int and isinstance(name, str) and number not in same:
            name = one_line(name)[:_LONGEST_NAME]
            if name not in first:
                first[name] = number
                categories.append({**category, "name": name})
            same[number] = first[name]
    pictures = [image for image in raw["images"] if _has_size(image) or _file_size(image, images)]
    known = {image["id"] for image in pictures}
    annotations = []
    for a in raw["annotations"]:
        box = a.get("bbox")
        ids = a.get("image_id"), a.get("category_id")
        if _is_box(box) and all(map(_is_id, ids)) and ids[0] in known and ids[1] in same:
            annotations.append({**a, "category_id": same[ids[1]]})
    return {**raw, "images": pictures, "categories": categories, "annotations": annotations}


def nothing_counts(annotations: Iterable[Mapping[str, Any]], *, difficult: bool) -> str:
    """Why no object can be learnt, or found, and what to do about it; "" if there is one.

    Args:
        annotations: of all pictures, as COCO content or as dataset dicts.
        difficult: whether objects with that mark count: they are trained on, and not evaluated on.
    """
    ignored: Counter[str] = Counter()
    for annotation in annotations:
        if annotation.get("difficult"):
            ignored["difficult 1"] += 1
        elif annotation.get("iscrowd"):
            ignored["iscrowd 1"] += 1
        else:
            return ""
        if difficult and ignored["difficult 1"]:
            return ""
    if not ignored:
        return "there is no annotation that can be used; see whether the annotations are those of these pictures."
    marks = " and ".join(f"{count} of {ignored.total()} objects have {mark}" for mark, count in ignored.items())
    rle = " (a mask may be RLE without being a crowd)" if "iscrowd 1" in ignored else ""
    return f"{marks}, and are left aside; write 0 where it is a single object that is to be found{rle}."


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
            mask = annotation["segmentation"]
            runs = isinstance(mask, dict) and isinstance(mask["counts"], list)
            record["segmentation"] = pycocotools.mask.frPyObjects(mask, *mask["size"]) if runs else mask
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


def _repair_categories(categories: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Bring names into one line."""
    bad = tuple(str(c) for c in categories if not _is_id(c.get("id")) or not isinstance(c.get("name"), str))
    if bad or not categories:
        rule = "categories without a whole number as id, or without a name"
        return categories, [Problem(rule, bad or ("none at all",))]
    repaired = [{**c, "name": one_line(c["name"])} for c in categories]
    broken = tuple(
        repr(c["name"])[:_LONGEST_NAME]
        for c, new in zip(categories, repaired, strict=True)
        if same_name(c["name"]) != new["name"]
    )
    problems = [Problem("names of categories that are no line of text", broken, "read as one")] if broken else []
    long = tuple(f"{c['name'][:40]}... ({len(c['name'])} letters)" for c in repaired if len(c["name"]) > _LONGEST_NAME)
    if long:
        problems.append(Problem(f"categories with a name of more than {_LONGEST_NAME} letters", long))
    for key in ("id", "name"):
        counts = Counter(c[key] for c in repaired)
        twice = tuple(f"{key} {value!r}" for value, count in counts.items() if count > 1)
        if twice:
            problems.append(Problem(f"categories that share their {key}", twice))
    return repaired, problems


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
    spelt = other_spellings(folder, (image["file_name"] for image in unique.values()))
    if spelt:
        where = tuple(f"{name!a} is {file!a}" for name, file in spelt.items())
        rule = "names of pictures that are spelt in another way than the files (letters with accents, backslashes)"
        problems.append(Problem(rule, where, "read as the file that is there"))
        unique = {
            i: {**image, "file_name": spelt.get(image["file_name"], image["file_name"])} for i, image in unique.items()
        }
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

    def place(i: int) -> str:
        return (
            f"annotation {annotations[i].get('id', i)} of {by_id[annotations[i]['image_id']]['file_name']}, bbox "
            + ("[" + ", ".join(f"{v:g}" for v in annotations[i]["bbox"]) + "]")
        )

    repaired = list(annotations)
    if are_corners(boxes, sizes):
        problems.append(corner_problem(place, len(boxes), "width taken as x1 - x0, height as y1 - y0"))
        boxes[:, 2:] -= boxes[:, :2]
        repaired = [{**a, "bbox": box} for a, box in zip(annotations, boxes.tolist(), strict=True)]
    faults = box_faults(boxes, sizes)
    problems += box_problems(faults, place)
    for i in np.flatnonzero(faults.over & ~faults.dropped).tolist():
        box = faults.clipped[i].tolist()
        area = {} if annotations[i].get("segmentation") else {"area": box[2] * box[3]}
        repaired[i] = {**repaired[i], "bbox": box, **area}
    kept = np.flatnonzero(~faults.dropped)

    def place_of_kept(i: int) -> str:
        return place(int(kept[i]))

    problems += form_problems(boxes[kept], sizes[kept], place_of_kept)
    repaired, found = _fill_in([repaired[i] for i in kept.tolist()], place_of_kept)
    problems += found
    repaired, found = repair_shapes(repaired, by_id, categories, place_of_kept)
    return repaired, problems + found


def _reference_problems(
    annotations: list[dict[str, Any]], images: dict[Any, dict[str, Any]], categories: set[Any]
) -> list[Problem]:
    """Annotations that do not say where, what, or of which picture."""
    wrong_box, no_image, no_category = [], [], []
    for i, annotation in enumerate(annotations):
        box, image, category = annotation.get("bbox"), annotation.get("image_id"), annotation.get("category_id")
        if not _is_box(box):
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
    annotations: list[dict[str, Any]], place: Callable[[int], str]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Ids that pycocotools can count by, and ``iscrowd``."""
    problems = []
    ids = [a.get("id") for a in annotations]
    usable = all(type(i) is int and i > 0 for i in ids)
    if not usable or len(set(ids)) < len(ids):
        counts = Counter(map(repr, ids))
        bad = tuple(place(n) for n, i in enumerate(ids) if type(i) is not int or i <= 0 or counts[repr(i)] > 1)
        # An object with the id 0 counts as missed, whatever is found: pycocotools takes 0 for "no object".
        problems.append(Problem("annotations without an id of their own above 0", bad, "all numbered again"))
        annotations = [{**a, "id": n} for n, a in enumerate(annotations, start=1)]
    filled: dict[str, list[int]] = {"iscrowd": [], "ignore": []}
    repaired = list(annotations)
    for n, annotation in enumerate(annotations):
        changes: dict[str, Any] = {}
        if annotation.get("ignore"):
            filled["ignore"].append(n)
            changes |= {"ignore": 0, "iscrowd": 1}
        elif annotation.get("iscrowd") not in (0, 1):
            filled["iscrowd"].append(n)
            changes["iscrowd"] = 0
        if changes:
            repaired[n] = {**annotation, **changes}
    words = {
        "iscrowd": ("annotations without iscrowd", "taken as 0"),
        "ignore": ("annotations with ignore", "taken as iscrowd"),
    }
    problems += [
        Problem(words[key][0], tuple(map(place, where)), words[key][1]) for key, where in filled.items() if where
    ]
    return repaired, problems


def _is_box(value: Any) -> bool:
    if type(value) is not list or len(value) != 4 or not NUMBERS.issuperset(map(type, value)):
        return False
    try:
        math.hypot(*value)
    except OverflowError:  # of a whole number beyond any float; what is infinite or NaN is a box, and a bad one
        return False
    return True


def _box_key(annotation: dict[str, Any]) -> Hashable:
    return (annotation["category_id"], annotation["iscrowd"], *(round(v, 2) for v in annotation["bbox"]))


def _is_id(value: object) -> bool:
    return type(value) is int and abs(value) < 2**63


def _has_size(image: dict[str, Any]) -> bool:
    return all(type(image.get(key)) is int and 0 < image[key] < 2**31 for key in ("width", "height"))


def _file_size(image: dict[str, Any], folder: Path) -> tuple[int, int] | None:
    try:
        return read_size(folder / image["file_name"])
    except DatasetError:
        return None


def refuse(problems: Sequence[Problem], source: object) -> None:
    """Stop at what reading cannot repair.

    Args:
        problems: what was found.
        source: the annotations, for the message.

    Raises:
        DatasetError: a problem has nothing done about it.
    """
    fatal = [problem for problem in problems if not problem.done]
    if fatal:
        raise DatasetError(
            f"{source} cannot be used as COCO JSON, or VOC XML, with its pictures:\n{describe(fatal)}\n"
            "Correct them, or have tools/check_dataset.py list all of them (and write a repaired copy by --fix)."
        )
