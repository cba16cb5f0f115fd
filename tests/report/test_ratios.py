"""Plots of panels and of ratios."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.report.plots import COLOURS, MetricsError
from ode_detect.report.ratios import Panel, plot_panels, plot_ratios
from ode_detect.report.rows import Comparison


def _picture(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture


def _colours_in(path: Path) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in _picture(path).reshape(-1, 3).tolist()}


def _bgr(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))


def test_panels_share_colours_and_one_legend(tmp_path: Path) -> None:
    curves = {"a": [(4.0, 1.0), (2.0, 3.0)], "b": [(2.0, 1.0), (4.0, 2.0)]}
    panels = [Panel("first", "y", curves), Panel("second", "z", {"c": [(2.0, 1.0)]}, logarithmic=True)]
    plot_panels(panels, "Steps", tmp_path / "two.png")
    assert {_bgr(colour) for colour in COLOURS[:3]} <= _colours_in(tmp_path / "two.png")
    plot_panels(panels[:1], "Steps", tmp_path / "one.png")
    assert _bgr(COLOURS[2]) not in _colours_in(tmp_path / "one.png")
    assert _picture(tmp_path / "one.png").shape[1] < _picture(tmp_path / "two.png").shape[1]
    with pytest.raises(MetricsError, match="at least one curve"):
        plot_panels([Panel("first", "y", {})], "Steps", tmp_path / "none.png")


def test_ratios_show_whether_their_aim_is_met(tmp_path: Path) -> None:
    def comparison(ratio: float, aim: float | None) -> Comparison:
        return Comparison("case", "case: ours", "case: other", "latency_ms", ratio, 0.9 * ratio, 1.1 * ratio, aim)

    met, missed, none = _bgr(COLOURS[2]), _bgr(COLOURS[1]), _bgr(COLOURS[0])
    for name, comparisons, shown in (
        ("met", [comparison(1.0, 1.02)], {met}),
        ("both", [comparison(1.0, 1.02), comparison(1.5, 1.02)], {met, missed}),
        ("none", [comparison(1.0, None)] * 9, {none}),
    ):
        plot_ratios(comparisons, tmp_path / f"{name}.png")
        assert _colours_in(tmp_path / f"{name}.png") & {met, missed, none} == shown
    assert _picture(tmp_path / "none.png").shape[0] > _picture(tmp_path / "met.png").shape[0]
    with pytest.raises(MetricsError, match="at least one comparison"):
        plot_ratios([], tmp_path / "a.png")
