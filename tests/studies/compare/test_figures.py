"""Sections of the page, from what runs left in their folders."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ode_detect.report.examples import Drawn, Examples
from ode_detect.report.plots import Curve
from ode_detect.report.protocol import from_words
from ode_detect.report.results import Results, Row
from ode_detect.report.rows import ResultsError
from ode_detect.studies.compare import figures
from ode_detect.studies.compare.figures import Folders

NAMES = ["ode", "twin"]


@pytest.fixture
def found(tmp_path: Path) -> list[Folders]:
    """Two networks with two seeds each; nothing is in their folders yet."""
    runs = [(name, seed, tmp_path / name / f"seed_{seed}") for seed in (0, 1) for name in NAMES]
    for *_, run in runs:
        (run / "inference").mkdir(parents=True)
    return [Folders(name, name.upper(), seed, run, run / "inference") for name, seed, run in runs]


def task(**more: object) -> SimpleNamespace:
    return SimpleNamespace(metric="bbox/AP50", score="AP50", better="max", **more)


def test_metric_and_losses_of_all_runs_are_drawn(found: list[Folders], tmp_path: Path) -> None:
    assert figures.training_section(found, task(), NAMES, tmp_path / "page") is None
    for one in found[:3]:
        lines = [{"iteration": i, "total_loss": 2.0 - i / 9, "loss_cls": 1.0, "lr": 0.1} for i in range(9)]
        lines.append({"iteration": 8, "bbox/AP50": 40.0})
        (one.run / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    (found[3].run / "metrics.json").write_text("cut sho")
    section = figures.training_section(found, task(), NAMES, tmp_path / "page")
    assert [figure.path.name for figure in section.figures] == [
        "training_AP50.png",
        "training_total_loss.png",
        "training_loss_cls.png",
    ]
    assert all(figure.path.stat().st_size > 1000 for figure in section.figures)


def test_curves_of_one_title_share_a_plot_and_what_lacks_is_said(
    found: list[Folders], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def curves(folder: Path) -> list[Curve]:
        if folder == found[3].evaluation:
            raise ResultsError("not whole")
        return [Curve(title, "x", "y", (0.0, 1.0), (0.0, 1.0)) for title in ("first", "second")]

    section = figures.curves_section(found, task(curves=curves), NAMES, tmp_path / "page")
    assert [figure.caption for figure in section.figures] == ["first", "second"]
    assert section.text.startswith("Not there: twin, seed 1 (")
    monkeypatch.setattr(figures, "MOST_CURVES", 2)
    many = task(curves=lambda folder: [Curve(str(n), "x", "y", (0.0,), (1.0,)) for n in range(13)])
    section = figures.curves_section(found, many, NAMES, tmp_path / "page")
    assert len(section.figures) == figures.MOST_CURVES
    assert "The first 2 of 13 curves" in section.text


def test_confusion_matrices_of_the_first_seed_stand_side_by_side(found: list[Folders], tmp_path: Path) -> None:
    assert figures.confusion_section(found, tmp_path / "page") is None
    for one in found:
        (one.evaluation / "confusion.png").write_text(f"{one.network} {one.seed}")
    section = figures.confusion_section(found, tmp_path / "page")
    assert section.rows == 2
    assert [(f.caption, f.path.read_text()) for f in section.figures] == [
        ("ode (ODE)", "ode 0"),
        ("twin (TWIN)", "twin 0"),
    ]


def a_dial(path: Path, metric: str) -> Path:
    rows = [Row(f"euler_{n}", "ode", 0, "c", {metric: 0.1 * n}, {"evaluations": n, "latency_ms": n}) for n in (1, 2)]
    words = dict.fromkeys(("command", "commit", "date"), "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = from_words("full steps: euler_2")
    Results(what="The dial of a", **words, machine={}, protocol=protocol, rows=rows).write(path)
    return path


def test_dials_of_files_and_of_runs_are_drawn_once(found: list[Folders], tmp_path: Path) -> None:
    page = tmp_path / "page"
    assert figures.dial_section(found, [], task(), page) is None
    mine = a_dial(found[0].run / "dial" / "dial.json", "AP50")
    other = a_dial(tmp_path / "other.json", "AP50")
    section = figures.dial_section(found, [other, mine], task(), page)
    assert [figure.caption for figure in section.figures] == [f"The dial of a ({file})" for file in (other, mine)]
    assert all(figure.path.stat().st_size > 1000 for figure in section.figures)


def test_a_file_that_is_given_must_be_a_dial_with_the_metric(found: list[Folders], tmp_path: Path) -> None:
    wrong = a_dial(tmp_path / "wrong.json", "top1")
    with pytest.raises(ResultsError, match=r"wrong\.json is not that of a dial"):
        figures.dial_section(found, [wrong], task(), tmp_path / "page")
    with pytest.raises(ResultsError, match=r"none\.json"):
        figures.dial_section(found, [tmp_path / "none.json"], task(), tmp_path / "page")


def test_each_row_of_examples_is_one_picture(tmp_path: Path) -> None:
    def examples(cfg: object, model: object, name: str, count: int) -> Examples:
        pictures = [Drawn(np.full((4, 6, 3), model.shade, np.uint8), f"{i}.png", "all right") for i in range(2)]
        return Examples("Drawn.", (("#FFFFFF", "box"),), tuple(pictures))

    cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=("some_test",)), SEED=0)
    run = SimpleNamespace(cfg=cfg, task=SimpleNamespace(examples=examples))
    models = {"ode": SimpleNamespace(shade=50), "twin": SimpleNamespace(shade=200)}
    for model in models.values():
        model.eval = lambda model=model: model
    networks = [SimpleNamespace(name=name, role=name, run=run, model=model) for name, model in models.items()]
    section = figures.examples_section(networks, tmp_path)
    assert section.rows == 2
    assert section.legend == (("#FFFFFF", "box"),)
    assert [figure.path.name for figure in section.figures] == [
        *("picture_1_ode.jpg", "picture_1_twin.jpg"),
        *("picture_2_ode.jpg", "picture_2_twin.jpg"),
    ]
    assert section.figures[1].alt == "0.png, twin (twin): all right"
    assert [int(cv2.imread(str(figure.path)).mean()) // 10 for figure in section.figures] == [5, 20, 5, 20]
