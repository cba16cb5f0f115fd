from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from ode_detect.report import plots
from ode_detect.report.plots import Curve, MetricsError, plot_losses, plot_metric, read_metrics, series, smooth
from ode_detect.report.ratios import Panel, plot_panels

RECORDS: list[dict[str, Any]] = [
    {"iteration": i, "total_loss": 2.0 / (i + 1), "loss_cls": 1.0 / (i + 1), "loss_box_reg": 1.0 / (i + 1), "lr": 0.01}
    for i in range(0, 200, 10)
]
EVALUATIONS: list[dict[str, Any]] = [{"iteration": i, "bbox/AP": i / 10, "bbox/AP50": i / 5} for i in (50, 100)]


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_reads_one_object_per_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.json", "\n".join(map(json.dumps, RECORDS)) + "\n\n")
    assert read_metrics(path) == RECORDS


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.json", '{"iteration": 1, "lr": 0.1}\n{"iteration": 2, "l')
    assert read_metrics(path) == [{"iteration": 1, "lr": 0.1}]


def test_a_run_resumed_behind_a_cut_line_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.json", '{"iteration": 1, "l{"iteration": 1, "lr": 0.5}\n{"iteration": 2, "lr": 0.1}\n')
    assert [m["lr"] for m in read_metrics(path)] == [0.5, 0.1]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.json", '{"iteration": 1}\nnonsense\n{"iteration": 2}\n')
    with pytest.raises(MetricsError, match="line 2 is 'nonsense'"):
        read_metrics(path)
    with pytest.raises(MetricsError, match="Check the path"):
        read_metrics(tmp_path / "none.json")


def test_nan_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.json", '{"iteration": 1, "total_loss": NaN}\n')
    assert np.isnan(series(read_metrics(path), "total_loss")[1]).all()


def test_the_last_record_of_an_iteration_counts() -> None:
    metrics = [{"iteration": i, "x": v} for i, v in ((1, 1.0), (3, 3.0), (2, 2.0), (3, 30.0))]
    iterations, values = series([*metrics, {"iteration": 3, "y": 1.0}, {"x": 9.0}], "x")
    assert iterations.tolist() == [1, 2, 3]
    assert values.tolist() == [1.0, 2.0, 30.0]


def test_smooth_is_the_mean_of_the_window() -> None:
    values = np.array([1.0, 2.0, 6.0, np.nan, 4.0, np.inf])
    expected = [np.mean([v for v in values[max(i - 1, 0) : i + 2] if np.isfinite(v)]) for i in range(len(values))]
    assert smooth(values, 3) == pytest.approx(expected)
    assert smooth(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0]
    assert smooth(np.array([1.0, 5.0]), 7).tolist() == [3.0, 3.0]
    assert np.isnan(smooth(np.full(3, np.nan), 3)).all()


def _picture(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture


def test_losses_are_plotted_with_nan_spikes_and_one_record(tmp_path: Path) -> None:
    spoilt = [*RECORDS, {"iteration": 201, "total_loss": float("nan"), "loss_cls": float("inf"), "loss_box_reg": 1e9}]
    for name, metrics in {
        "all": RECORDS,
        "spoilt": spoilt,
        "one": RECORDS[:1],
        "parts": [{"iteration": 1, "loss_a": 1}],
    }.items():
        plot_losses(metrics, tmp_path / "new" / f"{name}.png")
        picture = _picture(tmp_path / "new" / f"{name}.png")
        assert picture.std() > 5  # something is drawn
    only_nan = [{"iteration": 1, "total_loss": float("nan")}]
    plot_losses(only_nan, tmp_path / "nan.png")


def test_metrics_are_plotted(tmp_path: Path) -> None:
    plot_metric([*RECORDS, *EVALUATIONS], ["bbox/AP", "bbox/AP50", "bbox/AP75"], tmp_path / "ap.png")
    assert _picture(tmp_path / "ap.png").shape[1] > 600


def test_fractions_are_plotted_in_percent_and_errors_on_a_scale_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes: list[Axes] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: axes.extend(figure.axes))
    records = [
        {"iteration": i, "classification/top1": 1 - e, "classification/error": e, "bbox/AP50": 100 * (1 - e)}
        for i, e in ((1, 0.3), (2, 0.04))
    ]
    plot_metric(records, ["classification/error", "classification/top1"], "")
    right, wrong = axes
    assert list(right.get_lines()[0].get_ydata()) == pytest.approx([70, 96])
    assert list(wrong.get_lines()[0].get_ydata()) == pytest.approx([30, 4])
    assert (right.get_yscale(), wrong.get_yscale()) == ("linear", "log")
    assert [one.get_title(loc="left") for one in axes] == ["Evaluation (classification)"] * 2
    assert wrong.get_legend().get_texts()[0].get_text() == "error, last 4.00"
    plot_metric(records, ["bbox/AP50"], "")
    assert list(axes[2].get_lines()[0].get_ydata()) == pytest.approx([70, 96])
    # Nothing wrong at all has no place on a logarithmic scale.
    plot_metric([{"iteration": 1, "classification/error": 0.0}], ["classification/error"], "")
    assert axes[3].get_yscale() == "linear"


def test_nothing_to_plot_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match="there is none"):
        plot_losses(EVALUATIONS, tmp_path / "a.png")
    with pytest.raises(MetricsError, match="there are bbox/AP, bbox/AP50"):
        plot_metric(EVALUATIONS, ["segm/AP"], tmp_path / "a.png")
    with pytest.raises(MetricsError, match="no evaluations"):
        plot_metric(RECORDS, ["bbox/AP"], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_matplotlibs_global_state_is_not_touched(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    plot_losses(RECORDS, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before


def test_report_imports_neither_pyplot_nor_torch_nor_the_rest_of_us() -> None:
    code = (
        "import sys; import ode_detect.report.plots, ode_detect.report.canvas, ode_detect.report.readme;"
        "ours = {m.split('.')[1] for m in sys.modules if m.startswith('ode_detect.')};"
        "print(sorted(({'torch', 'detectron2', 'matplotlib.pyplot'} & {*sys.modules}) | (ours - {'report', 'media'})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _colours_in(path: Path) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in _picture(path).reshape(-1, 3).tolist()}


def _bgr(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))


def test_a_curve_has_as_many_x_as_y() -> None:
    with pytest.raises(ValueError, match="'F1' has 2 and 1"):
        Curve("F1", "x", "y", (0.0, 1.0), (0.0,))


def test_letters_that_the_font_lacks_are_told_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    plots._say_letters_missing.cache_clear()
    for name in ("a.png", "b.png"):
        plot_panels([Panel("红细胞", "白细胞", {"红": [(0.0, 1.0), (1.0, 2.0)]})], "x", tmp_path / name)
    assert said.text.count("the font of the plots lacks letters") == 1
    with pytest.warns(DeprecationWarning, match="other"), plots.letters_apart():
        warnings.warn("other", DeprecationWarning, stacklevel=1)
