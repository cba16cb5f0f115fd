from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ode_detect.classification import scores as classification
from ode_detect.classification.scores import PLOTS, ClassificationScores, curves, plot_reliability, plot_scores
from ode_detect.report.results import ResultsError

BINS = ((0.0, 0.0, 0), (0.6, 0.5, 10), (0.95, 0.9, 30))


def scores_of(count: int) -> ClassificationScores:
    """Class i has 40 pictures, of which i (at most 30) are taken for the next one."""
    confusion = np.zeros((count, count), dtype=int)
    for i in range(count):
        wrong = min(i, 30)
        confusion[i, i] += 40 - wrong
        confusion[i, (i + 1) % count] += wrong
    right = float(confusion.trace() / confusion.sum())
    metrics = {
        "error": 1 - right,
        "top1": right,
        "precision": 0.9,
        "recall": 0.91,
        "f1": 0.905,
        "ece": 0.0123,
        "nll": 2,
    }
    return ClassificationScores(tuple(f"class {i}" for i in range(count)), confusion.tolist(), metrics, BINS)


def test_figures_of_a_class_are_those_of_its_row_and_column() -> None:
    scores = ClassificationScores(("a", "b", "c"), ((6, 2, 0), (1, 3, 0), (0, 0, 0)), {}, ())
    a, b, c = scores.classes
    assert (a.pictures, a.predicted, a.precision, a.recall, a.taken_for) == (8, 7, 6 / 7, 6 / 8, ("b", 2))
    assert a.f1 == pytest.approx(2 * a.precision * a.recall / (a.precision + a.recall))
    assert (b.precision, b.recall, b.taken_for) == (3 / 5, 3 / 4, ("a", 1))
    assert (c.pictures, c.predicted, c.precision, c.recall, c.f1, c.taken_for) == (0, 0, 0, 0, 0, None)


def test_scores_are_written_and_read(tmp_path: Path) -> None:
    scores = scores_of(3)
    scores.write(tmp_path / "new" / "scores.json")
    assert ClassificationScores.read(tmp_path / "new" / "scores.json") == scores


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must be an object"),
        ('{"names": ["a"]}', "confusion, metrics, reliability is missing"),
        ('{"names": ["a"], "confusion": [[1]], "metrics": {}, "reliability": [[0.5, 1]]}', "does not hold scores"),
        ('{"names": ["a"], "confusion": [1], "metrics": {}, "reliability": []}', "does not hold scores"),
        ('{"names": ["a"], "confusion": [[1, 2]], "metrics": {}, "reliability": []}', r"its rows have \[2\]"),
        ('{"names": ["a"], "confusion": [[-1]], "metrics": {}, "reliability": []}', "whole number of 0 or more"),
        ('{"names": ["a"], "confusion": [[1]], "metrics": {}, "reliability": [[2, 1, 1]]}', r"in \[0, 1\]; it is 2"),
    ],
)
def test_broken_scores_are_told_with_their_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ResultsError, match=message) as told:
        ClassificationScores.read(tmp_path / "scores.json")
    assert "scores.json" in str(told.value)
    with pytest.raises(ResultsError, match="Evaluate first"):
        ClassificationScores.read(tmp_path / "none.json")


def test_a_table_has_a_line_for_each_class_and_what_it_is_taken_for() -> None:
    lines = scores_of(3).table().splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == ["class 0", "class 1", "class 2", "all"]
    assert lines[2].split()[-1] == "-"
    assert lines[3].endswith("class 2 (1)")
    assert lines[5].split() == ["all", "120", "0.900", "0.910", "0.905"]
    assert lines[-1] == "error 2.50 %, top-1 97.50 %, ECE 1.23 %, NLL 2.000"


def test_a_class_without_pictures_has_dashes() -> None:
    table = ClassificationScores(("a", "b"), ((4, 0), (0, 0)), {}, ()).table()
    assert table.splitlines()[3].split() == ["b", "0", "-", "-", "-", "-"]


def test_of_many_classes_the_table_shows_the_worst_and_the_best() -> None:
    assert "others" not in scores_of(20).table()
    scores = scores_of(21)
    lines = scores.table().splitlines()[2:-2]
    assert lines[10].startswith("(6 others)")
    assert len(lines) == 10 + 1 + 5 + 1
    ordered = sorted(scores.classes, key=lambda one: one.f1)
    shown = [line.split("  ")[0].strip() for line in (*lines[:10], *lines[11:16])]
    assert shown == [one.name for one in (*ordered[:10], *ordered[-5:])]
    assert "of 21 classes the 10 worst and the 5 best by F1" in scores.table()


@pytest.mark.parametrize("count", [2, 14, 200])
def test_plots_are_written_in_a_size_that_can_be_looked_at(count: int, tmp_path: Path) -> None:
    plot_scores(scores_of(count), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PLOTS)
    for path in tmp_path.iterdir():
        picture = cv2.imread(str(path))
        assert picture.std() > 5
        assert max(picture.shape) < 3000


def test_the_reliability_diagram_shows_filled_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(classification, "save_figure", lambda figure, path: figures.append(figure))
    plot_reliability(scores_of(3), "")
    upper, lower = figures[0].axes
    assert upper.get_title(loc="left") == "Reliability: ECE 1.23 %"
    assert [(round(bar.get_x(), 3), bar.get_height()) for bar in upper.patches] == [(0.333, 0.5), (0.667, 0.9)]
    assert [bar.get_height() for bar in lower.patches] == [10, 30]


def test_the_curve_for_a_page_leaves_out_empty_bins() -> None:
    (curve,) = curves(scores_of(3))
    assert (curve.x, curve.y) == ((0.6, 0.95), (0.5, 0.9))
    (empty,) = curves(ClassificationScores(("a",), ((0,),), {}, ((0.0, 0.0, 0),)))
    assert empty.x == ()


def test_scores_of_no_picture_are_drawn_without_a_warning(tmp_path: Path) -> None:
    nothing = ClassificationScores(("a", "b"), ((0, 0), (0, 0)), {}, ((0.0, 0.0, 0),) * 3)
    plot_scores(nothing, tmp_path)
    assert "-" in nothing.table()
