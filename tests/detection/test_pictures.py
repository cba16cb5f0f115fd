from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.colors import to_rgb
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from ode_detect.detection.data.datasets import register_datasets
from ode_detect.detection.drawing import FALSE, HIT, MISSED
from ode_detect.detection.pictures import Picture, detection_sheet, detections, match_boxes, show
from ode_detect.engine.config import load_config
from ode_detect.report.canvas import PictureError

from ..conftest import ROOT

GREY = np.full((120, 200, 3), 60, dtype=np.uint8)


def _scene(seed: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], list[str], list[bool]]:
    """Crowded true boxes, jittered and invented predictions, crowd boxes, equal scores."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 150, (25, 2)).astype(float)
    truth = np.concatenate([first, first + rng.integers(5, 60, (25, 2))], axis=1)
    truth[-4:] = truth[:4]  # equal overlaps
    near = truth[rng.integers(0, 25, 40)] + rng.normal(0, 4, (40, 4))
    far = rng.integers(0, 150, (10, 2)).astype(float)
    boxes = np.concatenate([near, np.concatenate([far, far + 30], axis=1), truth[:3]])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = np.round(rng.random(len(boxes)), 1)
    labels = [f"c{k}" for k in rng.integers(0, classes, len(boxes))]
    truth_labels = [f"c{k}" for k in rng.integers(0, classes, 25)]
    return boxes, scores, truth, labels, truth_labels, (rng.random(25) < 0.25).tolist()


def _coco_counts(
    boxes: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray,
    labels: list[str],
    truth_labels: list[str],
    crowd: list[bool],
) -> tuple[dict[str, int], list[int]]:
    """Hits, false detections and found objects by pycocotools at IoU 0.5, and the partner of each prediction."""

    def xywh(box: np.ndarray) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    data: Any = COCO()
    names = sorted({*labels, *truth_labels})
    data.dataset = {
        "info": {},
        "images": [{"id": 1, "width": 300, "height": 300}],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names, 1)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": names.index(truth_labels[i]) + 1,
                "bbox": xywh(box),
                "area": float((box[2:] - box[:2]).prod()),
                "iscrowd": int(crowd[i]),
            }
            for i, box in enumerate(truth)
        ],
    }
    data.createIndex()
    found = [
        {"image_id": 1, "category_id": names.index(labels[i]) + 1, "bbox": xywh(box), "score": float(scores[i])}
        for i, box in enumerate(boxes)
    ]
    evaluation = COCOeval(data, data.loadRes(found), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.params.areaRngLbl = ["all"]
    evaluation.evaluate()
    counts = {"hit": 0, "ignored": 0, "false": 0, "found": 0}
    partners = [-1] * len(boxes)
    for image in filter(None, evaluation.evalImgs):
        ignored, matched = image["dtIgnore"][0].astype(bool), image["dtMatches"][0] > 0
        counts["hit"] += int((matched & ~ignored).sum())
        counts["ignored"] += int(ignored.sum())
        counts["false"] += int((~matched & ~ignored).sum())
        counts["found"] += int(((image["gtMatches"][0] > 0) & ~image["gtIgnore"].astype(bool)).sum())
        for i, partner in zip(image["dtIds"], image["dtMatches"][0], strict=True):
            partners[i - 1] = int(partner) - 1
    return counts, partners


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_matching_counts_as_pycocotools_does(seed: int, classes: int) -> None:
    scene = _scene(seed, classes)
    match = match_boxes(*scene)
    counts = {outcome: match.outcomes.count(outcome) for outcome in ("hit", "ignored", "false")}
    expected, partners = _coco_counts(*scene)
    assert {**counts, "found": int(match.found.sum())} == expected
    assert match.partners.tolist() == partners


def test_the_higher_score_takes_the_object() -> None:
    truth = [[0, 0, 10, 10]]
    match = match_boxes([[0, 0, 10, 10], [0, 0, 10, 9]], [0.3, 0.9], truth)
    assert match.outcomes == ("false", "hit")
    assert match.partners.tolist() == [-1, 0]


def test_overlap_of_exactly_one_half_is_a_hit() -> None:
    assert match_boxes([[0, 0, 10, 5]], [1.0], [[0, 0, 10, 10]]).outcomes == ("hit",)
    assert match_boxes([[0, 0, 10, 4.99]], [1.0], [[0, 0, 10, 10]]).outcomes == ("false",)


def test_a_crowd_box_is_neither_found_nor_missed() -> None:
    picture = Picture(
        image=GREY,
        boxes=[[0, 0, 5, 5], [5, 5, 10, 10]],
        scores=[0.9, 0.8],
        truth=[[0, 0, 50, 50], [100, 50, 120, 70]],
        crowd=[True, False],
    )
    assert picture.match.outcomes == ("ignored", "ignored")
    assert picture.counts() == {"found": 0, "missed": 1, "false": 0}


@pytest.mark.parametrize(("boxes", "truth"), [(0, 0), (0, 2), (2, 0)])
def test_nothing_found_or_nothing_there(boxes: int, truth: int) -> None:
    match = match_boxes(np.ones((boxes, 4)) * [0, 0, 1, 1], np.ones(boxes), np.ones((truth, 4)) * [0, 0, 1, 1])
    assert match.outcomes == ("false",) * boxes
    assert match.found.tolist() == [False] * truth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.5]}, "scores must have one value per box, 2"),
        ({"labels": ["a", "b"]}, "given together"),
        ({"crowd": [True, False]}, "crowd must"),
        ({"boxes": [[0, 0, 1]]}, "shape"),
        ({"boxes": [[0, 0, 1, np.nan], [0, 0, 1, 1]]}, "finite"),
        ({"image": GREY.astype(np.float32)}, "uint8"),
        ({"image": GREY[..., 0]}, "RGB"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "image": GREY,
        "boxes": [[0, 0, 9, 9], [1, 1, 9, 9]],
        "scores": [0.5, 0.6],
        "truth": [[0, 0, 9, 9]],
    }
    with pytest.raises(PictureError, match=message):
        Picture(**{**good, **changes})


def _near(pixels: np.ndarray, color: str) -> np.ndarray:
    return np.abs(pixels.astype(int) - np.array(to_rgb(color)) * 255).max(axis=-1) < 40


def test_the_sheet_shows_hits_false_detections_and_misses_apart(tmp_path: Path) -> None:
    hit, false, missed = [20, 20, 60, 60], [120, 20, 160, 60], [20, 70, 60, 110]
    truth = [[21, 21, 61, 61], missed]
    picture = Picture(image=GREY, boxes=[hit, false], scores=[0.9, 0.8], truth=truth, name="one")
    totals = detection_sheet([picture, picture], tmp_path / "new" / "sheet.png", title="Trees", columns=2, scale=4)
    assert totals == {"found": 2, "missed": 2, "false": 2}
    sheet = np.asarray(cv2.imread(str(tmp_path / "new" / "sheet.png")))[:, :, ::-1]
    cell = sheet[-(16 + 480) : -16, 16 : 16 + 800]
    for color, (x0, y0, x1, y1) in ((HIT, hit), (FALSE, false), (MISSED, missed)):
        rows, columns = np.nonzero(_near(cell, color))
        assert [columns.min(), columns.max() + 1] == pytest.approx([x0 * 4, x1 * 4], abs=2)
        assert rows.max() + 1 == pytest.approx(y1 * 4, abs=2)
        assert y0 * 4 - 20 <= rows.min() <= y0 * 4 + 2  # a tag with the score may stand above


def test_a_sheet_of_uneven_narrow_pictures_is_written(tmp_path: Path) -> None:
    empty = Picture(image=GREY[:50, :40], boxes=[], scores=[], truth=[])
    full = Picture(image=GREY, boxes=[[0, 0, 9, 9]], scores=[0.5], truth=[], labels=["tree"])
    assert detection_sheet([empty, full], tmp_path / "a.jpg", columns=1, scale=1)["false"] == 1
    assert cv2.imread(str(tmp_path / "a.jpg")) is not None


def test_a_sheet_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    picture = Picture(image=GREY, boxes=[], scores=[], truth=[])
    with pytest.raises(PictureError, match="png, jpg or webp"):
        detection_sheet([picture], tmp_path / "a.nonsense")
    with pytest.raises(PictureError, match="at least one picture"):
        detection_sheet([], tmp_path / "a.png")


def test_a_picture_says_what_was_found_and_is_enlarged_to_be_seen() -> None:
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    truth = [[5, 5, 20, 20], [30, 10, 50, 30]]
    drawn = show(Picture(image, [[5, 5, 20, 20], [40, 30, 45, 38]], [0.9, 0.8], truth, name="a.png"))
    assert (drawn.name, drawn.caption) == ("a.png", "1 found, 1 missed, 1 false")
    assert drawn.pixels.shape == (40 * 8, 60 * 8, 3)
    colour = np.array([int(MISSED[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(drawn.pixels.astype(int) - colour).max(axis=2) < 10).sum() > 50


class Detector(nn.Module):
    """Finds one certain and one doubtful box in every picture."""

    def forward(self, batch: list[dict]) -> list[dict]:
        found = Instances((80, 96))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]]))
        found.scores = torch.tensor([0.9, 0.29])
        found.pred_classes = torch.tensor([0, 0])
        return [{"instances": found} for _ in batch]


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_come_with_what_is_certain_and_what_is_true(squares: Path, count: int) -> None:
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["TEST.SCORE_THRESHOLD", "0.3"])
    cfg.DATASETS.CUSTOM = [
        {"NAME": "squares", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
    ]
    register_datasets(cfg)
    shown = detections(cfg, Detector(), "squares", count=count)
    assert len(shown) == count
    first = shown[0]
    assert first.image.shape == (80, 96, 3)
    assert first.boxes.tolist() == [[1.0, 2.0, 30.0, 40.0]]
    assert first.truth.shape == (3, 4)
    assert first.labels == ["square"]
    assert first.truth_labels == ["square"] * 3
    assert first.crowd == [False] * 3
    if count == 3:
        assert [one.name for one in shown] == ["0.png", "4.png", "7.png"], "spread over the eight"
