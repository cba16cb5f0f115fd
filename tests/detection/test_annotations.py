import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ode_detect.detection.annotations import box_faults, read_coco, repair, to_records, usable
from ode_detect.detection.errors import refuse
from ode_detect.media.errors import DatasetError

NOWHERE = Path("nowhere")


def content(**changes: Any) -> dict[str, Any]:
    """Two pictures of 100x80 with an object each."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [annotation(1), annotation(2, image_id=2, category_id=7)],
        **changes,
    }


def annotation(id: object, **changes: Any) -> dict[str, Any]:
    box = {"id": id, "image_id": 1, "category_id": 3, "bbox": [10.0, 20.0, 30.0, 40.0], "area": 1200.0, "iscrowd": 0}
    return {key: value for key, value in {**box, **changes}.items() if value is not ...}


def test_what_is_in_order_stays_as_it_is() -> None:
    before = content()
    after, problems = repair(before, NOWHERE)
    assert after == before
    assert problems == []
    records = to_records(after, Path("folder"))
    assert records[1]["file_name"] == "folder/2.png"
    assert [a["category_id"] for r in records for a in r["annotations"]] == [0, 1], "gaps in ids are closed"


@pytest.mark.parametrize("first", [0, 1, 5])
def test_category_ids_may_begin_anywhere(first: int) -> None:
    categories = [{"id": first + i, "name": n} for i, n in enumerate("ab")]
    objects = [annotation(i + 1, category_id=first + i) for i in range(2)]
    after, problems = repair(content(categories=categories, annotations=objects), NOWHERE)
    assert problems == []
    assert [a["category_id"] for a in to_records(after, NOWHERE)[0]["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    ("box", "rule", "left"),
    [
        ([10, 10, 0, 20], "1 boxes without width or height, dropped", None),
        ([10, 10, 20, -1], "1 boxes without width or height, dropped", None),
        ([float("nan"), 10, 20, 20], "1 boxes that are not finite, dropped", None),
        ([10, 10, float("inf"), 20], "1 boxes that are not finite, dropped", None),
        ([100, 10, 20, 20], "1 boxes outside their picture, dropped", None),
        ([-30, 10, 20, 20], "1 boxes outside their picture, dropped", None),
        ([90, -10, 20, 20], "1 boxes partly outside their picture, clipped", [90, 0, 10, 10]),
    ],
)
def test_bad_boxes_are_dropped_or_clipped_and_named(box: list[float], rule: str, left: list[float] | None) -> None:
    before = content(annotations=[annotation(1, bbox=box), annotation(2)])
    after, (problem,) = repair(before, NOWHERE)
    assert str(problem).startswith(f"{rule}: annotation 1 of 1.png, bbox [")
    kept = [a["bbox"] for a in after["annotations"]]
    assert kept == ([] if left is None else [left]) + [[10.0, 20.0, 30.0, 40.0]]
    assert left is None or after["annotations"][0]["area"] == left[2] * left[3]
    assert len(after["images"]) == 2
    assert before["annotations"][0]["bbox"] == box, "what came in is not changed"


def test_rounding_over_the_edge_is_no_problem() -> None:
    assert repair(content(annotations=[annotation(1, bbox=[-0.6, 0, 100.9, 80.4], area=1.0)]), NOWHERE)[1] == []


def test_faults_agree_with_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-60, 120, (500, 4))
    sizes = rng.uniform(20, 100, (500, 2))
    faults = box_faults(boxes, sizes)
    for i, ((x, y, w, h), (width, height)) in enumerate(zip(boxes.tolist(), sizes.tolist(), strict=True)):
        corners = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        assert faults.empty[i] == (w <= 0 or h <= 0)
        if not faults.empty[i]:
            outside = corners[2] <= corners[0] or corners[3] <= corners[1]
            assert faults.outside[i] == outside
            if not outside:
                wanted = (corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1])
                assert faults.clipped[i] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(4, image_id=9)]}, "unknown image: annotation 4, image_id 9"),
        ({"annotations": [annotation(4, image_id=...)]}, "unknown image: annotation 4, image_id None"),
        ({"annotations": [annotation(4, category_id=9)]}, "unknown category: annotation 4, category_id 9"),
        ({"annotations": [annotation(4, category_id=[3])]}, "unknown category: annotation 4"),
        ({"annotations": [annotation(4, bbox=[1, 2, 3])]}, r"bbox is not \[x, y, width, height\]: annotation 4"),
        ({"annotations": [annotation(4, bbox=[1, 2, 3, "4"])]}, "bbox is not"),
        ({"annotations": [annotation(4, bbox=...)]}, "bbox is not"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "share their id: id 3"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]}, "share their name: name 'a'"),
        ({"categories": [{"name": "a"}]}, "categories without a whole number"),
        ({"categories": [{"id": [1], "name": "a"}]}, "categories without a whole number"),
        ({"categories": []}, "none at all"),
        ({"images": [{"file_name": "1.png"}]}, "images without a whole number"),
        ({"images": [{"id": 1, "file_name": n, "width": 9, "height": 9} for n in "ab"]}, "share their id with another"),
        ({"images": [{"id": 1, "file_name": "1.png"}], "annotations": []}, "without width and height that cannot"),
    ],
)
def test_what_cannot_be_repaired_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    _, problems = repair(content(**changes), NOWHERE)
    with pytest.raises(DatasetError, match=rf"(?s)my\.json cannot be used.*{message}.*check_dataset"):
        refuse(problems, "my.json")


def test_repeated_images_are_read_once(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.png", "width": 100, "height": 80}
    after, (problem,) = repair(content(images=[image, image], annotations=[annotation(1)]), NOWHERE)
    assert after["images"] == [image]
    assert str(problem) == "1 images listed more than once, read once: 1.png (id 1)"


def test_missing_keys_are_filled_in_where_there_is_one_way() -> None:
    bare = annotation(..., area=..., iscrowd=...)
    after, problems = repair(content(annotations=[bare, dict(bare)]), NOWHERE)
    assert [a["id"] for a in after["annotations"]] == [1, 2]
    assert [(a["area"], a["iscrowd"]) for a in after["annotations"]] == [(1200.0, 0)] * 2
    assert [p.rule for p in problems] == [
        "annotations without an id of their own above 0",
        "annotations without iscrowd",
        "annotations without area",
    ]
    assert all(p.done for p in problems)


def test_ignore_becomes_crowd() -> None:
    after, (problem,) = repair(content(annotations=[annotation(1, ignore=1)]), NOWHERE)
    assert after["annotations"][0]["iscrowd"] == 1
    assert problem.done == "taken as iscrowd"


def ap50(truth: dict[str, Any]) -> float:
    """AP by pycocotools of a detector that finds every box."""
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        keys = ("image_id", "category_id", "bbox")
        found = coco.loadRes([{**{k: a[k] for k in keys}, "score": 0.9} for a in truth["annotations"]])
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


@pytest.mark.parametrize("ids", [(0, 1), (5, 5)])
def test_ids_that_pycocotools_miscounts_are_numbered_anew(ids: tuple[int, int]) -> None:
    raw = content(annotations=[annotation(ids[0]), annotation(ids[1], image_id=2)])
    assert ap50(raw) < 1, "an id of 0 or a repeated one costs objects"
    after, (problem,) = repair(raw, NOWHERE)
    assert problem.done == "all numbered anew"
    assert ap50(after) == 1


def test_masks_are_read_as_polygons_or_rle_and_bad_ones_left_out() -> None:
    whole = np.zeros((80, 100), np.uint8, order="F")
    whole[20:60, 10:40] = 1
    runs = pycocotools.mask.encode(whole)
    compressed = {"size": [80, 100], "counts": runs["counts"].decode()}
    flat = whole.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    polygon = [10, 20, 40, 20, 40, 60, 10, 60]
    masks = [[polygon], [polygon, [1, 2, 3, 4]], compressed, {"size": [80, 100], "counts": counts}]
    bad = [[[1, 2, 3, 4]], {"size": [100, 80], "counts": counts}]
    objects = [annotation(i + 1, segmentation=mask) for i, mask in enumerate(masks + bad)]
    after, (problem,) = repair(content(annotations=objects), NOWHERE)
    assert len(problem.where) == 2
    read = [a.get("segmentation") for a in to_records(after, NOWHERE)[0]["annotations"]]
    assert read[:2] == [[polygon], [polygon]]
    for mask in read[2:4]:
        np.testing.assert_array_equal(pycocotools.mask.decode(mask), whole)
    assert read[4:] == [None, None]


@pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"images": [1], "annotations": [], "categories": []}'])
def test_what_is_no_coco_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DatasetError, match=r"x\.json"):
        read_coco(tmp_path / "x.json")


def test_what_is_usable_is_kept_for_a_repaired_copy() -> None:
    raw = content(
        categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}],
        annotations=[
            annotation(1),
            annotation(2, category_id=7),
            annotation(3, category_id=9),
            annotation(4, image_id=8),
            annotation(5, image_id=[1]),
        ],
    )
    _, problems = repair(raw, NOWHERE)
    after, left = repair(usable(raw, problems, NOWHERE), NOWHERE)
    assert left == []
    assert [a["category_id"] for a in after["annotations"]] == [3, 3]
    assert after["categories"] == [{"id": 3, "name": "cat"}]


def test_of_pictures_without_a_size_only_those_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    Image.new("L", (100, 80)).save(tmp_path / "1.png")
    raw = content(images=[{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "11.png"}])
    _, problems = repair(raw, tmp_path)
    after, (problem,) = repair(usable(raw, problems, tmp_path), tmp_path)
    assert [image["file_name"] for image in after["images"]] == ["1.png"]
    assert [a["image_id"] for a in after["annotations"]] == [1]
    assert problem.done == "taken from the picture"


def test_a_large_data_set_is_checked_within_seconds() -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(4000)]
    many = content(images=images, annotations=[annotation(i + 1, image_id=i % 4000) for i in range(30_000)])
    start = process_time()
    _, problems = repair(many, NOWHERE)
    assert problems == []
    assert process_time() - start < 2, "860,001 annotations of COCO train2017 are to take seconds"


def test_the_name_of_a_class_that_fits_nowhere_is_a_problem_of_the_categories(tmp_path: Path) -> None:
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x" * 100_000}]}
    _, problems = repair(content, tmp_path)
    (problem,) = [p for p in problems if "200 letters" in p.rule]
    assert not problem.done
    assert len(str(problem)) < 500
    assert usable(content, problems, tmp_path)["categories"] == [{"id": 1, "name": "x" * 200}]
