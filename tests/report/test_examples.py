from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.report.canvas import PictureError
from ode_detect.report.examples import Drawn


def test_a_large_picture_is_written_smaller(tmp_path: Path) -> None:
    Drawn(np.zeros((300, 1200, 3), dtype=np.uint8), "x", "").write(tmp_path / "new" / "x.jpg")
    assert cv2.imread(str(tmp_path / "new" / "x.jpg")).shape == (240, 960, 3)
    (tmp_path / "taken.jpg").mkdir()
    with pytest.raises(PictureError, match="could not be"):
        Drawn(np.zeros((3, 3, 3), dtype=np.uint8), "x", "").write(tmp_path / "taken.jpg")
