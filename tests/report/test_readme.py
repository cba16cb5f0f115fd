from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ode_detect.report.protocol import from_words
from ode_detect.report.readme import ReadmeError, fill
from ode_detect.report.results import Results, ResultsError, Row
from ode_detect.report.rows import Comparison
from ode_detect.report.tables import to_markdown

TOOL = Path(__file__).parents[2] / "tools" / "update_readme.py"
RESULTS = Results(
    what="w",
    command="c",
    commit="1",
    date="2026-01-02",
    machine={"cores": 2},
    protocol=from_words("p"),
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


def networks(root: Path) -> str:
    rows = tuple(
        Row(name=name, role=role, seed=seed, config="c", metrics={"AP": ap}, cost={"macs": 2e9, "parameters": 10**6})
        for name, role, ap in (("flow_a", "ode", 0.5), ("flow_b", "ode", 0.25), ("plain", "twin", 0.125))
        for seed in (0, 1)
    )
    dataclasses.replace(RESULTS, rows=rows).write(root / "results" / "n.json")
    return "results/n.json"


def table(text: str, root: Path) -> list[str]:
    return fill(f"<!-- results: {text} -->\n<!-- /results -->\n", root).splitlines()[2:-2]


def test_a_marker_chooses_columns_and_rows(root: Path) -> None:
    path = networks(root)
    lines = table(f"{path} | columns: macs, AP | rows: plain = residual blocks (the twin), flow_a", root)
    assert lines[0] == "| network | AP (%) |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| residual blocks (the twin)", "| flow_a"]
    assert lines[5] == (
        "Two seeds: mean ± standard deviation; costs are means. Not measured here: the ablation. "
        "The same in each row: multiply-adds (G) 2."
    )
    assert table(f"{path} | columns: AP, role", root)[0] == "| network | role | AP (%) |"


def test_protocol_and_commands_are_folded_or_on_another_page(root: Path) -> None:
    path = networks(root)
    folded = table(path, root)
    assert folded[8:10] == ['<details markdown="1">', "<summary>Protocol, commands and machine</summary>"]
    assert not folded[10]  # GitHub reads Markdown after an empty line only
    assert folded[-1] == "</details>"
    linked = table(f"{path} | protocol: docs/results.md", root)
    assert linked[-1].endswith("Protocol and commands: [docs/results.md](docs/results.md).")
    assert "<details" not in "".join(linked)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("| columns: AP50", "unknown column of results/n.json"),
        ("| columns: mac", "did you mean macs"),
        ("| rows: flow", "known are flow_a, flow_b, plain"),
        ("| colums: AP", "did you mean columns"),
    ],
)
def test_what_a_marker_cannot_choose_is_refused(root: Path, parts: str, message: str) -> None:
    path = networks(root)
    with pytest.raises(ValueError, match=message):
        table(f"{path} {parts}", root)


def test_ratios_have_their_own_columns(root: Path) -> None:
    ratio = Comparison("n", "n", "n", "AP", 1.0, 1.0, 1.0)
    dataclasses.replace(RESULTS, comparisons=(ratio,)).write(root / "results" / "ratios.json")
    with pytest.raises(ReadmeError, match="is one of ratios"):
        table("results/ratios.json | columns: AP", root)


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


def test_several_pages_are_filled_from_the_nearest_folder_of_results(
    root: Path, tool: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    page = root / "docs" / "api" / "page.md"
    page.parent.mkdir(parents=True)
    for file in (page, root / "README.md"):
        file.write_text(TEXT)
    assert tool.pages(root) == [root / "README.md", page]
    assert tool.main(["--check", *map(str, tool.pages(root))]) == 1
    assert tool.main([*map(str, tool.pages(root))]) == 0
    assert page.read_text() == (root / "README.md").read_text() == fill(TEXT, root)


def test_user_errors_have_no_traceback(tmp_path: Path, tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(TEXT)
    assert tool.main([str(tmp_path / "README.md")]) == 2
    assert tool.main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
