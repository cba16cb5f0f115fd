"""Against a matcher of its own: loops over pictures, classes and boxes, written from pycocotools' rules."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ode_detect.detection.matching import Matches, complete, load_detections, match

CLASSES = {3: "cat", 5: "dog", 9: "cow"}
Annotation = dict[str, Any]


def truth_of(annotations: list[Annotation], pictures: int = 1) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(pictures)],
        "annotations": [{"id": 0, "image_id": 0, **annotation} for annotation in annotations],
        "categories": [{"id": key, "name": name} for key, name in CLASSES.items()],
    }
    complete(truth)
    return truth


def matched(truth: COCO, found: list[Annotation], *, threshold: float = 0.5, most: int = 100) -> Matches:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated = COCOeval(truth, load_detections(truth, found), "bbox")
        evaluated.params.maxDets = [1, 2, most]
        evaluated.evaluate()
        evaluated.accumulate()
    return match(evaluated, list(CLASSES.values()), threshold)


def overlap(found: list[float], true: list[float], crowd: bool) -> float:
    width = min(found[0] + found[2], true[0] + true[2]) - max(found[0], true[0])
    height = min(found[1] + found[3], true[1] + true[3]) - max(found[1], true[1])
    common = max(width, 0) * max(height, 0)
    area = found[2] * found[3]
    return common / (area if crowd else area + true[2] * true[3] - common)


def greedy(found: list[Annotation], objects: list[Annotation], most: int) -> list[tuple[Annotation, Annotation | None]]:
    """Detections of one picture that count, each with its object or None."""
    taken: set[int] = set()
    pairs = []
    for one in sorted(found, key=lambda one: -one["score"])[:most]:
        free = [o for o in objects if id(o) not in taken]
        near = {id(o): overlap(one["bbox"], o["bbox"], o["crowd"]) for o in free}
        real = [o for o in free if not o["crowd"] and not o["difficult"] and near[id(o)] >= 0.5]
        ignored = [o for o in free if (o["crowd"] or o["difficult"]) and near[id(o)] >= 0.5]
        best = max(real or ignored, key=lambda o: near[id(o)], default=None)
        if best is not None and not best["crowd"]:
            taken.add(id(best))
        if best is None or real:
            pairs.append((one, best))
    return pairs


def random_scene(seed: int, pictures: int = 12) -> tuple[list[Annotation], list[Annotation]]:
    """Objects, some crowds or difficult; detections near them, some twice or of another class, and of nothing."""
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for picture in range(pictures):
        for _ in range(0 if picture % 4 == 3 else int(rng.integers(1, 9))):
            kind, crowd = int(rng.choice([3, 5])), bool(rng.random() < 0.15)
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            if crowd:
                box = [box[0] / 2, box[1] / 2, box[2] * 2, box[3] * 2]
            difficult = not crowd and bool(rng.random() < 0.2)
            objects.append(
                {"image_id": picture, "category_id": kind, "bbox": box, "crowd": crowd, "difficult": difficult}
            )
            for _ in range(int(rng.integers(0, 4))):
                near = [float(x) for x in np.array(box) + rng.normal(0, 2.5, 4)]
                if crowd:
                    near = [near[0] + box[2] / 4, near[1] + box[3] / 4, box[2] / 3, box[3] / 3]
                other = kind if rng.random() < 0.8 else int(rng.choice(list(CLASSES)))
                found.append({"image_id": picture, "category_id": other, "bbox": near, "score": rng.random()})
        for _ in range(int(rng.integers(0, 3))):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            kind = int(rng.choice(list(CLASSES)))
            found.append({"image_id": picture, "category_id": kind, "bbox": box, "score": rng.random()})
    return objects, found


def coco(objects: list[Annotation]) -> list[Annotation]:
    return [
        {
            **{key: one[key] for key in ("image_id", "category_id", "bbox")},
            "area": one["bbox"][2] * one["bbox"][3],
            "iscrowd": int(one["crowd"]),
            "difficult": int(one["difficult"]),
        }
        for one in objects
    ]


def at(annotations: list[Annotation], picture: int, kind: int | None = None) -> list[Annotation]:
    return [a for a in annotations if a["image_id"] == picture and kind in (None, a["category_id"])]


@pytest.mark.parametrize("most", [100, 3])
@pytest.mark.parametrize("seed", range(6))
def test_each_class_is_matched_as_by_hand(seed: int, most: int) -> None:
    objects, found = random_scene(seed)
    matches = matched(truth_of(coco(objects), 12), [{**one} for one in found], most=most)
    assert matches.names == ("cat", "dog", "cow")
    assert sum(matches.objects) > 20
    for index, kind in enumerate(CLASSES):
        pairs = [pair for p in range(12) for pair in greedy(at(found, p, kind), at(objects, p, kind), most)]
        expected = sorted((one["score"], on is not None) for one, on in pairs)
        got = sorted(zip(matches.confidence[index].tolist(), matches.hits[index].tolist(), strict=True))
        assert got == expected
        real = [o for o in objects if o["category_id"] == kind and not o["crowd"] and not o["difficult"]]
        assert matches.objects[index] == len(real)


@pytest.mark.parametrize("seed", range(6))
def test_confusion_is_matched_as_by_hand(seed: int) -> None:
    objects, found = random_scene(seed)
    matches = matched(truth_of(coco(objects), 12), [{**one} for one in found], threshold=0.3)
    expected = np.zeros((4, 4), dtype=int)
    place = {kind: index for index, kind in enumerate(CLASSES)}
    for picture in range(12):
        pairs = greedy([one for one in at(found, picture) if one["score"] >= 0.3], at(objects, picture), 100)
        for one, on in pairs:
            expected[place[on["category_id"]] if on else 3, place[one["category_id"]]] += 1
        hit = {id(on) for _, on in pairs}
        for one in at(objects, picture):
            if id(one) not in hit and not one["crowd"] and not one["difficult"]:
                expected[place[one["category_id"]], 3] += 1
    assert (matches.confusion == expected).all()
    assert np.trace(expected) > 5
    assert expected.sum() > np.trace(expected) + expected[:, 3].sum() + expected[3].sum()


def test_the_rows_of_the_matrix_are_the_objects() -> None:
    objects, found = random_scene(1)
    matches = matched(truth_of(coco(objects), 12), found)
    assert tuple(matches.confusion[:-1].sum(axis=1)) == matches.objects
    assert matches.confusion[-1, -1] == 0


BOX = [10.0, 10.0, 20.0, 20.0]


def one_found(truth: COCO, *boxes: list[float]) -> list[bool]:
    """Which of these detections of cats, by descending score, are right; those that do not count are left out."""
    found = [{"image_id": 0, "category_id": 3, "bbox": b, "score": 0.9 - 0.1 * i} for i, b in enumerate(boxes)]
    return list(map(bool, matched(truth, found).hits[0]))


def test_an_object_is_found_once() -> None:
    assert one_found(truth_of([{"category_id": 3, "bbox": BOX}]), BOX, BOX) == [True, False]


def test_a_difficult_object_takes_one_detection_and_a_crowd_takes_all_in_it() -> None:
    part = [12.0, 12.0, 5.0, 5.0]
    assert one_found(truth_of([{"category_id": 3, "bbox": BOX, "difficult": 1}]), BOX, BOX) == [False]
    assert one_found(truth_of([{"category_id": 3, "bbox": BOX, "difficult": 1}]), part) == [False]
    assert one_found(truth_of([{"category_id": 3, "bbox": BOX, "iscrowd": 1}]), BOX, BOX, part) == []


def test_iscrowd_and_area_may_be_left_out_and_ids_may_be_zero_or_alike() -> None:
    twice = [{"category_id": 3, "bbox": BOX}, {"category_id": 3, "bbox": [60.0, 60.0, 20.0, 20.0]}]
    assert one_found(truth_of(twice), BOX, [60.0, 60.0, 20.0, 20.0]) == [True, True]
    assert matched(truth_of(twice), []).objects == (2, 0, 0)


def test_nothing_found_has_an_average_precision_of_zero_where_there_are_objects() -> None:
    matches = matched(truth_of([{"category_id": 3, "bbox": BOX}]), [])
    assert matches.ap50[0] == 0
    assert np.isnan(matches.ap50[1:]).all()
    assert [len(scores) for scores in matches.confidence] == [0, 0, 0]
    assert matches.confusion.tolist() == [[0, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4]


def test_detections_in_a_picture_without_objects_are_mistakes() -> None:
    truth = truth_of([{"category_id": 3, "bbox": BOX}], pictures=2)
    matches = matched(truth, [{"image_id": 1, "category_id": 9, "bbox": BOX, "score": 0.8}])
    assert matches.hits[2].tolist() == [False]
    assert matches.confusion[3].tolist() == [0, 0, 1, 0]


def test_nothing_there_and_nothing_found() -> None:
    matches = matched(truth_of([]), [])
    assert matches.objects == (0, 0, 0)
    assert not matches.confusion.any()
