from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ode_detect.detection import curves
from ode_detect.detection.curves import (
    PLOTS,
    plot_confusion,
    plot_f1,
    plot_precision_recall,
    plot_scores,
    summary_curves,
)
from ode_detect.detection.matching import Matches
from ode_detect.detection.scores import DetectionScores, score_detections
from ode_detect.report import confusion


def scores_of(count: int, objects: int = 40) -> DetectionScores:
    """Classes of which the first is found best, each with a fifth of mistakes."""
    rng = np.random.default_rng(0)
    hits = [rng.random(objects) < 0.8 * (1 - index / (count + 1)) for index in range(count)]
    confusion = np.zeros((count + 1, count + 1), dtype=int)
    for index, found in enumerate(hits):
        confusion[index, index], confusion[index, -1] = found.sum(), objects - found.sum()
    return score_detections(
        Matches(
            iou=0.5,
            threshold=0.5,
            names=tuple(f"class {index}" for index in range(count)),
            objects=(objects,) * count,
            confidence=tuple(np.where(found, rng.beta(5, 2, len(found)), rng.beta(2, 4, len(found))) for found in hits),
            hits=tuple(hits),
            ap50=tuple(float(found.mean()) for found in hits),
            confusion=confusion,
        )
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files."""
    figures: list[Figure] = []
    for module in (curves, confusion):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("count", [3, 14])
def test_pictures_are_written(count: int, tmp_path: Path) -> None:
    plot_scores(scores_of(count), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(PLOTS)
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)).std() > 5


def test_what_was_never_found_or_never_there_is_drawn_without_a_warning(tmp_path: Path) -> None:
    for objects in (0, 3):
        nothing = score_detections(Matches(
            iou=0.5, threshold=0.5, names=("a",), objects=(objects,), confidence=(np.empty(0),),
            hits=(np.empty(0, dtype=bool),), ap50=(0.0 if objects else math.nan,),
            confusion=np.array([[0, objects], [0, 0]]),
        ))  # fmt: skip
        plot_scores(nothing, tmp_path / str(objects))
        assert len(list((tmp_path / str(objects)).iterdir())) == len(PLOTS)


def test_few_classes_all_have_a_name(drawn: list[Figure]) -> None:
    scores = scores_of(3)
    plot_precision_recall(scores, "")
    best = scores.overall.best.threshold
    names = ["class 0, AP50 0.75", "class 1, AP50 0.42", "class 2, AP50 0.35"]
    assert [label.split(",")[0] for label in labels(drawn[0])[:3]] == [name.split(",")[0] for name in names]
    assert labels(drawn[0])[3:] == [
        f"all, mean AP50 {scores.overall.ap50:.2f}",
        "score 0.50",
        f"best F1, score {best:.2f}",
    ]


def test_of_many_classes_the_best_and_the_worst_are_named(drawn: list[Figure]) -> None:
    scores = scores_of(20)
    plot_f1(scores, "")
    ordered = sorted(scores.classes, key=lambda one: -(one.ap50 or 0))
    expected = {one.name for one in (*ordered[:3], *ordered[-3:])}
    found = labels(drawn[0])
    assert {label.split(",")[0] for label in found[:6]} == expected
    assert found[7] == "14 other classes\n(named: best and worst by AP50)"


def test_curves_show_the_numbers(drawn: list[Figure]) -> None:
    scores = scores_of(1)
    plot_precision_recall(scores, "")
    plot_f1(scores, "")
    line = drawn[0].axes[0].get_lines()[0]
    assert tuple(line.get_xdata()) == scores.overall.recall
    assert tuple(line.get_ydata()) == scores.overall.precision
    line = drawn[1].axes[0].get_lines()[0]
    assert tuple(line.get_xdata()) == scores.overall.confidence
    assert max(line.get_ydata()) == pytest.approx(scores.overall.best.f1)


def test_the_matrix_has_its_counts_and_is_coloured_by_row(drawn: list[Figure]) -> None:
    scores = scores_of(2)
    plot_confusion(scores, "")
    axes = drawn[0].axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [*[str(n) for row in scores.confusion for n in row][:-1], "–"]
    shares = axes.images[0].get_array()
    assert shares[0, 0] == pytest.approx(scores.confusion[0][0] / 40)
    assert shares[2].sum() == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 0", "class 1", "background"]


def test_curves_for_a_page_are_those_of_all_classes() -> None:
    scores = scores_of(3)
    recall, confidence = summary_curves(scores)
    assert (recall.xlabel, recall.ylabel) == ("Recall", "Precision")
    assert (recall.x, recall.y) == (scores.overall.recall, scores.overall.precision)
    assert (confidence.x, confidence.y) == (scores.overall.confidence, scores.overall.f1)
