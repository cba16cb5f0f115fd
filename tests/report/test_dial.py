"""The plot of a dial."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ode_detect.report import dial
from ode_detect.report.dial import _method, pareto_front, plot_dial
from ode_detect.report.plots import MetricsError
from ode_detect.report.rows import Row


def _picture(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture


def _setting(name: str, quality: float, evaluations: float, milliseconds: float) -> Row:
    cost = {"evaluations": evaluations, "latency_ms": milliseconds}
    return Row(name=name, role="ode", seed=0, config="c.yaml", metrics={"AP50": quality, "RMSE": 1.0}, cost=cost)


def test_the_front_holds_what_nothing_beats() -> None:
    costs = [1.0, 2.0, 2.0, 3.0, 4.0, 5.0]
    values = [0.1, 0.3, 0.4, 0.4, 0.2, 0.5]
    assert pareto_front(costs, values) == [0, 2, 5]
    assert pareto_front(costs, [-v for v in values], better="min") == [0, 2, 5]
    assert pareto_front([2.0, 1.0], [1.0, 1.0]) == [1]
    assert pareto_front([], []) == []


def test_the_dial_is_plotted_by_one_setting_or_many(tmp_path: Path) -> None:
    rows = [
        _setting("euler_2", 0.4, 6, 20.0),
        _setting("euler_1", 0.3, 3, 10.0),
        _setting("euler_1-2-2", 0.35, 5, 15.0),
        _setting("euler_1-rk4_1-euler_2", 0.45, 7, 30.0),
        _setting("dopri5", 0.44, 90, 90.0),
    ]
    for name, shown, metric in (("many", rows, "AP50"), ("one", rows[:1], "AP50"), ("metres", rows, "RMSE")):
        plot_dial(shown, metric, tmp_path / f"{name}.png", full=["euler_2"], better="max")
        assert _picture(tmp_path / f"{name}.png").std() > 5
    pictures = [_picture(tmp_path / f"{name}.png") for name in ("many", "one")]
    assert (pictures[0] != pictures[1]).any()


def test_methods_are_read_from_the_names_of_settings(tmp_path: Path) -> None:
    names = ["euler_2", "rk4_1-2-2", "dopri5", "euler_1-rk4_1", "adaptive_heun", "dopri5-euler_1"]
    assert [_method(name) for name in names] == ["euler", "rk4", "dopri5", "mixed", "adaptive_heun", "mixed"]


def test_differences_of_nothing_do_not_fill_the_plot_of_a_dial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr(dial, "save_figure", lambda figure, path: limits.extend(a.get_ylim() for a in figure.axes))
    plot_dial([_setting("a", 0.900, 1, 1.0), _setting("b", 0.901, 2, 2.0)], "AP50", tmp_path / "x.png", full=["a"])
    plot_dial([_setting("a", 0.9, 1, 1.0), _setting("b", 0.5, 2, 2.0)], "AP50", tmp_path / "x.png", full=["a"])
    assert [round(high - low, 6) for low, high in limits[:2]] == [2.0, 2.0]
    assert all(40 < high - low < 60 for low, high in limits[2:])


def test_a_dial_without_numbers_is_not_plotted(tmp_path: Path) -> None:
    row = Row(name="a", role="ode", seed=0, config="c.yaml", metrics={"AP50": 0.5})
    with pytest.raises(MetricsError, match="there is none"):
        plot_dial([row], "AP50", tmp_path / "a.png", full=["a"])
