from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ode_detect.report.protocol import from_words, in_words
from ode_detect.report.results import Results, ResultsError, Row, merge
from ode_detect.report.rows import Comparison

from .results_by_hand import a_benchmark, a_row, some_results


def test_writing_and_reading_gives_the_same(tmp_path: Path) -> None:
    results = some_results(a_row(), a_row("twin", "twin", metrics={"AP": np.float32(0.5), "RMSE": 3.5}, cost={}))
    path = tmp_path / "new" / "results.json"
    results.write(path)
    assert Results.read(path) == results
    assert Results.read(path.parent) == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_the_file_has_the_agreed_shape(tmp_path: Path) -> None:
    some_results().write(tmp_path / "r.json")
    value = json.loads((tmp_path / "r.json").read_text())
    assert list(value) == ["what", "command", "commit", "date", "machine", "protocol", "rows"]
    assert list(value["rows"][0]) == ["name", "role", "seed", "config", "metrics", "cost"]
    assert value["rows"][0]["cost"]["parameters"] == 208266


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    some_results().write(path)
    before = path.read_text()
    broken = some_results(machine={"cpu": {1, 2}})  # a set is no JSON
    with pytest.raises(TypeError):
        broken.write(path)
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "twinn"}, "did you mean twin"),
        ({"metrics": {"AP": 25.0}}, "Divide percent by 100"),
        ({"metrics": {"AP-tree": 1.5}}, "fraction in"),
        ({"metrics": {"f1": -0.1}}, "fraction in"),
        ({"metrics": {"AP": float("nan")}}, "finite"),
        ({"metrics": {"AP": True}}, "finite"),
        ({"metrics": {"ap50": 0.5}}, "did you mean AP50"),
        ({"metrics": {"RMSE": float("inf")}}, "finite"),
        ({"cost": {"latency_ms": -1.0}}, "0 or more"),
        ({"seed": "0"}, "must be int"),
        ({"seed": True}, "must be int"),
        ({"config": None}, "must be str"),
        ({"name": ""}, "empty"),
    ],
)
def test_a_wrong_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        a_row(**changes)


def test_metrics_that_are_no_fractions_may_exceed_one() -> None:
    assert a_row(metrics={"RMSE": 3.5, "AbsRel": 1.2}).metrics["RMSE"] == 3.5


def test_a_network_and_seed_may_occur_once() -> None:
    with pytest.raises(ResultsError, match="seed 0 occurs twice"):
        some_results(a_row(), a_row())
    with pytest.raises(ResultsError, match="at least one row"):
        dataclasses.replace(some_results(), rows=())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"protocol"', '"protocl"', "did you mean protocol"),
        ('"seed"', '"sed"', "did you mean seed"),
        ('"role": "ode",', "", "role is missing"),
        ('"AP": 0.25', '"AP": NaN', "finite"),
        ("}", "", "must be JSON"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "r.json"
    some_results().write(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ResultsError, match=message) as error:
        Results.read(path)
    assert "r.json" in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", '{"rows": 3}'])
def test_json_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultsError):
        Results.read(tmp_path / "r.json")
    with pytest.raises(ResultsError, match="Check the path"):
        Results.read(tmp_path / "none.json")


def test_merge_joins_rows_and_keeps_every_origin(tmp_path: Path) -> None:
    some_results(a_row(seed=0), date="2026-01-02").write(tmp_path / "a" / "results.json")
    other = some_results(a_row(seed=1), date="2026-01-03", commit="fedcba", machine={"cpu": "b cpu", "cores": 2})
    other.write(tmp_path / "b" / "results.json")
    merged = merge([tmp_path / "a", tmp_path / "b" / "results.json"])
    assert [row.seed for row in merged.rows] == [0, 1]
    assert merged.commit == "0123456789ab, fedcba"
    assert merged.machine == {"cpu": "a cpu; b cpu", "cores": 2}
    assert merged.date == "2026-01-03"
    assert merged.command == "python tools/compare.py trees"


def test_named_parts_may_differ_and_their_protocols_are_told(tmp_path: Path) -> None:
    shared = "full steps: euler_2; of the full steps: the averages; latency: of two calls; alike"

    def part(name: str, weights: str) -> Path:
        row = Row("euler_2", "ode", 0, "c.yaml", {"top1": 0.5}, {"evaluations": 6, "latency_ms": 3.0})
        results = Results(
            f"The dial of {name}",
            name,
            "abc",
            "2026-01-01",
            {},
            from_words(f"weights of {weights}; {shared}"),
            (row,),
        )
        results.write(tmp_path / name)
        return tmp_path / name

    paths = [part("a", "x"), part("b", "y")]
    with pytest.raises(ResultsError, match="give each a name"):
        merge(paths)
    merged = merge(paths, ["", "dial"])
    assert [row.name for row in merged.rows] == ["euler_2", "dial_euler_2"]
    assert [dict(row.cost) for row in merged.rows] == [{"evaluations": 6}] * 2
    assert in_words(merged.protocol) == (
        "the others: weights of x; the others: full steps: euler_2; dial: weights of y; "
        "dial: full steps: dial_euler_2; of the full steps: the averages; alike"
    )
    assert merged.what == "The dial of a; The dial of b"
    with pytest.raises(ResultsError, match="2 paths and 1 names"):
        merge(paths, ["dial"])


def test_merge_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    some_results(a_row(seed=0)).write(tmp_path / "a.json")
    some_results(a_row(seed=1), protocol=from_words("another")).write(tmp_path / "b.json")
    with pytest.raises(ResultsError, match="one protocol"):
        merge([tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(ResultsError, match="occurs twice"):
        merge([tmp_path / "a.json", tmp_path / "a.json"])
    with pytest.raises(ResultsError, match="something to merge"):
        merge([])


def test_comparisons_are_written_read_and_merged(tmp_path: Path) -> None:
    a_benchmark().write(tmp_path / "b.json")
    assert Results.read(tmp_path / "b.json") == a_benchmark()
    some_results(a_row("another")).write(tmp_path / "a.json")
    merged = merge([tmp_path / "a.json", tmp_path / "b.json"])
    assert merged.comparisons == a_benchmark().comparisons
    assert len(merged.rows) == 4


def test_a_comparison_names_rows_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"'forward: flw'.*did you mean forward: flow"):
        a_benchmark(comparisons=(Comparison("forward", "forward: flw", "forward: blocks", "latency_ms", 1, 1, 1),))
    path = tmp_path / "b.json"
    a_benchmark().write(path)
    path.write_text(path.read_text().replace('"quantity"', '"quantty"'))
    with pytest.raises(ResultsError, match="did you mean quantity"):
        Results.read(path)


def test_a_section_is_a_part_of_the_results() -> None:
    part = a_benchmark().section("memory")
    assert [row.name for row in part.rows] == ["backward: flow"]
    assert part.comparisons == ()
    assert len(a_benchmark().section("speed").comparisons) == 2
    with pytest.raises(ResultsError, match=r"section of .*'sped'.*did you mean speed"):
        a_benchmark().section("sped")
