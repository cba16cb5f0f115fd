from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from ode_detect.detection.drawing import COLORS, FALSE, HIT, MISSED
from ode_detect.report.canvas import (
    Canvas,
    PictureError,
    check_image,
    contrast,
    letters_on,
    measure,
    shortened,
    write_sheet,
)
from ode_detect.report.plots import COLOURS

BOX = np.array([20.0, 10.0, 60.0, 40.0])


def where(pixels: np.ndarray, color: str) -> tuple[slice, slice]:
    """The least rectangle that holds a colour."""
    rows, columns = np.nonzero((pixels == np.round(255 * np.array(to_rgb(color)))).all(axis=2))
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


@pytest.mark.parametrize(("width", "first", "last"), [(1, 0, 1), (2, -1, 1), (3, -2, 2), (8, -4, 4)])
def test_the_line_of_a_box_goes_through_its_corners(width: int, first: int, last: int) -> None:
    canvas = Canvas(80, 50)
    canvas.box(BOX, "red", width, halo=False)
    rows, columns = where(canvas.pixels(), "red")
    assert (rows.start, columns.start) == pytest.approx((10 + first, 20 + first), abs=1)
    assert (rows.stop, columns.stop) == pytest.approx((40 + last, 60 + last), abs=1)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (30 + width, 40 + width)
    assert (canvas.pixels()[22:28, 32:48] == 255).all()


def test_a_translucent_line_has_no_dark_corners() -> None:
    canvas = Canvas(80, 50)
    canvas.box(BOX, "black", 4, alpha=0.5, halo=False)
    assert set(np.unique(canvas.pixels())) == {127, 255}


def test_dashes_cover_two_thirds_of_a_line() -> None:
    lines = []
    for dashed in (False, True):
        canvas = Canvas(400, 300)
        canvas.box(np.array([20.0, 20.0, 380.0, 280.0]), "black", 3, dashed=dashed, halo=False)
        lines.append((canvas.pixels() == 0).all(axis=2).sum())
    assert lines[1] / lines[0] == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("box", [[-50, -40, 500, 300], [30, 20, 30, 20], [100, 90, 120, 95]])
def test_boxes_outside_and_boxes_without_extent_can_be_drawn(box: list[float]) -> None:
    canvas = Canvas(80, 50)
    for dashed in (False, True):
        canvas.box(np.array(box, dtype=float), "red", 3, dashed=dashed)
    assert canvas.pixels().shape == (50, 80, 3)


@pytest.mark.parametrize("corner", [(0.0, 0.0), (180.0, 60.0), (40.0, 30.0)])
def test_a_label_lies_inside_the_picture(corner: tuple[float, float]) -> None:
    canvas = Canvas(200, 80)
    canvas.label(np.array([*corner, 199.0, 79.0]), "cell 0.87", "cyan", size=16)
    rows, columns = where(canvas.pixels(), "cyan")
    assert rows.stop - rows.start == 20
    assert columns.stop - columns.start == pytest.approx(measure("cell 0.87", 16) + 8, abs=1)
    assert rows.stop == max(round(corner[1]), 20)
    letters = canvas.pixels()[rows, columns].sum(axis=2) < 300
    assert letters.any()
    # Room on all sides of the letters.
    assert not letters[[0, -1]].any()
    assert not letters[:, [0, -1]].any()


def seen(canvas: Canvas, colors: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Height and width of what is left of the tag of each colour."""
    found = {color: where(canvas.pixels(), color) for color in colors}
    return {color: (rows.stop - rows.start, columns.stop - columns.start) for color, (rows, columns) in found.items()}


@pytest.mark.parametrize("box", [(20.0, 60.0, 90.0, 110.0), (0.0, 0.0, 200.0, 120.0), (150.0, 100.0, 199.0, 119.0)])
def test_labels_of_boxes_on_one_object_hide_no_other(box: tuple[float, ...]) -> None:
    canvas, colors = Canvas(200, 120), ["cyan", "yellow", "magenta", "lime"]
    canvas.labels([(np.array(box), f"class {i}", color) for i, color in enumerate(colors)])
    tag = (15, round(measure("class 0", 12) + 6))
    assert all(size == pytest.approx(tag, abs=1) for size in seen(canvas, colors).values())
    alone = Canvas(200, 120)
    alone.label(np.array(box), "class 3", "lime")
    assert where(alone.pixels(), "lime") == where(canvas.pixels(), "lime"), "the last one has the first choice"


def test_where_all_places_are_taken_the_last_label_lies_above() -> None:
    canvas = Canvas(60, 30)
    canvas.labels([(np.array([0.0, 0.0, 50.0, 20.0]), "class", color) for color in ("red", "blue", "cyan", "lime")])
    assert seen(canvas, ["lime"])["lime"][0] == 15


@pytest.mark.parametrize("color", sorted({*COLOURS, *COLORS, HIT, FALSE, MISSED, "#AAAAAA"}))
def test_letters_can_be_read_on_every_colour_that_we_draw_in(color: str) -> None:
    # The least for letters is 4.5; no letters have more than 4.6 on every ground.
    assert contrast(letters_on(color), color) > 3.8
    canvas = Canvas(200, 80)
    canvas.label(np.array([20.0, 40.0, 199.0, 79.0]), "cell 0.87", color)
    rows, columns = where(canvas.pixels(), color)
    pixels = canvas.pixels()[rows, columns]
    letters = np.round(255 * np.array(to_rgb(letters_on(color))))
    assert (pixels == letters).all(axis=2).any()


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#777777", "white") == pytest.approx(4.48, abs=0.01)
    assert letters_on("#0072B2") == "#FFFFFF"  # dark blue


def test_any_letters_can_be_written() -> None:
    """What the font lacks is an empty box, without a warning."""
    for text in ("naïve Ω", "樹木", "🐦", "$_", "two\nlines", ""):
        canvas = Canvas(100, 40)
        canvas.label(np.array([2.0, 30.0, 90.0, 39.0]), text, "cyan")
        assert (canvas.pixels() != 255).any() == bool(text)


def test_text_is_shortened_to_its_room() -> None:
    assert shortened("a cat", 13, 200) == "a cat"
    short = shortened("a very long name", 13, 60)
    assert short.endswith("…")
    assert "a very long name".startswith(short[:-1])
    assert 40 < measure(short, 13) <= 60
    assert measure(shortened("a very long name", 13, 60, bold=True), 13, bold=True) <= 60
    assert shortened("a cat", 13, 0) == "…"


def test_a_sheet_is_written_in_the_format_of_its_suffix_and_its_folders_are_made(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :10] = (255, 0, 0)  # RGB
    for suffix, begins in ((".png", b"\x89PNG"), (".jpg", b"\xff\xd8"), (".webp", b"RIFF")):
        path = tmp_path / "new" / "deep" / f"sheet{suffix}"
        write_sheet(pixels, path)
        assert path.read_bytes().startswith(begins)
        read = np.asarray(cv2.imread(str(path)))
        assert read.shape == (10, 20, 3)
        assert read[5, 3, 2] > 200 > 50 > read[5, 3, 0], "red stays red"


def test_a_sheet_that_cannot_be_written_says_what_to_check(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    (tmp_path / "taken.png").mkdir()
    for name in ("sheet.nonsense", "sheet", "taken.png"):
        with pytest.raises(PictureError, match=rf"png, jpg or webp; .*{name} could not be\. Check the suffix"):
            write_sheet(pixels, tmp_path / name)


@pytest.mark.parametrize(
    ("image", "came_in"),
    [
        (np.zeros((4, 5), np.uint8), r"uint8, \(4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8, \(4, 5, 4\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"uint8, \(1, 4, 5, 3\)"),
        (np.zeros((4, 5, 3), np.float32), r"float32, \(4, 5, 3\)"),
    ],
)
def test_a_picture_of_another_shape_or_type_is_refused(image: np.ndarray, came_in: str) -> None:
    check_image(np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(PictureError, match=rf"RGB, uint8, .* this one is {came_in}\. Convert it"):
        check_image(image)
