from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ode_detect.report.readme import ReadmeError, fill
from ode_detect.report.results import Results, ResultsError, Row
from ode_detect.report.tables import to_markdown

TOOL = Path(__file__).parents[2] / "tools" / "update_readme.py"
RESULTS = Results(
    what="w",
    command="c",
    commit="1",
    date="2026-01-02",
    machine={"cores": 2},
    protocol="p",
    rows=(Row(name="n", role="floor", seed=0, config="c.yaml", metrics={"AP": 0.125}),),
)
TEXT = "# Title\n\n<!-- results: results/a.json -->\nold\n<!-- /results -->\n\nend\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    RESULTS.write(tmp_path / "results" / "a.json")
    return tmp_path


def test_the_table_replaces_what_stood_there(root: Path) -> None:
    filled = fill(TEXT, root)
    assert to_markdown(RESULTS) in filled
    assert "old" not in filled
    assert filled.startswith("# Title\n\n<!-- results: results/a.json -->\n")
    assert filled.endswith("<!-- /results -->\n\nend\n")


def test_a_section_of_a_file_may_be_named(root: Path) -> None:
    text = "<!-- results: results/a.json#c.yaml -->\n<!-- /results -->\n"
    assert fill(text, root) == fill(text.replace("#c.yaml", ""), root).replace("a.json", "a.json#c.yaml")
    with pytest.raises(ResultsError, match="unknown section"):
        fill(text.replace("#c", "#d"), root)


def test_filling_twice_is_filling_once(root: Path) -> None:
    assert fill(fill(TEXT, root), root) == fill(TEXT, root)


def test_another_kind_of_table_has_its_own_markers(root: Path) -> None:
    text = "<!-- list: x -->\nold\n<!-- /list -->\n" + TEXT
    others = {"list": lambda name, folder: f"{name} in {folder}"}
    filled = fill(text, root, others)
    assert filled.startswith(f"<!-- list: x -->\n\nx in {root}\n\n<!-- /list -->\n")
    assert to_markdown(RESULTS) in filled
    assert fill(filled, root, others) == filled
    assert "old" in fill(text, root), "a kind that is not known is left alone"
    with pytest.raises(ReadmeError, match="`<!-- /results -->` must alternate; at line 2 the one of line 1 is still"):
        fill("<!-- list: x -->\n<!-- /results -->\n", root, others)


@pytest.mark.parametrize("text", ["", "no markers", "no markers\n", "a `<!-- results: x -->` in a line\n"])
def test_text_without_markers_stays(root: Path, text: str) -> None:
    assert fill(text, root) == text


def test_markers_in_a_block_of_code_are_left_alone(root: Path) -> None:
    code = f"```\n{TEXT}```\n"
    assert fill(code, root) == code
    assert to_markdown(RESULTS) in fill(code + TEXT, root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: results/a.json -->\n", "line 1 is not"),
        ("a\n<!-- /results -->\n", "at line 2 none is open"),
        ("<!-- results: results/a.json -->\n" + TEXT, "the one of line 1 is still open"),
        ("<!-- results: ../a.json -->\n<!-- /results -->", "outside"),
    ],
)
def test_markers_without_a_partner_are_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(ReadmeError, match=message):
        fill(text, root)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"a\.json"):
        fill(TEXT, tmp_path)


@pytest.fixture
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("update_readme", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_check_tells_and_the_tool_repairs(root: Path, tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    readme = root / "README.md"
    readme.write_text(TEXT)
    assert tool.main(["--check", str(readme)]) == 1
    assert "+| n | floor | 12.5 |" in capsys.readouterr().out
    assert readme.read_text() == TEXT
    assert tool.main([str(readme)]) == 0
    assert tool.main([str(readme), "--check"]) == 0


def test_user_errors_have_no_traceback(tmp_path: Path, tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(TEXT)
    assert tool.main([str(tmp_path / "README.md")]) == 2
    assert tool.main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
