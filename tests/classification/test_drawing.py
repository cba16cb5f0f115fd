from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ode_detect.classification.drawing import (
    CLASSIFICATION_LEGEND,
    RIGHT,
    UNFAMILIAR,
    WRONG,
    Classified,
    draw_classified,
    prediction_sheet,
    show_classified,
)
from ode_detect.report.canvas import PictureError

GREY = np.full((28, 28, 3), 90, dtype=np.uint8)
SEVEN = Classified(GREY, ["seven", "nine"], [0.9, 0.06], truth="seven", name="3.png")
WRONG_NINE = replace(SEVEN, labels=["nine", "seven"])


def has(pixels: np.ndarray, color: str) -> int:
    """How many pixels have a colour."""
    return int((pixels == np.round(255 * np.array(to_rgb(color)))).all(axis=2).sum())


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


def test_a_picture_says_whether_it_is_right() -> None:
    right, wrong = show_classified(SEVEN), show_classified(replace(WRONG_NINE, far=True))
    assert (right.name, right.caption) == ("3.png", "seven 0.90, right")
    assert wrong.caption == "nine 0.90, wrong: it is seven, unlike the training pictures"
    assert show_classified(replace(SEVEN, truth=None)).caption == "seven 0.90"
    assert has(right.pixels, RIGHT) > 1000
    assert not has(right.pixels, WRONG)
    assert not has(right.pixels, UNFAMILIAR)
    assert has(wrong.pixels, WRONG) > 1000
    assert has(wrong.pixels, RIGHT) > 20  # the bar of the true class
    assert has(wrong.pixels, UNFAMILIAR) > 50
    assert [color for color, _ in CLASSIFICATION_LEGEND] == [RIGHT, WRONG, UNFAMILIAR]


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (32, 32), (224, 224), (480, 640), (900, 60), (30, 1200)])
def test_the_size_of_a_drawing_depends_on_that_of_the_picture_only(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, dtype=np.uint8)
    few = draw_classified(image, ["a"], [1.0], False)
    many = draw_classified(image, [f"a very long name of a class, {i}" for i in range(9)], [0.1] * 9, True)
    assert few.shape == many.shape
    assert few.shape[1] >= 320
    assert few.dtype == np.uint8
    assert has(few, "#5A5A5A") >= size[0] * size[1]  # all of the picture is seen


def test_bars_are_as_long_as_probabilities() -> None:
    half, whole = (draw_classified(GREY, ["a"], [p], False) for p in (0.5, 1.0))
    assert has(half, "#0072B2") / has(whole, "#0072B2") == pytest.approx(0.5, abs=0.02)


def test_a_small_picture_is_enlarged_as_squares() -> None:
    image = np.zeros((28, 28, 3), dtype=np.uint8)
    image[14, 14] = (250, 10, 20)
    drawn = draw_classified(image, ["a"], [1.0], False)
    assert (drawn == (250, 10, 20)).all(axis=2).sum() == 12 * 12


@pytest.mark.parametrize("side", [28, 32, 224, 600])
def test_a_sheet_shows_every_picture_in_its_frame(side: int, tmp_path: Path) -> None:
    image = np.full((side, side, 3), 90, dtype=np.uint8)
    right, wrong = replace(SEVEN, image=image), replace(WRONG_NINE, image=image, far=True)
    prediction_sheet([right] * 7, tmp_path / "right.png", "mnist_test")
    prediction_sheet([right] * 7, tmp_path / "new" / "both.png", "mnist_test", mistakes=[wrong] * 5)
    first, both = read(tmp_path / "right.png"), read(tmp_path / "new" / "both.png")
    cell = {28: 112, 32: 128, 224: 224, 600: 224}[side]
    assert has(first, "#5A5A5A") >= 7 * cell**2
    assert has(both, "#5A5A5A") >= 12 * cell**2 - 5 * 20**2
    assert first.shape[1] == both.shape[1] == 6 * (cell + 8 + 16) + 16
    assert has(first, WRONG) < 500 < has(both, WRONG)  # in the legend only
    assert has(both, UNFAMILIAR) > 3 * has(first, UNFAMILIAR)


def test_a_sheet_of_one_picture_has_room_for_its_legend(tmp_path: Path) -> None:
    wide = Classified(np.zeros((300, 20, 3), dtype=np.uint8), ["a long name " * 9], [0.5], truth="another " * 9)
    for picture in (SEVEN, wide):
        prediction_sheet([picture], tmp_path / "a.png", "a data set with a long name, " * 9)
        assert read(tmp_path / "a.png").shape[1] >= 4 * 112


def test_letters_stay_in_their_place(tmp_path: Path) -> None:
    long = replace(WRONG_NINE, labels=["a very long name of a class"] * 2, truth="another very long name")
    prediction_sheet([long] * 6, tmp_path / "a.png", "t")
    pixels = read(tmp_path / "a.png")
    text = pixels[-16 - 2 * 19 + 2 :].min(axis=(0, 2)) < 128
    for place in range(6):
        gap = 16 + place * 136 + 120
        assert text[gap - 120 : gap].any()
        assert not text[gap + 2 : gap + 16].any()


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="at least one picture"):
        prediction_sheet([], tmp_path / "a.png", "")
    with pytest.raises(PictureError, match="could not be"):
        prediction_sheet([SEVEN], tmp_path / "a.xyz", "")
    with pytest.raises(PictureError, match="RGB, uint8"):
        draw_classified(np.zeros((28, 28), dtype=np.uint8), ["a"], [1.0], False)
    for labels, probabilities in (([], []), (["a"], [])):
        with pytest.raises(PictureError, match="each label needs a probability"):
            draw_classified(GREY, labels, probabilities, False)
