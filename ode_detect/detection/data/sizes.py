"""Sizes of objects as the network sees them, in training and in the test, and how its anchors fit them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from ode_detect.detection.model import head_name
from ode_detect.media.errors import Problem

from .mapper import scale_factors

# A pyramid separates sizes in octaves; half of one and more is another level.
_APART = 1.5
# Share of the objects below which anchors are wrong: those of COCO's recipes fit a third of COCO's objects.
_HARDLY_ANY = 0.1
# Medians of so many pictures do not change any more.
_PICTURES = 1000


def anchors(cfg: CfgNode) -> NDArray[np.float64]:
    """Width and height of each anchor of a config, in pixels of the network's input, shape (N, 2).

    Raises:
        ValueError: there are no sizes or ratios, one of them is not above 0, they are for another number of feature
            maps than the config has, or not as many on each of them.
    """
    generator = cfg.MODEL.ANCHOR_GENERATOR
    features = list((cfg.MODEL.RETINANET if head_name(cfg) == "RETINANET" else cfg.MODEL.RPN).IN_FEATURES)
    sizes = _by_level(generator.SIZES, features, "SIZES")
    ratios = _by_level(generator.ASPECT_RATIOS, features, "ASPECT_RATIOS")
    counts = [len(of_level) * len(by) for of_level, by in zip(sizes, ratios, strict=True)]
    if len(set(counts)) > 1:
        listed = ", ".join(f"{count} on {feature}" for count, feature in zip(counts, features, strict=True))
        raise ValueError(
            "each feature map has as many anchors (sizes times ratios) as the others, since they share one head, and "
            f"there are {listed}; give each list of MODEL.ANCHOR_GENERATOR.SIZES as many sizes, and each of "
            "ASPECT_RATIOS as many ratios."
        )
    shapes = {
        (size / ratio**0.5, size * ratio**0.5)
        for of_level, by in zip(sizes, ratios, strict=True)
        for size, ratio in itertools.product(of_level, by)
    }
    return np.array(sorted(shapes), dtype=np.float64).reshape(-1, 2)


def positive_overlap(cfg: CfgNode) -> float:
    """The overlap with an object at which an anchor becomes a positive example."""
    return float((cfg.MODEL.RETINANET if head_name(cfg) == "RETINANET" else cfg.MODEL.RPN).IOU_THRESHOLDS[-1])


def best_overlap(boxes: NDArray[np.float64], shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each box with the best anchor, both centred at one point, shape (N,).

    Args:
        boxes: width and height, shape (N, 2).
        shapes: those of the anchors, shape (M, 2).
    """
    shared = np.minimum(boxes[:, None], shapes[None]).prod(axis=2)
    union = boxes.prod(axis=1)[:, None] + shapes.prod(axis=1)[None] - shared
    return np.asarray((shared / union).max(axis=1))


def covered(cfg: CfgNode, boxes: NDArray[np.float64]) -> float | None:
    """Share of the boxes that an anchor fits so well that it is a positive example; None if there is no box.

    Args:
        cfg: with the anchors.
        boxes: width and height in pixels of the network's input, shape (N, 2).
    """
    return float((best_overlap(boxes, anchors(cfg)) >= positive_overlap(cfg)).mean()) if len(boxes) else None


def median_size(boxes: NDArray[np.float64]) -> float:
    """The median of the square root of the area."""
    return float(np.median(np.sqrt(boxes.prod(axis=1))))


def seen_boxes(cfg: CfgNode, dicts: Sequence[dict[str, Any]], *, is_train: bool) -> NDArray[np.float64]:
    """Width and height of objects in pixels of the network's input, shape (N, 2).

    Args:
        cfg: says how pictures are resized.
        dicts: in Detectron2's format. Of many, some evenly spread ones are taken. Crowd boxes are left out, and so are
            pictures without boxes or without a size.
        is_train: resize as in training, else as in the test.
    """
    with_objects = [d for d in dicts if d.get("annotations") and d.get("width") and d.get("height")]
    places = np.linspace(0, len(with_objects) - 1, min(_PICTURES, len(with_objects))).round().astype(int)
    chosen = [with_objects[i] for i in places.tolist()]
    factors = scale_factors(cfg, [(d["height"], d["width"]) for d in chosen], is_train=is_train)
    boxes = [
        _size(annotation) * factor
        for record, factor in zip(chosen, factors, strict=True)
        for annotation in record["annotations"]
        if "bbox" in annotation and (annotation.get("difficult") or not annotation.get("iscrowd"))
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 2)


def size_problems(
    cfg: CfgNode, train: tuple[str, NDArray[np.float64]], tests: Sequence[tuple[str, NDArray[np.float64]]]
) -> list[Problem]:
    """Test data whose objects the network sees at another size than those that it is trained on.

    Args:
        cfg: says how pictures are resized.
        train: name, and width and height of the objects as they are seen in training, shape (N, 2).
        tests: the same of each test set, as they are seen in the test.
    """
    name, boxes = train
    problems = []
    for other, tested in tests:
        if not len(boxes) or not len(tested):
            continue
        ours, theirs = median_size(boxes), median_size(tested)
        if max(ours, theirs) < _APART * min(ours, theirs):
            continue
        larger, where = max(ours, theirs) / min(ours, theirs), "training" if ours > theirs else "the test"
        text = (
            f"the median object of {name} has {ours:.0f} pixels (square root of the area) in training, and that of "
            f"{other} {theirs:.0f} in the test, so objects are {larger:.1f} times as large in {where}. "
            f"{_cure(cfg, ours / theirs)}"
        )
        problems.append(Problem("test sets with objects of another size than in training", (text,), "kept"))
    return problems


def anchor_problems(cfg: CfgNode, name: str, boxes: NDArray[np.float64], use: str) -> list[Problem]:
    """Anchors that fit hardly any object.

    Args:
        cfg: with the anchors.
        name: of the data set.
        boxes: width and height of its objects in pixels of the network's input, shape (N, 2).
        use: "training" or "the test".
    """
    share = covered(cfg, boxes)
    if share is None or share >= _HARDLY_ANY:
        return []
    low, high = np.percentile(np.sqrt(boxes.prod(axis=1)), (5, 95))
    of_anchors = np.sqrt(anchors(cfg).prod(axis=1))
    text = (
        f"{100 * share:.1f} % of the objects of {name} have an anchor that overlaps them by {positive_overlap(cfg):g} "
        f"or more in {use}, so hardly any is a positive example. Most objects have {low:.0f} to {high:.0f} pixels "
        f"(square root of the area), the anchors {of_anchors.min():.0f} to {of_anchors.max():.0f}: set "
        "MODEL.ANCHOR_GENERATOR.SIZES (and ASPECT_RATIOS, height by width) to the objects, or resize the pictures."
    )
    return [Problem("sets of objects that the anchors do not fit", (text,), "kept")]


def _cure(cfg: CfgNode, ratio: float) -> str:
    """What to set, where objects are so many times as large in training as in the test."""
    keys = cfg.INPUT
    if keys.MIN_SIZE_TEST:
        text = f"Set INPUT.MIN_SIZE_TEST to about {round(keys.MIN_SIZE_TEST * ratio)} (it is {keys.MIN_SIZE_TEST})"
    elif keys.SCALE_JITTER:
        low, high = (value / ratio for value in keys.SCALE_JITTER)
        text = f"Set INPUT.SCALE_JITTER to about [{low:.2g}, {high:.2g}]; MIN_SIZE_TEST 0 takes pictures as they are"
    else:
        text = "Set INPUT.MIN_SIZE_TEST, which takes pictures as they are, to the size that they have in training"
    if max(keys.MIN_SIZE_TRAIN) == 0 and keys.MIN_SIZE_TEST:
        text += (
            f", or train at that size: INPUT.MIN_SIZE_TRAIN [{keys.MIN_SIZE_TEST}] with INPUT.SCALE_JITTER "
            "[0.75, 1.33], factors of it"
        )
    if keys.CROP.ENABLED and not keys.SCALE_JITTER and max(keys.MIN_SIZE_TRAIN):
        text += (
            ". Without INPUT.SCALE_JITTER pictures are cropped first, and the crop is resized to MIN_SIZE_TRAIN, as in "
            "Detectron2; with INPUT.SCALE_JITTER [1.0, 1.0] they are resized first"
        )
    return f"{text}."


def _by_level(values: Any, features: Sequence[str], key: str) -> list[list[float]]:
    """Sizes or ratios of each feature map; one list is for all of them, as in Detectron2."""
    nested = [list(v) if isinstance(v, (list, tuple)) else v for v in values]
    lists = [v if isinstance(v, list) else [v] for v in nested]
    levels = [list(itertools.chain(*lists))] if not any(isinstance(v, list) for v in nested) else lists
    if len(levels) not in (1, len(features)):
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.{key} has a list for each of the {len(features)} feature maps "
            f"({', '.join(features)}), or one for all, and there are {len(levels)}; give {len(features)} or 1."
        )
    for level in levels:
        if not level or not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in level):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{key} holds numbers above 0, one or more for each feature map, and it is "
                f"{values!r}; write [[32], [64]], say."
            )
    return levels * len(features) if len(levels) == 1 else levels


def _size(annotation: dict[str, Any]) -> NDArray[np.float64]:
    x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return np.array([x1 - x0, y1 - y0], dtype=np.float64)
