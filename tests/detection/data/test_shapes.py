from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from ode_detect.detection.data.shapes import mask_area, read_mask, read_points, repair_shapes

HEIGHT, WIDTH = 20, 30
OUTLINE = [4, 3, 14, 3, 14, 11, 4, 11]
POINTS = [[4, 3], [14, 3], [14, 11], [4, 11]]
RUNS = [83, 8, 12, 8, HEIGHT * WIDTH - 111]


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


def read(segmentation: Any) -> Any:
    return read_mask(segmentation, HEIGHT, WIDTH)


@pytest.mark.parametrize("mask", [[OUTLINE], [OUTLINE, [float(v) for v in OUTLINE]], rle(RUNS), rle([0, 600])])
def test_what_is_in_order_is_the_same_object(mask: Any) -> None:
    assert read(mask) is mask


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ([POINTS], [OUTLINE]),
        (POINTS, [OUTLINE]),
        (OUTLINE, [OUTLINE]),
        ([list(map(str, OUTLINE))], [OUTLINE]),
        ([[list(map(str, p)) for p in POINTS], OUTLINE], [OUTLINE, OUTLINE]),
        ([[5, 5, 9, 9], OUTLINE], [OUTLINE]),
        ([OUTLINE, [*OUTLINE[:-1], None]], [OUTLINE]),
        (rle(RUNS, (20.0, "30")), rle(RUNS)),
        (rle([float(RUNS[0]), str(RUNS[1]), *RUNS[2:]]), rle(RUNS)),
    ],
)
def test_other_forms_are_read_and_parts_that_are_none_left_out(written: Any, wanted: Any) -> None:
    assert read(written) == wanted


@pytest.mark.parametrize(
    "broken",
    [
        *("text", 7, True, [], {}, [None], [[]], [[1, 2, 3, 4]], [OUTLINE[:-1]], [["a"] * 8], [[True] * 8], [{}]),
        *([[*OUTLINE[:-1], float("nan")]], [[*OUTLINE[:-1], float("inf")]], [[*OUTLINE[:-1], 10**400]], [[POINTS]]),
        *([[*OUTLINE[:-1], 1e9]], [[0, 0, 29, 19] * 5000], [[1, 2, 3]], [[[1, 2, 3]] * 4], [[None, None]] * 4),
        *(rle([100, 50, 20]), rle([100, 50, 2_000_000]), rle([]), rle(None), rle(7), rle([600]), rle([600, 0])),
        *(rle([-100, 50, 650]), rle([True, 599]), rle([1.5, 598.5]), rle([10**400, 1]), rle(RUNS, (30, 20))),
        *(rle("zzzz~~~~zzzz"), rle(""), rle("o"), rle("\u20ac"), rle("PPPP" * 9), rle(RUNS, ()), rle(RUNS, "ab")),
    ],
)
def test_what_is_no_mask_is_none(broken: Any) -> None:
    assert read(broken) is None


def test_masks_of_pictures_that_32_bits_cannot_count_are_none() -> None:
    assert read_mask([OUTLINE], 70_000, 70_000) is None
    assert read_mask([OUTLINE], 0, 30) is None


def test_texts_of_run_lengths_are_what_pycocotools_reads() -> None:
    rng = np.random.default_rng(0)
    for share in np.linspace(0.02, 1, 60):
        height, width, zoom = rng.integers(1, 40), rng.integers(1, 40), rng.choice([1, 30])
        pixels = np.kron(rng.random((height, width)) < share, np.ones((zoom, zoom))).astype(np.uint8)
        encoded = pycocotools.mask.encode(np.asfortranarray(pixels))
        mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        assert read_mask(mask, *pixels.shape) is (mask if pixels.any() else None)
        assert not pixels.any() or mask_area(mask, *pixels.shape) == pixels.sum()


def test_what_is_taken_for_a_text_of_run_lengths_ends_in_pycocotools() -> None:
    rng = np.random.default_rng(0)
    pixels = np.asfortranarray(np.kron(rng.random((20, 30)) < 0.5, np.ones((9, 9))).astype(np.uint8))
    encoded = pycocotools.mask.encode(pixels)
    taken = 0
    for _ in range(2000):
        text = bytearray(encoded["counts"])
        for place in rng.integers(0, len(text), 2):
            text[place] = rng.integers(48, 112)
        mask = read_mask({"size": encoded["size"], "counts": bytes(text).decode()}, *pixels.shape)
        if mask is not None:
            taken += 1
            assert pycocotools.mask.area(mask) == mask_area(mask, *pixels.shape)
            assert 0 <= pycocotools.mask.iou([mask], [encoded], [0])[0, 0] <= 1
    assert taken < 2000


@pytest.mark.parametrize(
    ("points", "count", "wanted"),
    [
        ([1, 2, 2, 3, 4, 0], 2, [1, 2, 2, 3, 4, 0]),
        ([[1, 2, 2], [3, 4, 1]], 2, [1, 2, 2, 3, 4, 1]),
        (["1", "2.5", "2"], None, [1, 2.5, 2]),
        *(([[1, 2], [3, 4], [5, 6]], None, None), ([1, 2, 2, 3, 4, 0], 3, None), ([1, 2, 3], 1, None)),
        *(([1, 2], None, None), ([1, None, 2], None, None), ([1, float("nan"), 2], None, None), ("text", None, None)),
        *(([1, 10**400, 2], None, None), ([1, True, 2], None, None), ({}, None, None)),
    ],
)
def test_key_points_are_three_numbers_each(points: Any, count: int | None, wanted: Any) -> None:
    assert read_points(points, count) == wanted


def test_what_was_done_to_which_object_is_told() -> None:
    image = {"id": 1, "width": WIDTH, "height": HEIGHT}
    box = {"image_id": 1, "category_id": 1, "bbox": [4, 3, 10, 8], "area": 80}
    annotations = [
        {**box, "segmentation": [POINTS]},
        {**box, "segmentation": [[1, 2, 3, 4], OUTLINE]},
        {**box, "segmentation": rle([1, 2])},
        {**box, "keypoints": [1, 2, 2, 3, 4, 0], "num_keypoints": 1},
        {**box, "keypoints": [1, 2, 2, 3, 4, 1], "num_keypoints": 0},
        {**box, "keypoints": [1, 2, 2]},
        {**box, "area": 8e6, "segmentation": [OUTLINE]},
    ]
    after, problems = repair_shapes(annotations, {1: image}, [{"id": 1}], lambda i: f"number {i}")
    assert [(p.rule.split()[0], p.where) for p in problems] == [
        ("masks", ("number 2",)),
        ("masks", ("number 1",)),
        ("masks", ("number 0",)),
        ("key", ("number 5",)),
        ("num_keypoints", ("number 4",)),
        ("areas", ("number 6, area 8000000.0",)),
    ]
    assert [a.get("segmentation") for a in after[:3]] == [[OUTLINE], [OUTLINE], []]
    assert [a.get("num_keypoints") for a in after[3:6]] == [1, 2, 0]
    assert after[6]["area"] == 80
    names = [{"id": 1, "keypoints": ["nose"]}]
    after, _ = repair_shapes(annotations, {1: image}, names, lambda i: f"number {i}")
    assert [a.get("keypoints") for a in after[3:6]] == [[], [], [1, 2, 2]], "the class says how many there are"
    assert repair_shapes(after, {1: image}, names, str) == (after, [])
