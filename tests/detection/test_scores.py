from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ode_detect.detection.matching import Matches
from ode_detect.detection.scores import POINTS, ClassScores, DetectionScores, Operating, score_detections
from ode_detect.report.rows import ResultsError, Row


def scored(**changes: Any) -> DetectionScores:
    """Two classes: three of four cats are found, at 0.9, 0.6 and 0.6, beside two mistakes; the one dog is not."""
    arguments: dict[str, Any] = {
        "iou": 0.5,
        "threshold": 0.5,
        "names": ("cat", "dog"),
        "objects": (4, 1),
        "confidence": (np.array([0.6, 0.9, 0.6, 0.8, 0.2]), np.array([0.55])),
        "hits": (np.array([True, True, True, False, False]), np.array([False])),
        "ap50": (0.6, 0.0),
        "confusion": ((3, 0, 1), (0, 0, 1), (1, 1, 0)),
    }
    return score_detections(Matches(**{**arguments, **changes}))


def brute_f1(confidence: np.ndarray, hits: np.ndarray, objects: int, threshold: float) -> float:
    right = sum(1 for c, h in zip(confidence, hits, strict=True) if c >= threshold and h)
    wrong = sum(1 for c, h in zip(confidence, hits, strict=True) if c >= threshold and not h)
    return 2 * right / (2 * right + wrong + objects - right)


def test_counts_at_the_given_threshold() -> None:
    cats, dogs = scored().classes
    assert cats.given == Operating(0.5, 0.75, 0.75, 0.75, true_positives=3, false_positives=1, false_negatives=1)
    assert dogs.given == Operating(0.5, 0.0, 0.0, 0.0, true_positives=0, false_positives=1, false_negatives=1)


def test_all_classes_together_are_one_heap() -> None:
    everything = scored().overall
    assert everything.objects == 5
    assert everything.given == Operating(0.5, 0.6, 0.6, 0.6, true_positives=3, false_positives=2, false_negatives=2)
    assert everything.ap50 == pytest.approx(0.3)


def test_a_score_at_the_threshold_counts() -> None:
    assert scored(threshold=0.6).classes[0].given.true_positives == 3
    assert scored(threshold=0.6000001).classes[0].given.true_positives == 1


def test_detections_of_one_score_come_and_go_together_whatever_their_order() -> None:
    hits = np.array([False, True, True, True, False])
    confidence = np.array([0.7, 0.7, 0.7, 0.9, 0.7])
    one = scored(confidence=(confidence, np.empty(0)), hits=(hits, np.empty(0, bool)))
    other = scored(confidence=(confidence[::-1], np.empty(0)), hits=(hits[::-1], np.empty(0, bool)))
    assert one == other
    assert one.classes[0].confidence == (0.7, 0.9)
    assert one.classes[0].precision == (0.6, 1.0)
    assert one.classes[0].recall == (0.75, 0.25)


@pytest.mark.parametrize("seed", range(5))
def test_best_f1_is_the_largest_of_all_thresholds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence, hits = rng.integers(1, 60, 200) / 60, rng.random(200) < 0.3
    cats = scored(objects=(90, 1), confidence=(confidence, np.empty(0)), hits=(hits, np.empty(0, bool))).classes[0]
    f1 = {threshold: brute_f1(confidence, hits, 90, threshold) for threshold in np.unique(confidence)}
    assert cats.best.f1 == pytest.approx(max(f1.values()), abs=1e-12)
    assert f1[cats.best.threshold] == pytest.approx(cats.best.f1, abs=1e-12)
    assert cats.f1 == pytest.approx([f1[threshold] for threshold in cats.confidence])


def test_a_long_curve_keeps_its_ends_and_at_most_so_many_points() -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.beta(1, 20, 19_000), rng.random(1000)])
    hits = rng.random(20_000) < 0.3
    cats = scored(objects=(9000, 1), confidence=(confidence, np.empty(0)), hits=(hits, np.empty(0, bool))).classes[0]
    assert 200 < len(cats.confidence) <= POINTS
    assert (cats.confidence[0], cats.confidence[-1]) == (confidence.min(), confidence.max())
    assert list(cats.confidence) == sorted(set(cats.confidence))
    assert max(np.diff(cats.confidence)) < 0.02
    at = confidence >= cats.confidence[100]
    assert cats.precision[100] == pytest.approx(hits[at].mean())
    assert cats.recall[100] == pytest.approx(hits[at].sum() / 9000)


def test_nothing_found_is_zero_and_a_dash() -> None:
    nothing = scored(confidence=(np.empty(0), np.empty(0)), hits=(np.empty(0, bool), np.empty(0, bool)))
    zero = Operating(0.5, 0.0, 0.0, 0.0, true_positives=0, false_positives=0, false_negatives=5)
    assert nothing.overall.given == nothing.overall.best == zero
    assert nothing.metrics == {"precision": 0, "recall": 0, "f1": 0, "best_f1": 0, "best_f1_threshold": 0.5}
    assert nothing.table().splitlines()[4].split() == ["all", "5", "-", "0.000", "0.000", "-", "-", "0.300"]


def test_a_class_without_objects_counts_by_its_mistakes() -> None:
    dogs = scored(objects=(4, 0), ap50=(0.6, math.nan))
    assert dogs.classes[1].given.false_positives == 1
    assert dogs.classes[1].ap50 is None
    assert dogs.overall.ap50 == 0.6
    assert dogs.overall.given.precision == 0.6
    assert dogs.table().splitlines()[3].split() == ["dog", "0", "0.000", "-", "-", "-", "-", "-"]


def test_without_any_object_there_are_no_metrics() -> None:
    empty = scored(objects=(0, 0), hits=(np.zeros(5, bool), np.zeros(1, bool)), ap50=(math.nan, math.nan))
    assert empty.metrics == {}
    assert empty.overall.given.false_positives == 5
    assert empty.overall.ap50 is None


def test_the_metrics_are_those_of_a_row() -> None:
    row = Row("cats", "ode", 0, "c.yaml", scored().metrics)
    assert list(row.metrics) == ["precision", "recall", "f1", "best_f1", "best_f1_threshold"]
    assert row.metrics["best_f1_threshold"] == 0.6


def test_the_table_says_how_all_classes_are_taken_together() -> None:
    assert scored().table().splitlines()[-1] == "all: every object counts alike; AP50 is the mean of the classes)"


def test_one_class_needs_no_line_for_all() -> None:
    one = scored(
        names=("cat",), objects=(4,), confidence=(np.array([0.9]),), hits=(np.array([True]),), ap50=(0.25,),
        confusion=((1, 3), (0, 0)),
    )  # fmt: skip
    assert [line.split()[0] for line in one.table().splitlines()] == ["class", "-------", "cat", "(IoU"]


@pytest.mark.parametrize("ap50", [(0.6, 0.0), (0.6, math.nan)])
def test_what_is_written_is_read(ap50: tuple[float, float], tmp_path: Path) -> None:
    scores = scored(ap50=ap50)
    scores.write(tmp_path / "deep" / "scores.json")
    assert DetectionScores.read(tmp_path / "deep" / "scores.json") == scores
    assert json.loads((tmp_path / "deep" / "scores.json").read_text())["labels"] == ["cat", "dog", "background"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"iou"', '"iuo"', "did you mean iou"),
        ('"iou": 0.5', '"iou": 50', r"must be a number in \[0, 1\]; it is 50"),
        ('"true_positives": 3', '"true_positives": 2', "must add up"),
        ('"true_positives": 3', '"true_positives": -3', "whole number of 0 or more"),
        ('"background"]', '"dogs"]', "labels must be"),
        ('[3, 0, 1]', '[3, 0]', "one row and one column"),
        ('"classes": [', '"classes": 3, "x": [', "does not hold scores|unknown key"),
        ('"f1": 0.75', '"f1": NaN', "must be a number"),
        ('{', '[', "must be JSON"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    scored().write(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ResultsError, match=message):
        DetectionScores.read(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="Evaluate first"):
        DetectionScores.read(tmp_path / "scores.json")


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ResultsError, match="class 'cat' has others"):
        scored(confidence=(np.array([0.6, np.nan, 0.6, 0.8, 0.2]), np.array([0.55])))


def test_curves_of_different_lengths_are_refused() -> None:
    cats: ClassScores = scored().classes[0]
    with pytest.raises(ResultsError, match="one length"):
        replace(cats, recall=cats.recall[:-1])
