"""What was found when data sets were checked, in words and in files."""

import json
from pathlib import Path

import numpy as np
import pytest

from ode_detect.detection.data.check import Checked, check
from ode_detect.detection.data.custom import Source
from ode_detect.detection.data.summary import describe, problems_of_sizes, seen, stops, write_report
from ode_detect.engine.config import load_config
from ode_detect.media.errors import Problem

from ...conftest import QUICKSTART, overrides_for


@pytest.fixture(scope="module")
def checked(squares: Path) -> Checked:
    return check(Source("squares", squares / "images", squares / "train.json"))


def test_without_a_network_sizes_are_those_of_the_pictures(checked: Checked) -> None:
    (sizes,) = seen(checked, None, ["squares"], [])
    assert (sizes.unit, sizes.covered, sizes.anchors.shape) == ("pixels", None, (0, 2))
    assert len(sizes.boxes) == 18
    assert ((sizes.boxes >= 15) & (sizes.boxes <= 30)).all()


def test_with_a_network_sizes_are_those_of_each_use(checked: Checked, squares: Path, tmp_path: Path) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path, "INPUT.MIN_SIZE_TEST", "160"))
    training, test = seen(checked, cfg, ["squares"], ["squares"])
    assert (training.use, test.use) == ("training", "the test")
    np.testing.assert_allclose(test.boxes, 2 * checked.boxes())
    assert test.unit == "pixels of the network's input in the test"
    assert test.median is not None
    assert 30 < test.median < 60
    assert test.covered is not None
    assert 0 <= test.covered <= 1
    assert seen(checked, cfg, ["other"], []) == []


def test_the_text_has_counts_classes_sizes_and_what_is_wrong(checked: Checked, squares: Path, tmp_path: Path) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path))
    text = describe(checked, cfg, ["squares"], [])
    assert text.startswith("squares: 8 pictures, 2 without objects, 18 objects, 0 ignored\n")
    assert "in pixels of the network's input in training" in text
    assert "of the objects have an anchor of about their shape" in text
    assert "wrong" not in text
    assert "have an anchor" not in describe(checked, None, [], [])


def test_only_what_no_repair_removes_stops_a_training() -> None:
    assert stops(Problem("a rule", ("here",))) == " [stops training]"
    assert stops(Problem("a rule", ("here",), "mended")) == ""


def test_other_sizes_in_the_test_are_a_problem(checked: Checked, squares: Path, tmp_path: Path) -> None:
    def problems(size: str) -> list[Problem]:
        words = overrides_for(squares, tmp_path, "INPUT.MIN_SIZE_TEST", size)
        return problems_of_sizes(load_config(QUICKSTART, words), [checked], ["squares"], ["squares"])

    assert len(problems("800")) > len(problems("60"))
    assert problems_of_sizes(load_config(QUICKSTART), [checked], [], []) == []


@pytest.mark.parametrize("draw", [0, 2])
def test_the_report_has_numbers_plots_and_samples(checked: Checked, squares: Path, tmp_path: Path, draw: int) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path))
    write_report(tmp_path, cfg, (["squares"], ["squares"]), [checked], [Problem("between", ("a", "b"))], [], draw=draw)
    content = json.loads((tmp_path / "check.json").read_text())
    (one,) = content["datasets"]
    assert (one["counts"]["objects"], one["classes"], set(one["seen in"])) == (
        18,
        {"square": 18},
        {"training", "the test"},
    )
    assert content["between"][0]["where"] == ["a", "b"]
    assert {"squares.png", "squares_test.png"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "squares_samples.jpg").exists() is bool(draw)
