"""Which detections are right at one overlap: pycocotools' own matching, taken from its evaluation."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ode_detect.detection.data.shapes import repair_shapes
from ode_detect.media.errors import describe

logger = logging.getLogger("ode_detect.detection")

# An object that need not be found and is no mistake to find, as ``iscrowd`` of its annotation: pycocotools ignores what
# is true, and takes for a crowd (overlap relative to the detection, any number of matches) what is 1 as an integer.
IGNORED = 0.5


@dataclass(frozen=True)
class Matches:
    """Detections and objects of a data set, matched at one overlap.

    Attributes:
        iou: The overlap.
        names: The classes.
        objects: Objects of each class; ignored ones and crowds do not count.
        confidence: Scores of the detections of each class, shape (N,); those on ignored objects and crowds are left
            out.
        hits: Which of them are on an object of their class, each object being taken once, shape (N,).
        ap50: Average precision of each class at IoU 0.5, in [0, 1]; NaN where it has no object.
        threshold: Score from which a detection is in the confusion matrix.
        confusion: Counts by true class and predicted class, shape (classes + 1, classes + 1), background last. Here
            objects and detections are matched whatever their classes.
    """

    iou: float
    names: tuple[str, ...]
    objects: tuple[int, ...]
    confidence: tuple[NDArray[np.float64], ...]
    hits: tuple[NDArray[np.bool_], ...]
    ap50: tuple[float, ...]
    threshold: float
    confusion: NDArray[np.int64]


def match(evaluated: COCOeval, names: Sequence[str], threshold: float) -> Matches:
    """Read off an evaluation by pycocotools what it matched at its first overlap, over objects of all sizes.

    Args:
        evaluated: After ``evaluate()`` and ``accumulate()``, for boxes, with the default overlaps and areas.
        names: The classes, in the order of the category ids.
        threshold: Score in [0, 1] from which a detection is in the confusion matrix.
    """
    pictures, areas = len(evaluated.params.imgIds), len(evaluated.params.areaRng)
    objects, confidence, hits = [], [], []
    for index in range(len(names)):
        # By class, then area range, then picture; the first range is that of all sizes.
        begin = index * areas * pictures
        found = [one for one in evaluated.evalImgs[begin : begin + pictures] if one is not None]
        counted = _joined([~np.asarray(one["dtIgnore"][0], dtype=bool) for one in found], bool)
        confidence.append(_joined([one["dtScores"] for one in found], float)[counted])
        hits.append(_joined([one["dtMatches"][0] > 0 for one in found], bool)[counted])
        objects.append(sum(int(np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)) for one in found))
    precision = evaluated.eval["precision"][0, :, :, 0, -1]
    return Matches(
        iou=float(evaluated.params.iouThrs[0]),
        names=tuple(names),
        objects=tuple(objects),
        confidence=tuple(confidence),
        hits=tuple(hits),
        ap50=tuple(float(ap) if ap > -1 else float("nan") for ap in precision.mean(axis=0)),
        threshold=threshold,
        confusion=confusion(evaluated, threshold),
    )


def confusion(evaluated: COCOeval, threshold: float) -> NDArray[np.int64]:
    """Match the detections above a threshold with objects of any class, and count what was taken for what.

    Args:
        evaluated: An evaluation of boxes, for its objects, detections, first overlap and most detections per picture.
        threshold: Score from which a detection counts.

    Returns:
        Counts by true class and predicted class, in the order of the category ids, background last,
        shape (C + 1, C + 1).
    """
    truth = evaluated.cocoGt
    kept = [found for found in evaluated.cocoDt.dataset["annotations"] if found["score"] >= threshold]
    anyhow = COCOeval(truth, load_detections(truth, [{**found} for found in kept]), "bbox")
    anyhow.params.useCats = 0
    anyhow.params.imgIds = evaluated.params.imgIds
    anyhow.params.iouThrs = evaluated.params.iouThrs[:1]
    anyhow.params.areaRng, anyhow.params.areaRngLbl = evaluated.params.areaRng[:1], evaluated.params.areaRngLbl[:1]
    anyhow.params.maxDets = evaluated.params.maxDets[-1:]
    with contextlib.redirect_stdout(io.StringIO()):
        anyhow.evaluate()
    place = {category: index for index, category in enumerate(evaluated.params.catIds)}
    counts = np.zeros((len(place) + 1, len(place) + 1), dtype=np.int64)
    for picture in anyhow.evalImgs:
        if picture is None:
            continue
        for found, on, ignored in zip(picture["dtIds"], picture["dtMatches"][0], picture["dtIgnore"][0], strict=True):
            if not ignored:
                true = place[truth.anns[int(on)]["category_id"]] if on else -1
                counts[true, place[anyhow.cocoDt.anns[found]["category_id"]]] += 1
        for one, by, ignored in zip(picture["gtIds"], picture["gtMatches"][0], picture["gtIgnore"], strict=True):
            if not ignored and not by:
                counts[place[truth.anns[one]["category_id"]], -1] += 1
    return counts


def load_detections(truth: COCO, found: list[dict[str, Any]]) -> COCO:
    """``truth.loadRes``, which fails where nothing was found."""
    with contextlib.redirect_stdout(io.StringIO()):
        if found:
            return truth.loadRes(found)
        empty = COCO()
        empty.dataset = {**{key: truth.dataset[key] for key in ("images", "categories")}, "annotations": []}
        empty.createIndex()
    return empty


def complete(truth: COCO) -> None:
    """Make annotations such that pycocotools counts them all, in place.

    Masks, key points and areas that are none are mended with a warning, for data sets that Detectron2 has read by
    itself. Ids become 1, 2, ...: pycocotools takes an object with id 0 for not found, and loses one of two with the
    same id. What many tools leave out is put in: ``iscrowd`` 0, and the area of the box. What is ``difficult`` is
    ignored. Where some objects have masks or key points, those without have the outline of their box, and no key
    point to be found.
    """
    images = {image["id"]: image for image in truth.dataset["images"]}
    raw = truth.dataset.get("annotations", [])
    annotations, problems = repair_shapes(
        raw,
        images,
        truth.dataset["categories"],
        lambda i: f"annotation {raw[i].get('id', i)} of {images.get(raw[i]['image_id'], {}).get('file_name', '?')}",
    )
    if problems:
        logger.warning("evaluated against annotations with mended objects:\n%s", describe(problems))
    truth.dataset["annotations"] = annotations
    masks = any(annotation.get("segmentation") for annotation in annotations)
    points = max((len(annotation.get("keypoints") or ()) for annotation in annotations), default=0)
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
        annotation["iscrowd"] = IGNORED if annotation.get("difficult") else annotation.get("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        if masks and not annotation.get("segmentation"):
            x, y, width, height = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if points and not annotation.get("keypoints"):
            annotation |= {"keypoints": [0] * points, "num_keypoints": 0}
    if all(annotation["iscrowd"] for annotation in annotations):
        logger.warning(
            "no object of the test data counts (of %d, all are iscrowd or difficult): there will be no AP and no other "
            "score.",
            len(annotations),
        )
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()


def _joined(parts: Sequence[Any], kind: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=kind), *parts]).astype(kind)
