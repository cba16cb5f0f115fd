from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ode_detect.engine.launch import run_tool
from ode_detect.report.results import Results


def test_sections_are_listed(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(["--list"])
    out = capsys.readouterr().out
    assert "flow  " in out
    assert "gradients  " in out


def test_a_section_is_measured_written_and_drawn(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "b.json"
    tool.main(["--quick", "--only", "flow", "--output", str(path)])
    results = Results.read(path)
    assert results.command == f"python tools/benchmark.py --quick --only flow --output {path}"
    assert (tmp_path / "new" / "b_flow.png").exists()
    out = capsys.readouterr().out
    assert "at most 1.02" in out
    assert str(path) in out


def test_an_unknown_section_ends_in_a_message(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(tool.main, ["--only", "flows"]) == 2
    assert "Did you mean 'flow'?" in capsys.readouterr().err
