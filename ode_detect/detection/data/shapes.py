"""Masks, key points and areas of objects, such as pycocotools can be handed.

pycocotools checks nothing: run lengths that do not add up never end, a polygon with a hole in its numbers takes all
memory, and an area is believed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask
from numpy.typing import NDArray

from ode_detect.media.errors import Problem

from .numbers import NUMBERS, number, numbers, whole

# A mask covers at least this share of its box, if it is not there to be measured. Of COCO's thinnest objects 4 %.
_LEAST = 0.02
# Outlines longer than so many times the picture are noise, and would take pycocotools gigabytes.
_LONGEST = 100
_RULES = {
    "mask": ("masks that are neither polygons of 3 or more points nor RLE of the picture's size", "left out"),
    "parts": ("masks of which a part is no polygon of 3 or more points", "that part left out"),
    "form": ("masks or key points in pairs, as text, or nested otherwise", "read as COCO's"),
    "points": ("key points that are not x, y and visibility (0, 1, 2) of each that the class has", "left out"),
    "count": ("num_keypoints that is not the number of key points", "counted"),
    "area": ("annotations without area", "taken from the box, or from the mask"),
    "far": ("areas that do not fit the box", "taken from the box, or from the mask"),
}


def repair_shapes(
    annotations: Sequence[dict[str, Any]],
    images: Mapping[Any, dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    place: Callable[[int], str],
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Make masks, key points and areas what COCO defines, or leave them out.

    Args:
        annotations: with ``bbox``, ``image_id`` and ``category_id``; stay as they are.
        images: the pictures by id, with ``width`` and ``height``.
        categories: of which ``keypoints`` names the key points.
        place: what to call an annotation, by its index.

    Returns:
        The annotations, repaired, and what was found.
    """
    points = _points(annotations, categories)
    repaired = list(annotations)
    found: dict[str, list[str]] = defaultdict(list)
    for i, annotation in enumerate(annotations):
        image = images.get(annotation["image_id"], {})
        height, width = image.get("height", 0), image.get("width", 0)
        changes, rules = _mask_changes(annotation, height, width)
        if "keypoints" in annotation:
            more, broken = _point_changes(annotation, points.get(annotation["category_id"]))
            changes, rules = changes | more, rules + broken
        mask = changes["segmentation"] if "segmentation" in changes else annotation.get("segmentation")
        rule, area = _area_change(annotation, mask, height, width)
        if rule:
            changes["area"] = area
            rules.append(rule)
        if changes:
            repaired[i] = {**annotation, **changes}
        for rule in rules:
            found[rule].append(place(i) + (f", area {annotation['area']}" if rule == "far" else ""))
    return repaired, [Problem(text, tuple(found[rule]), done) for rule, (text, done) in _RULES.items() if rule in found]


def read_mask(segmentation: Any, height: int, width: int) -> Any:
    """The mask that a segmentation is.

    Polygons may also be lists of points, or a single one, and numbers may be text.

    Args:
        segmentation: as it came from a file.
        height: of its picture.
        width: of its picture.

    Returns:
        Polygons ``[[x, y, x, y, ...], ...]`` or RLE, the argument itself if it is in order; None if it is no mask.
    """
    # pycocotools counts pixels in 32 bits.
    if not 0 < height * width < 2**32:
        return None
    if isinstance(segmentation, dict):
        return _read_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        return None
    reach = max(height, width)
    if all(_is_polygon(polygon, reach) for polygon in segmentation):
        return segmentation or None
    return [polygon for polygon in map(_flat, _nested(segmentation)) if _is_polygon(polygon, reach)] or None


def mask_area(mask: Any, height: int, width: int) -> int:
    """Pixels of a mask that `read_mask` has given."""
    if isinstance(mask, dict):
        return sum(_runs(mask["counts"])[1::2])
    return int(pycocotools.mask.area(pycocotools.mask.merge(pycocotools.mask.frPyObjects(mask, height, width))))


def fill_boxes(content: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Give annotations without ``bbox`` the box of their mask.

    Args:
        content: in COCO's form; stays as it is.
    """
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in content["images"] if type(i.get("id")) is int}
    annotations, where = list(content["annotations"]), []
    for i, annotation in enumerate(annotations):
        if annotation.get("bbox") or not annotation.get("segmentation") or type(annotation.get("image_id")) is not int:
            continue
        height, width = sizes.get(annotation["image_id"], (None, None))
        known = type(height) is int and type(width) is int
        mask = read_mask(annotation["segmentation"], height, width) if known else None
        if mask is not None:
            annotations[i] = {**annotation, "bbox": mask_box(mask)}
            where.append(f"annotation {annotation.get('id', i)}")
    if not where:
        return content, []
    return {**content, "annotations": annotations}, [
        Problem("annotations with a mask and without bbox", tuple(where), "taken from the mask")
    ]


def mask_box(mask: Any) -> list[float]:
    """The box ``x, y, width, height`` of a mask that `read_mask` has given."""
    if isinstance(mask, dict):
        runs = pycocotools.mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
        return [float(v) for v in pycocotools.mask.toBbox(runs)]
    points = np.concatenate([np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask])
    first, last = points.min(axis=0), points.max(axis=0)
    return [float(v) for v in (*first, *(last - first))]


def read_points(points: Any, count: int | None) -> list[Any] | None:
    """Key points as a flat list of x, y and visibility, the argument itself if it is one; None if they are none.

    Args:
        points: as they came from a file.
        count: of key points that there must be; None takes any.
    """
    flat = points
    if isinstance(points, list) and points and all(isinstance(point, list) and len(point) == 3 for point in points):
        flat = [value for point in points for value in point]
    flat = numbers(flat)
    if type(flat) is not list or len(flat) % 3 or not flat or (count is not None and len(flat) != 3 * count):
        return None
    if not NUMBERS.issuperset(map(type, flat)) or not {0, 1, 2}.issuperset(flat[2::3]):
        return None
    return flat if all(-1e9 < value < 1e9 for value in flat) else None


def _mask_changes(annotation: dict[str, Any], height: int, width: int) -> tuple[dict[str, Any], list[str]]:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return {}, []
    mask = read_mask(segmentation, height, width)
    if mask is segmentation:
        return {}, []
    if mask is None:
        return {"segmentation": []}, ["mask"]
    # Polygons that are left as they came, fewer of them; anything else was written in another form.
    same = isinstance(mask, list) and all(any(polygon is part for part in segmentation) for polygon in mask)
    fewer = isinstance(mask, list) and len(mask) < len(_nested(segmentation))
    return {"segmentation": mask}, (["parts"] if fewer else []) + ([] if same else ["form"])


def _point_changes(annotation: dict[str, Any], count: int | None) -> tuple[dict[str, Any], list[str]]:
    given = annotation["keypoints"]
    if not given:
        return {}, []
    points = read_points(given, count)
    if points is None:
        return {"keypoints": [], "num_keypoints": 0}, ["points"]
    changes: dict[str, Any] = {} if points is given else {"keypoints": points}
    labelled = sum(1 for visibility in points[2::3] if visibility > 0)
    rules = ["form"] if changes else []
    if annotation.get("num_keypoints") != labelled:
        changes["num_keypoints"] = labelled
        rules.append("count")
    return changes, rules


def _area_change(annotation: dict[str, Any], mask: Any, height: int, width: int) -> tuple[str, float]:
    """Why an area cannot be believed, "" if it can, and the right one."""
    area: Any = annotation.get("area")
    box_width, box_height = annotation["bbox"][2:]
    box = box_width * box_height
    if not (box_width > 0 and box_height > 0):
        return "", 0
    known = type(area) in NUMBERS
    # Some programs count both edges of a box.
    possible = known and 0 < area <= 1.05 * (box_width + 1) * (box_height + 1)
    if possible and area >= _LEAST * box:
        return "", area
    of_mask = mask_area(mask, height, width) if mask else 0
    if possible and of_mask and area >= of_mask / 2:
        return "", area
    return "far" if known and area == area else "area", of_mask or box


def _points(annotations: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]) -> dict[Any, int]:
    """How many key points each category has: as it names, else as most of its objects have."""
    counts: dict[Any, Counter[int]] = defaultdict(Counter)
    for annotation in annotations:
        points = read_points(annotation["keypoints"], None) if annotation.get("keypoints") else None
        if points:
            counts[annotation["category_id"]][len(points) // 3] += 1
    named = {
        c["id"]: len(c["keypoints"]) for c in categories if isinstance(c.get("keypoints"), list) and c["keypoints"]
    }
    return {category: count.most_common(1)[0][0] for category, count in counts.items()} | named


def _is_polygon(polygon: Any, reach: int) -> bool:
    """Whether it is a flat list of three or more points, none further away than the picture is large."""
    if type(polygon) is not list or len(polygon) < 6 or len(polygon) % 2 or not NUMBERS.issuperset(map(type, polygon)):
        return False
    # NaN hides from the extremes, and not from the sum.
    low, high = min(polygon), max(polygon)
    if not (-reach <= low and high <= 2 * reach) or sum(polygon) != sum(polygon):
        return False
    if len(polygon) * (high - low) <= _LONGEST * reach:
        return True
    points = np.array([*polygon, *polygon[:2]], dtype=np.float64).reshape(-1, 2)
    return bool(np.abs(np.diff(points, axis=0)).max(axis=1).sum() <= _LONGEST * reach)


def _nested(segmentation: list[Any]) -> list[Any]:
    """A list of polygons, also where there is one that is not in a list of its own."""
    if not any(isinstance(part, list) for part in segmentation) or all(map(_is_point, segmentation)):
        return [segmentation]
    return segmentation


def _flat(polygon: Any) -> Any:
    """A polygon as a flat list, also where it is a list of points."""
    if isinstance(polygon, list) and polygon and all(map(_is_point, polygon)):
        polygon = [value for point in polygon for value in point]
    return numbers(polygon)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number(v)) in NUMBERS for v in value)


def _read_rle(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any] | None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or [whole(v) for v in size] != [height, width]:
        return None
    read = list(map(whole, counts)) if isinstance(counts, list) else counts
    try:
        runs = _runs(read)
    except ValueError:
        return None
    if sum(runs) != height * width or not any(runs[1::2]):
        return None
    plain = all(type(v) is int for v in size) and (not isinstance(counts, list) or all(type(v) is int for v in counts))
    return segmentation if plain else {"size": [height, width], "counts": read}


def _runs(counts: Any) -> list[int]:
    """Run lengths, of a list of them or of pycocotools' text.

    Raises:
        ValueError: they are neither.
    """
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("run lengths are whole numbers from 0 on")
        return counts
    if not isinstance(counts, (str, bytes)) or not counts:
        raise ValueError("run lengths are a list or a text")
    digits = np.frombuffer(counts.encode("latin-1") if isinstance(counts, str) else counts, np.uint8).astype(int) - 48
    # Six bits each: five of the number, the lowest first, and whether more follow.
    ends = np.flatnonzero((digits & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if digits.min() < 0 or digits.max() > 63 or not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("this is no text of run lengths")
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a run length has at most 32 bits")
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    values: NDArray[np.int64] = np.add.reduceat((digits & 31) << (5 * places), starts)
    values -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    # From the fourth on each is written as the difference to the last but one.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError("run lengths are whole numbers from 0 on")
    runs: list[int] = values.tolist()
    return runs
