from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.report.overlays import Line, plot_lines
from ode_detect.report.plots import COLOURS, MetricsError


def coloured(path: Path, colour: str) -> int:
    """Pixels of a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (5, 3, 1)])
    return int((np.abs(cv2.imread(str(path)).astype(int) - wanted).max(axis=2) < 12).sum())


def test_a_network_has_the_colour_of_its_place_in_every_plot(tmp_path: Path) -> None:
    x = np.arange(50)
    names = ["a", "b", "c"]
    plot_lines([Line("c", x, np.sqrt(x))], tmp_path / "c.png", xlabel="x", ylabel="y", networks=names)
    assert coloured(tmp_path / "c.png", COLOURS[2]) > 100
    assert coloured(tmp_path / "c.png", COLOURS[0]) == 0


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    lines = [Line("a", (0, 1, 2), (0.1, float("nan"), 0.3)), Line("b", (0.0,), (float("inf"),)), Line("b", (), ())]
    style = {"xlabel": "x", "ylabel": "loss", "networks": ["a", "b"]}
    plot_lines(lines, tmp_path / "deep" / "a.png", **style, smoothed=True, unit_square=True)
    assert coloured(tmp_path / "deep" / "a.png", COLOURS[0]) > 20
    assert coloured(tmp_path / "deep" / "a.png", COLOURS[1]) == 0
    with pytest.raises(MetricsError, match="a plot of loss needs"):
        plot_lines(lines[1:], tmp_path / "b.png", **style)
