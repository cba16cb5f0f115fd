import io
import json
from collections.abc import Sequence
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

from ode_detect.detection.data.annotations import read_coco, refuse, repair, to_records, usable
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
    assert repair(content(annotations=[annotation(1, bbox=[-0.6, 0, 100.9, 80.4], area=8112.4)]), NOWHERE)[1] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(4, image_id=9)]}, "unknown image: annotation 4, image_id 9"),
        ({"annotations": [annotation(4, image_id=...)]}, "unknown image: annotation 4, image_id None"),
        ({"annotations": [annotation(4, category_id=9)]}, "unknown category: annotation 4, category_id 9"),
        ({"annotations": [annotation(4, category_id=[3])]}, "unknown category: annotation 4"),
        ({"annotations": [annotation(4, bbox=[1, 2, 3])]}, r"bbox is not \[x, y, width, height\]: annotation 4"),
        ({"annotations": [annotation(4, bbox=[1, 2, 3, "four"])]}, "bbox is not"),
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
    """AP50 of a detector that finds every box."""
    return scores(truth, range(len(truth["annotations"])))[1]


def scores(truth: dict[str, Any], indices: Sequence[int]) -> list[float]:
    """pycocotools' summary (AP, AP50, AP75, APs, APm, APl, ...) of a detector that finds the boxes of these indices."""
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truth))
        coco.createIndex()
        keys = ("image_id", "category_id", "bbox")
        objects = [truth["annotations"][i] for i in indices]
        found = coco.loadRes([{**{k: a[k] for k in keys}, "score": 0.9} for a in objects])
        evaluation = COCOeval(coco, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("ids", [(0, 1), (5, 5)])
def test_ids_that_pycocotools_miscounts_are_numbered_anew(ids: tuple[int, int]) -> None:
    raw = content(annotations=[annotation(ids[0]), annotation(ids[1], image_id=2)])
    assert ap50(raw) < 1, "an id of 0 or a repeated one costs objects"
    after, (problem,) = repair(raw, NOWHERE)
    assert problem.done == "all numbered again"
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
    after, (problem, part) = repair(content(annotations=objects), NOWHERE)
    assert len(problem.where) == 2
    assert part.where == ("annotation 2 of 1.png, bbox [10, 20, 30, 40]",)
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


@pytest.mark.parametrize("area", [-1200.0, 0, 1200 / 8000, 1e-9, 12_000_000.0, True, "", float("nan"), 10**400])
def test_an_area_that_does_not_fit_the_box_is_taken_from_it(area: object) -> None:
    objects = [annotation(i, image_id=1 + i % 2) for i in range(1, 9)]
    raw = content(annotations=[{**a, "area": area} if i < 4 else a for i, a in enumerate(objects)])
    after, (problem,) = repair(raw, NOWHERE)
    assert [a["area"] for a in after["annotations"]] == [1200.0] * 8
    assert len(problem.where) == 4
    assert problem.done == "taken from the box, or from the mask"
    # Four of eight are found: 51 of COCO's 101 recalls.
    assert scores(after, range(4, 8))[0] == pytest.approx(51 / 101)


def test_negative_areas_make_half_a_detector_perfect_and_large_ones_move_objects() -> None:
    objects = [annotation(i, image_id=1 + i % 2, bbox=[10, 20, 20, 20], area=400) for i in range(1, 9)]
    raw = content(annotations=[{**a, "area": -400} if i < 4 else a for i, a in enumerate(objects)])
    assert scores(raw, range(4, 8))[0] == pytest.approx(1.0), "what pycocotools makes of it"
    assert scores(repair(raw, NOWHERE)[0], range(4, 8))[0] == pytest.approx(0.505, abs=1e-3)
    large = content(annotations=[{**a, "area": 40_000} for a in objects])
    assert scores(large, range(8))[3:6] == pytest.approx([-1, -1, 1])
    assert scores(repair(large, NOWHERE)[0], range(8))[3:6] == pytest.approx([1, -1, -1])


def test_an_area_that_the_mask_confirms_or_that_is_possible_stays() -> None:
    thin = [[10.0, 20.0, 40.0, 59.0, 40.0, 60.0]]
    whole = [[10.0, 20.0, 40.0, 20.0, 40.0, 60.0, 10.0, 60.0]]
    objects = [
        annotation(1, segmentation=thin, area=15.0),
        annotation(2, area=700.0),  # of a mask that was left out
        annotation(3, area=31 * 41),  # both edges counted
        annotation(4, segmentation=whole, area=-3),
        annotation(5, segmentation=thin, area=9e9),
        annotation(6, segmentation=whole, area=...),
    ]
    after, problems = repair(content(annotations=objects), NOWHERE)
    assert [a["area"] for a in after["annotations"]] == [15.0, 700.0, 31 * 41, 1200, 18, 1200]
    assert [(p.rule, len(p.where)) for p in problems] == [
        ("annotations without area", 1),
        ("areas that do not fit the box", 2),
    ]
    assert problems[1].where[0].endswith("bbox [10, 20, 30, 40], area -3")


def test_numbers_as_text_are_read_and_no_object_is_lost() -> None:
    raw = content()
    raw["images"] = [{**i, "id": str(i["id"]), "width": "100", "height": 80.0} for i in raw["images"]]
    raw["categories"] = [{**c, "id": float(c["id"])} for c in raw["categories"]]
    for a in raw["annotations"]:
        a |= {"id": str(a["id"]), "image_id": float(a["image_id"]), "category_id": str(a["category_id"])}
        a |= {"bbox": [*a["bbox"][:2], "30.0000", " 4e1"], "area": "1200.0", "iscrowd": "0", "ignore": "0"}
    before = json.dumps(raw)
    after, (problem,) = repair(raw, NOWHERE)
    assert len(problem.where) == 6
    assert problem.done == "read as the numbers that they are"
    assert json.dumps(raw) == before
    plain = content()
    assert after["images"] == plain["images"]
    assert [{**a, "ignore": 0} for a in plain["annotations"]] == after["annotations"]
    assert ap50(after) == pytest.approx(1)


def test_a_crowd_written_as_text_is_a_crowd() -> None:
    objects = [annotation(1, iscrowd="1"), annotation(2, iscrowd="0"), annotation(3, ignore="1")]
    after, _ = repair(content(annotations=objects), NOWHERE)
    assert [a["iscrowd"] for a in after["annotations"]] == [1, 0, 1]


def test_ids_that_become_the_same_are_refused() -> None:
    images = [{"id": i, "file_name": f"{i!r}.png", "width": 100, "height": 80} for i in (1, "1")]
    _, problems = repair(content(images=images), NOWHERE)
    assert any(not p.done and "share their id" in p.rule for p in problems)


def doubled(boxes: dict[int, list[list[float]]], name: str = "1.png") -> dict[str, Any]:
    images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i in boxes]
    pairs = [(i, box) for i, of_image in boxes.items() for box in of_image]
    return content(
        images=images,
        annotations=[annotation(n, image_id=i, bbox=box, area=...) for n, (i, box) in enumerate(pairs, start=1)],
    )


def test_one_picture_under_several_ids_is_one_picture() -> None:
    one, two, three = [1.0, 1.0, 20.0, 20.0], [30.0, 1.0, 20.0, 20.0], [60.0, 30.0, 20.0, 20.0]
    raw = doubled({4: [one], 5: [two, one], 9: [], 7: [three]})
    raw["images"][1]["file_name"] = "./1.png"
    after, problems = repair(raw, NOWHERE)
    problem = problems[-1]
    assert problem.rule == "pictures whose boxes are spread over several entries"
    assert problem.where == ("1.png = ./1.png (ids 4, 5, 9, 7)",)
    assert [i["id"] for i in after["images"]] == [4]
    assert [a["bbox"] for a in after["annotations"]] == [one, two, three]
    assert {a["image_id"] for a in after["annotations"]} == {4}


def test_a_picture_that_is_repeated_with_its_boxes_stays_repeated() -> None:
    raw = doubled({4: [[1.0, 1.0, 20.0, 20.0]], 5: [[1.0, 1.0, 20.0, 20.0]]})
    after, problems = repair(raw, NOWHERE)
    assert [p.rule for p in problems] == ["annotations without area"]
    assert len(after["images"]) == len(after["annotations"]) == 2


def test_corners_are_read_as_corners_and_not_clipped() -> None:
    boxes = [[float(40 + i), 45.0, float(70 + i), 73.0] for i in range(5)]
    after, problems = repair(doubled({1: boxes}), NOWHERE)
    assert problems[0].rule.startswith("boxes that are corners [x0, y0, x1, y1]")
    assert problems[0].done == "width taken as x1 - x0, height as y1 - y0"
    assert problems[0].where[1] == "annotation 2 of 1.png, bbox [41, 45, 71, 73]"
    assert [a["bbox"] for a in after["annotations"]] == [[float(40 + i), 45.0, 30.0, 28.0] for i in range(5)]
    assert {a["area"] for a in after["annotations"]} == {840.0}


def test_shares_are_kept_and_told() -> None:
    boxes = [[0.2, 0.3, 0.4, 0.5], [0.5, 0.1, 0.2, 0.2]]
    after, problems = repair(doubled({1: boxes}), NOWHERE)
    assert "boxes that lie within one pixel, probably shares of the picture" in [p.rule for p in problems]
    assert [a["bbox"] for a in after["annotations"]] == boxes


@pytest.mark.parametrize("box", [[10**400, 0, 1, 1], [float("nan"), 10**400, 1, 1], [0, 0, True, 1]])
def test_a_box_of_no_numbers_is_refused_without_a_traceback(box: list[Any]) -> None:
    _, (problem,) = repair(content(annotations=[annotation(1, bbox=box)]), NOWHERE)
    assert problem.rule == "annotations whose bbox is not [x, y, width, height]"
    assert not problem.done


def test_a_box_that_is_missing_is_that_of_the_mask() -> None:
    outline = [10, 20, 40, 20, 40, 60, 10, 60]
    pixels = np.zeros((80, 100), np.uint8, order="F")
    pixels[20:60, 10:40] = 1
    runs = pycocotools.mask.encode(pixels)
    masks = [[outline], {"size": [80, 100], "counts": runs["counts"].decode()}]
    objects = [
        annotation(i, bbox=box, segmentation=m)
        for i, (box, m) in enumerate(zip([[], ...], masks, strict=True), start=1)
    ]
    after, (problem,) = repair(content(annotations=objects), NOWHERE)
    assert problem.where == ("annotation 1", "annotation 2")
    assert [a["bbox"] for a in after["annotations"]] == [[10, 20, 30, 40]] * 2
    lost = content(annotations=[*objects, annotation(3, bbox=[], segmentation=[[1, 2]]), annotation(4, image_id=9)])
    read, problems = repair(lost, NOWHERE)
    assert [a["id"] for a in usable(read, problems, NOWHERE)["annotations"]] == [1, 2]


def test_names_of_classes_become_one_line() -> None:
    categories = [{"id": 3, "name": "white\n blood cell"}, {"id": 7, "name": "cafe\u0301"}]
    after, (problem,) = repair(content(categories=categories), NOWHERE)
    assert [c["name"] for c in after["categories"]] == ["white  blood cell", "caf\xe9"]
    assert str(problem) == r"1 names of categories that are no line of text, read as one: 'white\n blood cell'"
    categories[1]["name"] = "white\t blood cell"
    _, problems = repair(content(categories=categories), NOWHERE)
    assert [p.done for p in problems] == ["read as one", ""], "two of one name are refused"
    merged = usable(content(categories=categories), problems, NOWHERE)
    assert [a["category_id"] for a in merged["annotations"]] == [3, 3]


def test_pictures_are_found_under_the_other_spelling_of_their_name(tmp_path: Path) -> None:
    there = "cafe\u0301.png"
    (tmp_path / "a").mkdir()
    for file in (there, "a/2.png"):
        Image.new("RGB", (100, 80)).save(tmp_path / file)
    before = content()
    before["images"] = [{"id": 1, "file_name": "caf\xe9.png"}, {"id": 2, "file_name": "a\\2.png"}]
    after, problems = repair(before, tmp_path)
    assert [image["file_name"] for image in after["images"]] == [there, "a/2.png"]
    assert [p.done for p in problems] == ["read as the file that is there", "taken from the picture"]
    assert problems[0].where == (r"'caf\xe9.png' is 'cafe\u0301.png'", r"'a\\2.png' is 'a/2.png'")


@pytest.mark.parametrize("digits", [20, 400, 5000])
@pytest.mark.parametrize("key", ["bbox", "area", "width", "id", "image_id", "category_id", "iscrowd", "segmentation"])
def test_numbers_of_any_length_are_told_not_crashed_on(tmp_path: Path, key: str, digits: int) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "1.png")
    before = content(annotations=[annotation(1)])
    before["images"] = before["images"][:1]
    place = before["images"][0] if key == "width" else before["annotations"][0]
    place[key] = {"bbox": [1, 2, "N", 4], "segmentation": [[1, 2, "N", 4, 5, 6]]}.get(key, "N")
    (tmp_path / "x.json").write_text(json.dumps(before).replace('"N"', "7" * digits))
    after, problems = repair(read_coco(tmp_path / "x.json"), tmp_path)
    if all(problem.done for problem in problems):
        to_records(after, tmp_path)
    assert problems or key in ("area", "segmentation")


def test_the_name_of_a_class_that_fits_nowhere_is_a_problem_of_the_categories(tmp_path: Path) -> None:
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x" * 100_000}]}
    _, problems = repair(content, tmp_path)
    (problem,) = [p for p in problems if "200 letters" in p.rule]
    assert not problem.done
    assert len(str(problem)) < 500
    assert usable(content, problems, tmp_path)["categories"] == [{"id": 1, "name": "x" * 200}]
