import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.detection.data.check import Sample
from ode_detect.detection.data.plots import class_table, plot_dataset, sample_sheet, size_table
from ode_detect.report.canvas import PictureError
from ode_detect.report.confusion import draw_confusion
from ode_detect.report.overlays import Line, plot_lines
from ode_detect.report.ratios import Panel, plot_panels

NONE = np.zeros((0, 2))


def test_sizes_are_counted_in_octaves_beside_the_anchors() -> None:
    boxes = np.array([[4.0, 4.0], [8.0, 2.0], [10.0, 10.0], [1.0, 1.0]])
    lines = [line.split() for line in size_table(boxes, np.array([[8.0, 8.0], [16.0, 4.0]])).splitlines()]
    assert [line[:4] for line in lines] == [
        ["1", "to", "2", "1"],
        ["2", "to", "4", "0"],
        ["4", "to", "8", "2"],
        ["8", "to", "16", "1"],
    ]
    assert lines[3][-2:] == ["anchors", "8"]
    assert size_table(NONE, NONE).strip() == "no boxes"


def test_classes_are_counted_most_frequent_first() -> None:
    assert [line.split()[:2] for line in class_table({"a": 1, "b": 4, "c": 0}).splitlines()] == [
        ["b", "4"],
        ["a", "1"],
        ["c", "0"],
    ]
    assert class_table({}) == ""


@pytest.mark.parametrize("boxes", [NONE, np.array([[3.0, 4.0], [30.0, 40.0]]), np.array([[0.2, 0.1]])])
@pytest.mark.parametrize("anchors", [NONE, np.array([[16.0, 16.0]])])
def test_a_data_set_is_plotted(tmp_path: Path, boxes: np.ndarray, anchors: np.ndarray) -> None:
    plot_dataset("x", {"a": len(boxes), "b": 0}, boxes, anchors, tmp_path / "x" / "a.png", unit="pixels")
    picture = cv2.imread(str(tmp_path / "x" / "a.png"))
    assert picture.shape[1] > 1200
    # Vermilion lines and squares stand for the anchors.
    vermilion = (np.abs(picture.astype(int) - [0x00, 0x5E, 0xD5]).sum(axis=2) < 30).any()
    assert vermilion == bool(len(boxes) and len(anchors))


@pytest.mark.parametrize("name", [r"$\frac{$", "US$_front_5$", "$a\n$", "\u7ea2"])
def test_the_name_of_a_class_is_no_formula(tmp_path: Path, name: str) -> None:
    boxes = np.array([[3.0, 4.0], [30.0, 40.0]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        plot_dataset(name, {name: 1, "b": 1}, boxes, boxes, tmp_path / "a.png", unit="pixels")
        draw_confusion([[1, 2], [3, 4]], [name, "b"], tmp_path / "b.png", title=name)
        plot_panels([Panel(name, name, {name: [(1.0, 2.0)]}, logarithmic=True)], name, tmp_path / "c.png")
        plot_lines([Line(name, (0, 1), (0.1, 0.2))], tmp_path / "d.png", xlabel=name, ylabel=name, networks=[name])
    assert len(list(tmp_path.iterdir())) == 4


def test_samples_are_drawn_in_the_colours_of_their_classes(tmp_path: Path) -> None:
    image = np.full((60, 80, 3), 120, np.uint8)
    box = np.array([[10.0, 10.0, 60.0, 50.0]])
    samples = [Sample(image, box, ["a"], [False], "1.png"), Sample(image, box, ["b"], [True], "2.png")]
    samples.append(Sample(image, np.zeros((0, 4)), [], [], "3.png"))
    sample_sheet(samples, tmp_path / "a.png", title="t", columns=2)
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet.shape[1] == 2 * 614 + 14
    assert (np.abs(sheet.astype(int) - [0xB2, 0x72, 0x00]).sum(axis=2) < 10).sum() > 1000, "blue: the first class"
    assert (np.abs(sheet.astype(int) - [0xAA, 0xAA, 0xAA]).sum(axis=2) < 10).sum() > 1000, "grey: ignored"
    with pytest.raises(PictureError, match="at least one"):
        sample_sheet([], tmp_path / "b.png", title="t")
    with pytest.raises(PictureError, match="suffix"):
        sample_sheet(samples, tmp_path / "b.xyz", title="t")
