from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from ode_detect.detection.data.sizes import (
    anchor_problems,
    anchors,
    best_overlap,
    covered,
    median_size,
    seen_boxes,
    size_problems,
)
from ode_detect.engine.config import load_config

ROOT = Path(__file__).resolve().parents[3]
RATIOS, SIZES = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.SIZES"


def quickstart(*overrides: str) -> CfgNode:
    return load_config(ROOT / "configs" / "quickstart.yaml", overrides)


def squares_of(size: float, count: int = 10) -> np.ndarray:
    return np.full((count, 2), size)


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        ([[12, 17, 24], [29, 38, 50]], [[0.5, 1.0, 2.0]]),
        ([[12, 17]], [[0.5], [2.0]]),
        ([12, 17], [0.5, 1.0]),  # a list of numbers is for all feature maps
    ],
)
def test_anchors_are_those_of_detectron2(sizes: list[Any], ratios: list[Any]) -> None:
    cfg = quickstart(SIZES, str(sizes), RATIOS, str(ratios))
    generator = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=[4, 8])
    cells = np.unique(np.concatenate([cell.numpy() for cell in generator.cell_anchors]), axis=0)
    theirs = cells[:, 2:] - cells[:, :2]
    np.testing.assert_allclose(anchors(cfg), theirs[np.lexsort(theirs.T[::-1])], rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((SIZES, "[[12, 17], [29]]"), "there are 2 on p2, 1 on p3; give each list of MODEL"),
        ((SIZES, "[[12], [29], [64]]"), r"SIZES has a list for each of the 2 feature maps \(p2, p3\).*there are 3"),
        ((RATIOS, "[[0.5], [1.0], [2.0]]"), "ASPECT_RATIOS has a list for each of the 2 feature maps"),
        ((RATIOS, "[[0.5, 1.0], [1.0]]"), "there are 6 on p2, 3 on p3"),
        ((SIZES, "[[12], []]"), "SIZES holds numbers above 0"),
        ((SIZES, "[]"), "SIZES holds numbers above 0"),
        ((SIZES, "[[12], [0]]"), "SIZES holds numbers above 0"),
        ((SIZES, "[['12'], ['a']]"), "SIZES holds numbers above 0"),
        ((RATIOS, "[[-1.0]]"), "ASPECT_RATIOS holds numbers above 0"),
    ],
)
def test_anchors_that_detectron2_cannot_build_are_refused_in_words(overrides: tuple[str, str], message: str) -> None:
    cfg = quickstart()
    cfg.merge_from_list(list(overrides))  # as a script sets them, which no check of values sees
    with pytest.raises(ValueError, match=message):
        anchors(cfg)


def test_the_best_anchor_is_the_one_of_most_overlap() -> None:
    boxes, shapes = np.array([[10.0, 10.0], [20.0, 5.0]]), np.array([[10.0, 20.0], [20.0, 20.0]])
    np.testing.assert_allclose(best_overlap(boxes, shapes), [0.5, 0.25])


def test_boxes_are_measured_as_training_and_test_see_them(cfg: CfgNode) -> None:
    dicts = DatasetCatalog.get(*cfg.DATASETS.TRAIN)
    plain = np.array([a["bbox"][2:] for d in dicts for a in d["annotations"]], dtype=float)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    # The quickstart trains at 0.45 to 0.8 times the size of the file (0.6 in the middle), cropped; MIN_SIZE_TEST is 207
    # and the squares have 80 pixels.
    np.testing.assert_allclose(seen_boxes(cfg, dicts, is_train=True), 0.6 * plain, rtol=0.25)
    np.testing.assert_allclose(median_size(seen_boxes(cfg, dicts, is_train=True)), 0.6 * median_size(plain), rtol=0.06)
    np.testing.assert_allclose(seen_boxes(cfg, dicts, is_train=False), 207 / 80 * plain, rtol=0.01)
    assert (np.random.get_state()[1] == before).all(), "nothing is taken from the training"


def test_without_jitter_a_crop_is_resized_as_in_detectron2_and_with_it_the_picture(cfg: CfgNode) -> None:
    dicts = DatasetCatalog.get(*cfg.DATASETS.TRAIN)  # 96 x 80, cropped to 48 x 48
    plain = np.array([a["bbox"][2:] for d in dicts for a in d["annotations"]], dtype=float)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.SCALE_JITTER = (160,), []
    np.testing.assert_allclose(seen_boxes(cfg, dicts, is_train=True), plain * 160 / 48, rtol=0.01)
    cfg.INPUT.SCALE_JITTER = [1.0, 1.0]
    np.testing.assert_allclose(seen_boxes(cfg, dicts, is_train=True), plain * 2, rtol=0.01)


def test_objects_that_are_not_trained_on_are_not_measured(cfg: CfgNode) -> None:
    (record, *_) = DatasetCatalog.get(*cfg.DATASETS.TRAIN)
    first, second, third = record["annotations"]
    record["annotations"] = [{**first, "iscrowd": 1, "difficult": 1}, {**second, "iscrowd": 1}, third]
    assert len(seen_boxes(cfg, [record, {**record, "annotations": []}], is_train=True)) == 2
    assert seen_boxes(cfg, [], is_train=True).shape == (0, 2)


def test_another_size_in_the_test_is_told_with_a_cure_that_works() -> None:
    cfg = quickstart()
    assert size_problems(cfg, ("train", squares_of(40)), [("test", squares_of(28)), ("none", squares_of(1, 0))]) == []
    (problem,) = size_problems(cfg, ("train", squares_of(120)), [("test", squares_of(41))])
    (text,) = problem.where
    assert "the median object of train has 120 pixels" in text
    assert "that of test 41 in the test, so objects are 2.9 times as large in training" in text
    assert "INPUT.MIN_SIZE_TEST to about 606 (it is 207)" in text
    assert "INPUT.MIN_SIZE_TRAIN [207] with INPUT.SCALE_JITTER [0.75, 1.33]" in text
    # A photograph of 1000 x 1000 with an object of 200: 0.6 and 0.207 times as large.
    record = {"width": 1000, "height": 1000, "annotations": [{"bbox": [10, 10, 200, 200], "bbox_mode": 1}]}
    cures: list[tuple[str, ...]] = [(), ("INPUT.MIN_SIZE_TEST", "606")]
    cures += [("INPUT.MIN_SIZE_TRAIN", "[207]", "INPUT.SCALE_JITTER", "[0.75, 1.33]")]
    found = []
    for overrides in cures:
        cured = quickstart(*overrides)
        seen = [seen_boxes(cured, [record] * 40, is_train=is_train) for is_train in (True, False)]
        found.append(len(size_problems(cured, ("train", seen[0]), [("test", seen[1])])))
    assert found == [1, 0, 0]


def test_a_cure_for_pictures_that_are_taken_as_they_are() -> None:
    cfg = quickstart("INPUT.MIN_SIZE_TEST", "0")
    (problem,) = size_problems(cfg, ("train", squares_of(20)), [("test", squares_of(40))])
    assert "Set INPUT.SCALE_JITTER to about [0.9, 1.6]" in problem.where[0]
    cfg = quickstart("INPUT.SCALE_JITTER", "[]", "INPUT.MIN_SIZE_TRAIN", "(207,)")
    (problem,) = size_problems(cfg, ("train", squares_of(20)), [("test", squares_of(40))])
    assert "pictures are cropped first" in problem.where[0]


def test_anchors_that_fit_hardly_any_object_are_told() -> None:
    cfg = quickstart()  # anchors of 12 to 50 pixels, positive from an overlap of 0.5
    boxes = np.concatenate([squares_of(120, 994), squares_of(38, 6)])
    assert covered(cfg, boxes) == pytest.approx(0.006)
    (problem,) = anchor_problems(cfg, "mine", boxes, "training")
    (text,) = problem.where
    assert "0.6 % of the objects of mine have an anchor that overlaps them by 0.5 or more in training" in text
    assert "Most objects have 120 to 120 pixels (square root of the area), the anchors 12 to 50" in text
    assert anchor_problems(cfg, "mine", np.concatenate([squares_of(120), squares_of(38)]), "training") == []
    assert anchor_problems(cfg, "mine", squares_of(1, 0), "training") == []
    assert covered(cfg, squares_of(1, 0)) is None
