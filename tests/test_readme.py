"""The README and the results that it shows."""

import re
from pathlib import Path

import pytest

from ode_detect.report.protocol import FULL_PIECES, about, full_settings
from ode_detect.report.readme import fill
from ode_detect.report.results import Results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted((ROOT / "results").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert fill(text, ROOT) == text, "run python tools/update_readme.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_tables_of_every_page_are_those_of_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert fill(text, ROOT) == text, "run python tools/update_readme.py"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    # But for markers, which are not shown, and rows of tables, which have no lines.
    assert [line for line in lines if len(line) > 130 and not line.startswith(("<!--", "|"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_paragraph_of_small_print_is_long(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [small for small in re.findall(r"<sub>.*?</sub>", text, re.DOTALL) if len(small) > 300] == []
    # What is not folded away below a table is short, too.
    below = re.findall(r"^\|.*\n\n(?!<)(.+)$", text, re.MULTILINE)
    assert [line for line in below if len(line) > 300] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_fold_is_read_as_markdown(page: Path) -> None:
    """By GitHub after an empty line; by MkDocs where ``markdown`` says so."""
    text = page.read_text(encoding="utf-8")
    folds = re.findall(r"^<details.*\n.*\n.*$", text, re.MULTILINE)
    assert len(folds) == text.count("<details") == text.count("</details>")
    for fold in folds:
        assert re.fullmatch(r'<details markdown="1">\n<summary>.+</summary>\n', fold), fold


@pytest.mark.parametrize(
    "page",
    [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "datasets" / "README.md"],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_files_that_a_page_links_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in LINK.findall(text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_a_claim_has_a_command_a_commit_and_what_it_is_compared_with(path: Path) -> None:
    results = Results.read(path)
    assert results.command
    assert "dirty" not in results.commit
    assert results.commit != "unknown"
    if results.comparisons:  # a benchmark; both sides of each ratio
        rows = {row.name: row for row in results.rows}
        for comparison in results.comparisons:
            ours, other = rows[comparison.ours], rows[comparison.other]
            relative = comparison.quantity in ours.metrics
            assert relative or {comparison.quantity} <= set(ours.cost) & set(other.cost), comparison
        assert "quick" not in results.what
    elif results.what.startswith("The dial of"):  # one checkpoint at several settings; its twin is in another file
        full = full_settings(results.protocol)
        assert full
        assert set(full) < {row.name for row in results.rows}
    elif results.what.startswith("Pieces of"):  # one checkpoint with fewer pieces, or one network grown and not
        (full,) = [clause.text for clause in about(results.protocol, FULL_PIECES)] or ["from_the_start"]
        assert {full} < {row.name for row in results.rows}
    else:  # trained networks
        assert {"ode", "twin", "ablation"} <= {row.role for row in results.rows}


def test_the_quickstart_keeps_its_promise() -> None:
    rows = Results.read(ROOT / "results" / "quickstart.json").rows
    ode = [row for row in rows if row.role == "ode"]
    assert all(row.metrics["AP50"] >= 0.30 for row in ode)
    assert all(row.cost["train_minutes"] < 10 for row in ode)


def test_files_that_the_readme_links_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
