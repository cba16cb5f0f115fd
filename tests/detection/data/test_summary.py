import json
from pathlib import Path

import numpy as np
import pytest

from ode_detect.detection.data.check import Checked, check
from ode_detect.detection.data.custom import Source
from ode_detect.detection.data.summary import describe, problems_of_sizes, seen, stops, write_report
from ode_detect.engine.config import load_config
from ode_detect.media.errors import Problem

from ...conftest import QUICKSTART


@pytest.fixture(scope="module")
def one(squares: Path) -> Checked:
    return check(Source("x", squares / "images", squares / "train.json"))


def test_without_a_network_sizes_are_those_of_the_pictures(one: Checked) -> None:
    (sizes,) = seen(one, None, ["x"], ["x"])
    assert (sizes.use, sizes.unit, sizes.covered, sizes.median) == ("", "pixels", None, None)
    np.testing.assert_array_equal(sizes.boxes, one.boxes())
    assert "have an anchor" not in describe(one, None, [], [])


def test_sizes_are_seen_in_each_use_of_a_data_set(one: Checked) -> None:
    cfg = load_config(QUICKSTART, ["INPUT.MIN_SIZE_TEST", "40"])
    assert seen(one, cfg, ["y"], ["z"]) == []
    training, test = seen(one, cfg, ["x"], ["x"])
    assert (training.use, test.use) == ("training", "the test")
    assert test.unit == "pixels of the network's input in the test"
    np.testing.assert_allclose(test.boxes, one.boxes() / 2)
    assert test.median == pytest.approx(np.median(np.sqrt(test.boxes.prod(axis=1))))
    text = describe(one, cfg, [], ["x"])
    assert text.startswith("x: 8 pictures, 2 without objects, 18 objects, 0 ignored\n")
    assert f"  median {test.median:.0f}; {100 * test.covered:.1f} % of the objects have an anchor" in text


def test_a_mistake_that_nothing_repairs_stops_training() -> None:
    assert stops(Problem("boxes", ("a",))) == " [stops training]"
    assert stops(Problem("boxes", ("a",), "dropped")) == ""


def test_sizes_that_no_anchor_fits_are_wrong(one: Checked) -> None:
    cfg = load_config(QUICKSTART, ["MODEL.ANCHOR_GENERATOR.SIZES", "[[2000]]"])
    assert problems_of_sizes(cfg, [one], [], []) == []
    assert problems_of_sizes(cfg, [one], [], ["x"])


def test_the_report_holds_what_was_found(one: Checked, tmp_path: Path) -> None:
    between = [Problem("pictures in both", ("a",))]
    write_report(tmp_path, None, ([], []), [one], between, [], draw=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.json", "x.png"]
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["between"] == [{"rule": "pictures in both", "where": ["a"], "done": ""}]
    assert content["datasets"][0]["classes"] == {"square": 18}
    assert content["datasets"][0]["seen in"] == {}
