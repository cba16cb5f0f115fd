from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ode_detect.engine.provenance import commit, machine
from ode_detect.report.protocol import from_words, in_words
from ode_detect.report.results import Results, ResultsError, Row, merge
from ode_detect.report.rows import Comparison
from ode_detect.report.tables import to_markdown, to_text


def _row(name: str = "ode", role: str = "ode", seed: int = 0, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "config": "configs/a.yaml",
        "metrics": {"AP": 0.25, "AP50": 0.5},
        "cost": {"parameters": 208266, "evaluations": 22, "latency_ms": 12.345},
    }
    return Row(name=name, role=role, seed=seed, **{**values, **changes})


def _results(*rows: Row, **changes: Any) -> Results:
    values: dict[str, Any] = {
        "what": "trees, ODE against twin",
        "command": "python tools/compare.py trees",
        "commit": "0123456789ab",
        "date": "2026-01-02",
        "machine": {"cpu": "a cpu", "cores": 2},
        "protocol": from_words("test 9 tiles"),
    }
    return Results(**{**values, **changes}, rows=rows or (_row(),))


def test_writing_and_reading_gives_the_same(tmp_path: Path) -> None:
    results = _results(_row(), _row("twin", "twin", metrics={"AP": np.float32(0.5), "RMSE": 3.5}, cost={}))
    path = tmp_path / "new" / "results.json"
    results.write(path)
    assert Results.read(path) == results
    assert Results.read(path.parent) == results
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_the_file_has_the_agreed_shape(tmp_path: Path) -> None:
    _results().write(tmp_path / "r.json")
    value = json.loads((tmp_path / "r.json").read_text())
    assert list(value) == ["what", "command", "commit", "date", "machine", "protocol", "rows"]
    assert list(value["rows"][0]) == ["name", "role", "seed", "config", "metrics", "cost"]
    assert value["rows"][0]["cost"]["parameters"] == 208266


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    _results().write(path)
    before = path.read_text()
    broken = _results(machine={"cpu": {1, 2}})  # a set is no JSON
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
        _row(**changes)


def test_metrics_that_are_no_fractions_may_exceed_one() -> None:
    assert _row(metrics={"RMSE": 3.5, "AbsRel": 1.2}).metrics["RMSE"] == 3.5


def test_a_network_and_seed_may_occur_once() -> None:
    with pytest.raises(ResultsError, match="seed 0 occurs twice"):
        _results(_row(), _row())
    with pytest.raises(ResultsError, match="at least one row"):
        dataclasses.replace(_results(), rows=())


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
    _results().write(path)
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
    _results(_row(seed=0), date="2026-01-02").write(tmp_path / "a" / "results.json")
    other = _results(_row(seed=1), date="2026-01-03", commit="fedcba", machine={"cpu": "b cpu", "cores": 2})
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
    _results(_row(seed=0)).write(tmp_path / "a.json")
    _results(_row(seed=1), protocol=from_words("another")).write(tmp_path / "b.json")
    with pytest.raises(ResultsError, match="one protocol"):
        merge([tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(ResultsError, match="occurs twice"):
        merge([tmp_path / "a.json", tmp_path / "a.json"])
    with pytest.raises(ResultsError, match="something to merge"):
        merge([])


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.replace("\N{NO-BREAK SPACE}", " ").splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_shows_mean_and_spread_over_seeds() -> None:
    rows = [_row(seed=i, metrics={"AP": ap}) for i, ap in enumerate((0.2, 0.3, 0.4))]
    table = to_markdown(_results(*rows, _row("twin | x", "twin", metrics={"AP": 0.5, "RMSE": 1.0}, cost={})))
    cells = _cells(table.replace("\\|", "/"))
    assert cells[0][:5] == ["network", "role", "seeds", "AP (%)", "RMSE"]
    assert cells[2][:5] == ["ode", "ODE", "3", "30.0 ± 10.0", ""]
    assert cells[3][:5] == ["twin / x", "twin", "1", "50.0", "1.000"]
    assert len({len(line) for line in cells}) == 1
    assert "twin \\| x" in table
    assert "mean ± standard deviation" in table


def test_one_seed_has_no_spread_and_no_column_of_seeds() -> None:
    table = to_markdown(_results())
    assert "±" not in table
    assert _cells(table)[0] == [
        "network",
        "role",
        "AP (%)",
        "AP50 (%)",
        "parameters (M)",
        "evaluations",
        "latency (ms)",
    ]
    assert _cells(table)[2] == ["ode", "ODE", "25.0", "50.0", "0.208", "22", "12.3"]


def test_a_table_that_is_too_wide_leaves_out_details_and_says_so() -> None:
    metrics = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", "precision", "recall", "f1"), 0.5)
    costs = dict.fromkeys(("parameters", "macs", "evaluations"), 1.0)
    narrow, wide = (_results(_row(metrics=metrics, cost=costs | more)) for more in ({}, {"latency_ms": 1.0}))
    assert len(_cells(to_markdown(narrow))[0]) == 2 + 12
    assert "In the file" not in to_markdown(narrow)
    assert _cells(to_markdown(wide))[0][2:] == [
        *("AP (%)", "AP50 (%)", "precision (%)", "recall (%)", "F1 (%)"),
        *("parameters (M)", "multiply-adds (G)", "evaluations", "latency (ms)"),
    ]
    assert "In the file of the results only: AP75, APs, APm, APl." in to_markdown(wide)


def test_a_wide_table_of_classifiers_shows_errors_to_a_hundredth_of_a_percent() -> None:
    metrics = {"error": 0.00354, "top1": 0.99646, "top5": 1.0, "ece": 0.0123, "unfamiliar": 0.01, "nll": 0.5}
    metrics |= dict.fromkeys(("precision", "recall", "f1"), 0.996)
    costs = dict.fromkeys(("parameters", "macs", "evaluations", "latency_ms"), 1.0)
    cells = _cells(to_markdown(_results(_row(metrics=metrics, cost=costs))))
    assert cells[0][2:6] == ["error (%)", "top-1 (%)", "top-5 (%)", "ECE (%)"]
    assert cells[2][2:6] == ["0.35", "99.65", "100.00", "1.23"]
    assert len(cells[0]) == 2 + 4 + 4
    narrow = _cells(to_markdown(_results(_row(metrics={"nll": 0.5, "unfamiliar": 0.01, "precision": 0.5}, cost={}))))
    assert narrow[0][2:] == ["precision (%)", "unfamiliar (%)", "NLL"]
    assert narrow[2][2:] == ["50.0", "1.0", "0.500"]
    with pytest.raises(ResultsError, match=r"ece.*must be a fraction"):
        _row(metrics={"ece": 1.5})


def test_what_is_the_same_in_each_row_is_said_below_the_table() -> None:
    rows = [
        _row(name, role, seed, metrics={"AP": ap})
        for name, role, ap in (("a", "ode", 0.1), ("b", "ode", 0.2))
        for seed in (0, 1)
    ]
    table = to_markdown(_results(*rows))
    assert _cells(table)[0] == ["network", "AP (%)"]
    assert "Two seeds: mean" in table
    assert "The same in each row: role ODE; parameters (M) 0.208; evaluations 22; latency (ms) 12.3." in table
    assert "The same" not in to_markdown(_results(_row()))
    alike = to_markdown(_results(_row(), _row(config="configs/b.yaml", seed=1)))
    assert len(_cells(alike)[0]) == 7  # two configs under one name, with the same numbers: all columns stay


def test_ratios_of_one_case_and_quantity_say_so_once() -> None:
    rows = [
        _row(f"forward: {name}", metrics={}, cost={"latency_ms": 10.0}, case="forward")
        for name in ("flow", "blocks", "loop")
    ]
    ratios = [
        Comparison("forward", "forward: flow", f"forward: {name}", "latency_ms", ratio, ratio, ratio)
        for name, ratio in (("blocks", 1.0), ("loop", 0.9))
    ]
    table = to_markdown(_results(*rows, comparisons=tuple(ratios)))
    assert _cells(table)[0] == ["other", "ratio"]
    assert "The same in each row: case forward; quantity latency (ms); ours flow: 10." in table


def test_the_fold_of_a_table_keeps_every_clause_and_command() -> None:
    table = to_markdown(_results(protocol=from_words("one; two <b>"), command="python a.py\n```"))
    fold = table[table.index("<details") :]
    assert "\n- one\n- two &lt;b&gt;\n" in fold
    assert "\n````text\npython a.py\n```\n````\n" in fold
    assert fold.endswith("\n\n</details>")


def test_large_and_small_costs_stay_legible() -> None:
    row = _row(cost={"parameters": 44_500_000, "macs": 7.8e9, "train_memory_mib": 12345.6, "train_minutes": 0.0123})
    assert _cells(to_markdown(_results(row)))[2][4:] == ["44.5", "7.80", "12,346", "0.0123"]


def test_a_table_says_how_it_was_made_and_what_is_missing() -> None:
    for table in (to_markdown(_results()), to_text(_results())):
        for part in ("test 9 tiles", "python tools/compare.py trees", "0123456789ab", "2 cores", "2026-01-02"):
            assert part in table
        assert "Not measured here: the twin and the ablation." in table
    full = _results(_row(), _row("t", "twin"), _row("a", "ablation"))
    assert "Not measured" not in to_markdown(full)
    assert {line[1] for line in _cells(to_markdown(full))[2:]} == {"ODE", "twin", "ablation"}


def test_text_is_aligned() -> None:
    lines = to_text(_results(_row(), _row("a much longer name", "twin"))).splitlines()
    assert lines[0] == "trees, ODE against twin"
    assert len({len(line) for line in lines[2:6]}) == 1


def test_machine_says_what_it_is() -> None:
    described = machine()
    assert described["cpu"]
    assert described["cores"] >= 1
    json.dumps(described)


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=none"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_commit_tells_a_changed_work_tree(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    _git(tmp_path, "init")
    (tmp_path / "results").mkdir()
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "results" / "r.json").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "results" / "r.json").write_text("2")
    assert commit(tmp_path) == clean
    assert commit(tmp_path / "results") == clean
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_commit_without_git_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == "unknown"


def _benchmark(**changes: Any) -> Results:
    forward = {"config": "speed", "case": "forward"}
    rows = (
        _row("forward: flow", metrics={}, cost={"latency_ms": 10.25, "kept_mib": 3.0}, **forward),
        _row(
            "forward: blocks",
            "twin",
            metrics={},
            cost={"latency_ms": 10.0, "kept_mib": 12.0},
            config="speed",
            case="forward",
        ),
        _row("backward: flow", metrics={"gradient_difference": 1e-7}, cost={}, config="memory", case="backward"),
    )
    comparisons = (
        Comparison("forward", "forward: flow", "forward: blocks", "latency_ms", 1.025, 1.01, 1.04, 1.02),
        Comparison("forward", "forward: flow", "forward: blocks", "kept_mib", 0.25, 0.25, 0.25, 0.25),
        Comparison("backward", "backward: flow", "forward: flow", "gradient_difference", 1e-7, 1e-7, 1e-7),
    )
    return _results(*rows, **{"comparisons": comparisons, **changes})


def test_comparisons_are_written_read_and_merged(tmp_path: Path) -> None:
    _benchmark().write(tmp_path / "b.json")
    assert Results.read(tmp_path / "b.json") == _benchmark()
    _results(_row("another")).write(tmp_path / "a.json")
    merged = merge([tmp_path / "a.json", tmp_path / "b.json"])
    assert merged.comparisons == _benchmark().comparisons
    assert len(merged.rows) == 4


def test_a_comparison_names_rows_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"'forward: flw'.*did you mean forward: flow"):
        _benchmark(comparisons=(Comparison("forward", "forward: flw", "forward: blocks", "latency_ms", 1, 1, 1),))
    path = tmp_path / "b.json"
    _benchmark().write(path)
    path.write_text(path.read_text().replace('"quantity"', '"quantty"'))
    with pytest.raises(ResultsError, match="did you mean quantity"):
        Results.read(path)


def test_a_benchmark_is_a_table_of_ratios() -> None:
    cells = _cells(to_markdown(_benchmark()))
    assert cells[0] == ["case", "quantity", "ours", "other", "ratio", "aim"]
    assert cells[2] == [
        "forward",
        "latency (ms)",
        "flow: 10.2",
        "blocks: 10",
        "1.025 (1.010 to 1.040)",
        "at most 1.02, missed",
    ]
    assert cells[3][2:] == ["flow: 3", "blocks: 12", "0.250", "at most 0.25, met"]
    assert cells[4] == ["backward", "gradient difference", "flow", "forward: flow", "1.0e-07", ""]
    assert "rounds that alternate both" in to_text(_benchmark())
    assert "Not measured" not in to_text(_benchmark())


def test_a_section_is_a_part_of_the_results() -> None:
    part = _benchmark().section("memory")
    assert [row.name for row in part.rows] == ["backward: flow"]
    assert part.comparisons == ()
    assert len(_benchmark().section("speed").comparisons) == 2
    with pytest.raises(ResultsError, match=r"section of .*'sped'.*did you mean speed"):
        _benchmark().section("sped")
