from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from ode_detect.ode.names import UnknownNameError
from ode_detect.report.protocol import Clause
from ode_detect.report.results import Results
from ode_detect.report.tables import to_markdown
from ode_detect.studies.benchmark import run
from ode_detect.studies.benchmark.run import SECTIONS, Section, run_benchmark, write_plots
from ode_detect.studies.timing import Case, Ratio, Side
from ode_detect.task import ConfigError


@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_runs_quickly_and_is_written_in_the_shape_of_results(name: str, tmp_path: Path) -> None:
    if SECTIONS[name].missing:
        pytest.skip(f"needs {', '.join(SECTIONS[name].missing)}")
    told: list[str] = []
    results = run_benchmark([name], quick=True, command="a command", tell=told.append)
    assert {row.config for row in results.rows} == {name}
    assert results.comparisons
    assert len(told) == len(dict.fromkeys(row.name.rpartition(": ")[0] for row in results.rows))
    assert {"cpu", "cores", "threads"} <= set(results.machine)
    assert "alternate" in to_markdown(results)
    results.write(tmp_path / "b.json")
    assert Results.read(tmp_path / "b.json") == results
    (picture,) = write_plots(results, tmp_path / "b.json")
    assert picture == tmp_path / f"b_{name}.png"
    assert picture.stat().st_size > 10_000


def test_an_unknown_section_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"section of the benchmark 'gradient'.*Did you mean 'gradients'"):
        run_benchmark(["gradient"], command="")


@pytest.fixture
def two_sections(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    asked: list[bool] = []

    def cases(*, quick: bool) -> Iterator[Case]:
        asked.append(quick)
        sides = {"ours": Side("ode", lambda: None), "other": Side("baseline", lambda: None)}
        yield Case(f"case {len(asked)}", sides, [Ratio("ours", "other", 1e9)])

    monkeypatch.setattr(run, "SECTIONS", {"one": Section("first", cases), "two": Section("second", cases)})
    return asked


def test_all_sections_are_measured_unless_some_are_named(two_sections: list[bool]) -> None:
    results = run_benchmark(command="", seconds=0.0)
    assert [row.name for row in results.rows] == ["case 1: ours", "case 1: other", "case 2: ours", "case 2: other"]
    assert [c.met for c in results.comparisons] == [True, True]
    assert {row.config for row in run_benchmark(["two", "two"], command="", seconds=0.0).rows} == {"two"}
    assert two_sections == [False] * 3


def sections(path: Path) -> list[str]:
    return list(dict.fromkeys(row.config for row in Results.read(path).rows))


def test_a_section_is_written_when_it_is_through(
    two_sections: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*, quick: bool) -> Iterator[Case]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(run.SECTIONS, "two", Section("second", fail))
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(command="", seconds=0.0, output=tmp_path / "new" / "b.json")
    assert sections(tmp_path / "new" / "b.json") == ["one"]


def test_the_other_sections_of_a_file_stay(two_sections: list[bool], tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    run_benchmark(command="all", seconds=0.0, output=path)
    results = run_benchmark(["one"], command="first", seconds=0.0, output=path)
    assert Results.read(path) == results
    assert [row.name for row in results.rows] == ["case 2: ours", "case 2: other", "case 3: ours", "case 3: other"]
    assert [c.case for c in results.comparisons] == ["case 2", "case 3"]
    assert results.command == "all\nfirst"


@pytest.mark.parametrize("what", ["commit", "machine", "protocol"])
def test_sections_that_were_measured_otherwise_are_not_mixed_in(
    what: str, two_sections: list[bool], tmp_path: Path
) -> None:
    path = tmp_path / "b.json"
    results = run_benchmark(command="all", seconds=0.0, output=path)
    others = {"commit": "another", "machine": {"cpu": "another"}, "protocol": (Clause("", "another"),)}
    dataclasses.replace(results, **{what: others[what]}).write(path)
    before = path.read_text()
    with pytest.raises(ConfigError, match=rf"holds two, of another {what}, .* give another --output"):
        run_benchmark(["one"], command="", seconds=0.0, output=path)
    assert path.read_text() == before
    run_benchmark(command="", seconds=0.0, output=path)
    assert sections(path) == ["one", "two"]


def test_a_file_that_cannot_be_written_is_told_at_once(two_sections: list[bool], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "b.json"):
        with pytest.raises(OSError, match=r"Not a directory|Is a directory|File exists"):
            run_benchmark(command="", seconds=0.0, output=path)
    assert two_sections == []


def test_a_quick_run_says_that_it_is_worth_nothing(two_sections: list[bool]) -> None:
    assert "mean nothing" in run_benchmark(command="", quick=True).what
    assert two_sections == [True, True]


def test_a_section_that_cannot_run_here_is_left_out_and_told(
    two_sections: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = Section("third", SECTIONS["flow"].cases, requires=("json", "no_such_package"))
    monkeypatch.setitem(run.SECTIONS, "three", section)
    told: list[str] = []
    results = run_benchmark(command="", seconds=0.0, tell=told.append)
    assert {row.config for row in results.rows} == {"one", "two"}
    assert told[-1] == "three: left out, because no_such_package is not installed"
    with pytest.raises(ConfigError, match="install what is missing"):
        run_benchmark(["three"], command="", tell=told.append)
