from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.detection.drawing import MISSED
from ode_detect.detection.pictures import Picture, show
from ode_detect.report.canvas import PictureError
from ode_detect.report.examples import Drawn


def test_a_picture_says_what_was_found_and_is_enlarged_to_be_seen() -> None:
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    truth = [[5, 5, 20, 20], [30, 10, 50, 30]]
    drawn = show(Picture(image, [[5, 5, 20, 20], [40, 30, 45, 38]], [0.9, 0.8], truth, name="a.png"))
    assert (drawn.name, drawn.caption) == ("a.png", "1 found, 1 missed, 1 false")
    assert drawn.pixels.shape == (40 * 8, 60 * 8, 3)
    colour = np.array([int(MISSED[i : i + 2], 16) for i in (1, 3, 5)])
    assert (np.abs(drawn.pixels.astype(int) - colour).max(axis=2) < 10).sum() > 50


def test_a_large_picture_is_written_smaller(tmp_path: Path) -> None:
    Drawn(np.zeros((300, 1200, 3), dtype=np.uint8), "x", "").write(tmp_path / "new" / "x.jpg")
    assert cv2.imread(str(tmp_path / "new" / "x.jpg")).shape == (240, 960, 3)
    (tmp_path / "taken.jpg").mkdir()
    with pytest.raises(PictureError, match="could not be"):
        Drawn(np.zeros((3, 3, 3), dtype=np.uint8), "x", "").write(tmp_path / "taken.jpg")
