from pathlib import Path
from types import ModuleType

import pytest

from ode_detect.engine.launch import run_tool
from ode_detect.report.protocol import from_words
from ode_detect.report.results import Results, Row
from ode_detect.studies.pieces import grow
from ode_detect.studies.pieces import project as pieces

from ..conftest import ROOT

CONFIG = str(ROOT / "configs" / "classification" / "cifar10_resnet56_grown.yaml")


def test_keys_may_stand_anywhere(tool: ModuleType) -> None:
    args = tool.parse(["--config-file", "c.yaml", "--project", "4", "2", "SEED", "3", "--distil", "5", "TASK", "x"])
    assert (args.project, args.distil, args.grow) == ((4, 2), 5, ())
    assert dict(zip(args.overrides[::2], args.overrides[1::2], strict=True)) == {"SEED": "3", "TASK": "x"}
    args = tool.parse(["--grow", "1", "2", "--iterations", "30", "20", "--config-file", "c.yaml"])
    assert (args.grow, args.iterations, args.project) == ((1, 2), (30, 20), ())


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--project", "2", "--grow", "1", "2"],
        ["--project", "few"],
        ["--project", "2", "--iterations", "5"],
        ["--grow", "1", "2", "--iterations", "5", "5", "--distil", "3"],
        ["--grow", "1", "2", "--iterations", "5", "5", "--weights", "w.pth"],
    ],
)
def test_flags_that_make_no_sense_are_refused(tool: ModuleType, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.parse(["--config-file", "c.yaml", *flags])
    assert stop.value.code == 2


def test_a_projection_is_asked_for_in_the_folder_of_the_config(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def project(cfg: object, wanted: pieces.Projection, *, folder: Path, **more: str) -> Results:
        asked.update(wanted=wanted, folder=folder, **more)
        folder.mkdir(parents=True)
        (folder / "pieces.json").touch()
        row = Row(name="pieces_8", role="ode", seed=0, config=CONFIG, metrics={"top1": 0.5}, cost={})
        return Results("Pieces", more["command"], "c", "2026-01-01", {}, from_words("tested"), (row,))

    monkeypatch.setattr(pieces, "project", project)
    words = ["--config-file", CONFIG, "--project", "4", "--weights", "w.pth", "OUTPUT_DIR", str(tmp_path / "out")]
    assert run_tool(tool.main, words) == 0
    assert asked["wanted"] == pieces.Projection(counts=(4,))
    assert (asked["folder"], asked["weights"]) == (tmp_path / "out" / "pieces", "w.pth")
    assert asked["command"].startswith("python tools/pieces.py --config-file")
    assert "pieces.json" in capsys.readouterr().out


def test_what_cannot_be_grown_ends_with_a_message(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(tool.main, ["--config-file", CONFIG, "--grow", "1", "3", "--iterations", "5", "5"]) != 0
    assert "do not double" in capsys.readouterr().err


def test_stopping_says_how_to_go_on(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(grow, "grow", stop)
    words = ["--config-file", CONFIG, "--grow", "1", "2", "--iterations", "5", "5", "--output", str(tmp_path / "out")]
    assert run_tool(tool.main, words) != 0
    assert "the same command goes on" in capsys.readouterr().err
