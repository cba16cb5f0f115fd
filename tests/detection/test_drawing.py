import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ode_detect.detection.drawing import COLORS, HIT, draw_boxes, draw_detections
from ode_detect.report.canvas import PictureError

GREY = np.full((120, 200, 3), 60, dtype=np.uint8)


def rgb(color: str) -> np.ndarray:
    return np.array(to_rgb(color)) * 255


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def changed(image: np.ndarray) -> np.ndarray:
    return np.abs(image.astype(int) - 90).max(axis=2) > 8


@pytest.mark.parametrize(("height", "width", "scale"), [(60, 80, 4), (120, 160, 2), (240, 320, 1), (900, 1200, 1)])
def test_small_pictures_are_enlarged_and_letters_grow_with_large_ones(height: int, width: int, scale: int) -> None:
    box = [[0.25 * width, 0.4 * height, 0.75 * width, 0.9 * height]]
    drawn = draw_detections(grey(height, width), box, ["cell"], [0.87], [0])
    assert drawn.shape == (height * scale, width * scale, 3)
    # The tag lies above the box's upper edge: its height is that of the letters.
    column = changed(drawn)[: round(0.39 * height * scale), round(0.26 * width * scale)]
    letters = max(12.0, width * scale / 60) * 15 / 12
    assert 0.6 * letters <= column.sum() <= 1.2 * letters


def test_each_class_has_its_colour_and_colours_repeat_after_the_last() -> None:
    for index in (0, 1, len(COLORS) + 1):
        drawn = draw_detections(grey(240, 320), [[50, 60, 200, 200]], ["x"], [0.5], [index])
        expected = rgb(COLORS[index % len(COLORS)])
        assert np.abs(drawn[45:60, 40:80].reshape(-1, 3).astype(float) - expected).max(axis=1).min() < 3


def test_the_better_of_two_detections_lies_above() -> None:
    boxes, labels = [[50, 60, 200, 200], [50, 60, 200, 200]], ["x", "x"]
    first = draw_detections(grey(240, 320), boxes, labels, [0.9, 0.3], [0, 1])
    alone = draw_detections(grey(240, 320), boxes[:1], labels[:1], [0.9], [0])
    np.testing.assert_array_equal(first[46:58, 50:90], alone[46:58, 50:90])
    again = draw_detections(grey(240, 320), boxes, labels, [0.3, 0.9], [1, 0])
    np.testing.assert_array_equal(first, again)


def test_a_mask_is_tinted_and_outlined_and_the_picture_is_left_alone() -> None:
    image, mask = grey(240, 320), np.zeros((240, 320), dtype=bool)
    mask[80:160, 100:220] = True
    drawn = draw_detections(image, [[100, 80, 220, 160]], ["x"], [0.9], [2], [mask])
    expected = 0.6 * 90 + 0.4 * rgb(COLORS[2])
    np.testing.assert_allclose(drawn[110:140, 130:190].reshape(-1, 3).mean(axis=0), expected, atol=1.5)
    np.testing.assert_array_equal(drawn[180:, :], image[180:, :])
    assert (image == 90).all()


def test_nothing_found_is_the_picture_itself() -> None:
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, np.zeros((0, 4)), [], [], []), image)


def test_every_box_of_a_crowd_keeps_its_label() -> None:
    boxes = [[x, y, x + 40, y + 25] for x in range(10, 600, 80) for y in range(20, 440, 60)]
    drawn = draw_detections(grey(480, 640), boxes, ["x"] * len(boxes), [0.5] * len(boxes), [0] * len(boxes))
    above = changed(drawn)
    assert all(above[y - 8 : y - 2, x : x + 15].mean() > 0.5 for x, y, _, _ in boxes)


def _near(pixels: np.ndarray, color: str) -> np.ndarray:
    return np.abs(pixels.astype(int) - np.array(to_rgb(color)) * 255).max(axis=-1) < 40


def test_a_box_is_drawn_where_it_is() -> None:
    drawn = draw_boxes(GREY, [[40, 20, 100, 80]], color=HIT, scale=2)
    assert drawn.shape == (240, 400, 3)
    assert drawn.dtype == np.uint8
    rows, columns = np.nonzero(_near(drawn, HIT))
    assert [columns.min(), columns.max() + 1] == pytest.approx([80, 200], abs=2)
    assert [rows.min(), rows.max() + 1] == pytest.approx([40, 160], abs=2)
    assert (drawn[100, 140] == 60).all()  # the inside is left alone
    assert (GREY == 60).all()


def test_labels_are_left_out_when_it_is_crowded() -> None:
    boxes = [[5 + 6 * i, 60, 9 + 6 * i, 64] for i in range(30)]
    plain = draw_boxes(GREY, boxes)
    assert np.array_equal(draw_boxes(GREY, boxes, ["tree"] * 30, np.ones(30)), plain)
    assert not np.array_equal(draw_boxes(GREY, boxes, ["tree"] * 30, np.ones(30), text=True), plain)
    assert not np.array_equal(draw_boxes(GREY, boxes[:3], ["$_"] * 3), draw_boxes(GREY, boxes[:3]))


def test_a_picture_without_boxes_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 57, 3), dtype=np.uint8)
    assert np.array_equal(draw_boxes(image, []), image)


def test_draw_boxes_refuses_wrong_lengths() -> None:
    for arguments in ({"labels": ["a"]}, {"scores": [1.0]}, {"color": ["red"]}):
        with pytest.raises(PictureError, match=r"one (value )?per box"):
            draw_boxes(GREY, [[0, 0, 5, 5], [1, 1, 5, 5]], **arguments)
