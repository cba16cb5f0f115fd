"""Results as tables, in Markdown and for the terminal."""

from __future__ import annotations

import pytest

from ode_detect.report.protocol import from_words
from ode_detect.report.results import ResultsError
from ode_detect.report.rows import Comparison
from ode_detect.report.tables import to_markdown, to_text

from .results_by_hand import a_benchmark, a_row, some_results


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.replace("\N{NO-BREAK SPACE}", " ").splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_shows_mean_and_spread_over_seeds() -> None:
    rows = [a_row(seed=i, metrics={"AP": ap}) for i, ap in enumerate((0.2, 0.3, 0.4))]
    table = to_markdown(some_results(*rows, a_row("twin | x", "twin", metrics={"AP": 0.5, "RMSE": 1.0}, cost={})))
    cells = _cells(table.replace("\\|", "/"))
    assert cells[0][:5] == ["network", "role", "seeds", "AP (%)", "RMSE"]
    assert cells[2][:5] == ["ode", "ODE", "3", "30.0 ± 10.0", ""]
    assert cells[3][:5] == ["twin / x", "twin", "1", "50.0", "1.000"]
    assert len({len(line) for line in cells}) == 1
    assert "twin \\| x" in table
    assert "mean ± standard deviation" in table


def test_one_seed_has_no_spread_and_no_column_of_seeds() -> None:
    table = to_markdown(some_results())
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
    narrow, wide = (some_results(a_row(metrics=metrics, cost=costs | more)) for more in ({}, {"latency_ms": 1.0}))
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
    cells = _cells(to_markdown(some_results(a_row(metrics=metrics, cost=costs))))
    assert cells[0][2:6] == ["error (%)", "top-1 (%)", "top-5 (%)", "ECE (%)"]
    assert cells[2][2:6] == ["0.35", "99.65", "100.00", "1.23"]
    assert len(cells[0]) == 2 + 4 + 4
    narrow = _cells(
        to_markdown(some_results(a_row(metrics={"nll": 0.5, "unfamiliar": 0.01, "precision": 0.5}, cost={})))
    )
    assert narrow[0][2:] == ["precision (%)", "unfamiliar (%)", "NLL"]
    assert narrow[2][2:] == ["50.0", "1.0", "0.500"]
    with pytest.raises(ResultsError, match=r"ece.*must be a fraction"):
        a_row(metrics={"ece": 1.5})


def test_what_is_the_same_in_each_row_is_said_below_the_table() -> None:
    rows = [
        a_row(name, role, seed, metrics={"AP": ap})
        for name, role, ap in (("a", "ode", 0.1), ("b", "ode", 0.2))
        for seed in (0, 1)
    ]
    table = to_markdown(some_results(*rows))
    assert _cells(table)[0] == ["network", "AP (%)"]
    assert "Two seeds: mean" in table
    assert "The same in each row: role ODE; parameters (M) 0.208; evaluations 22; latency (ms) 12.3." in table
    assert "The same" not in to_markdown(some_results(a_row()))
    alike = to_markdown(some_results(a_row(), a_row(config="configs/b.yaml", seed=1)))
    assert len(_cells(alike)[0]) == 7  # two configs under one name, with the same numbers: all columns stay


def test_ratios_of_one_case_and_quantity_say_so_once() -> None:
    rows = [
        a_row(f"forward: {name}", metrics={}, cost={"latency_ms": 10.0}, case="forward")
        for name in ("flow", "blocks", "loop")
    ]
    ratios = [
        Comparison("forward", "forward: flow", f"forward: {name}", "latency_ms", ratio, ratio, ratio)
        for name, ratio in (("blocks", 1.0), ("loop", 0.9))
    ]
    table = to_markdown(some_results(*rows, comparisons=tuple(ratios)))
    assert _cells(table)[0] == ["other", "ratio"]
    assert "The same in each row: case forward; quantity latency (ms); ours flow: 10." in table


def test_the_fold_of_a_table_keeps_every_clause_and_command() -> None:
    table = to_markdown(some_results(protocol=from_words("one; two <b>"), command="python a.py\n```"))
    fold = table[table.index("<details") :]
    assert "\n- one\n- two &lt;b&gt;\n" in fold
    assert "\n````text\npython a.py\n```\n````\n" in fold
    assert fold.endswith("\n\n</details>")


def test_large_and_small_costs_stay_legible() -> None:
    row = a_row(cost={"parameters": 44_500_000, "macs": 7.8e9, "train_memory_mib": 12345.6, "train_minutes": 0.0123})
    assert _cells(to_markdown(some_results(row)))[2][4:] == ["44.5", "7.80", "12,346", "0.0123"]


def test_a_table_says_how_it_was_made_and_what_is_missing() -> None:
    for table in (to_markdown(some_results()), to_text(some_results())):
        for part in ("test 9 tiles", "python tools/compare.py trees", "0123456789ab", "2 cores", "2026-01-02"):
            assert part in table
        assert "Not measured here: the twin and the ablation." in table
    full = some_results(a_row(), a_row("t", "twin"), a_row("a", "ablation"))
    assert "Not measured" not in to_markdown(full)
    assert {line[1] for line in _cells(to_markdown(full))[2:]} == {"ODE", "twin", "ablation"}


def test_text_is_aligned() -> None:
    lines = to_text(some_results(a_row(), a_row("a much longer name", "twin"))).splitlines()
    assert lines[0] == "trees, ODE against twin"
    assert len({len(line) for line in lines[2:6]}) == 1


def test_a_benchmark_is_a_table_of_ratios() -> None:
    cells = _cells(to_markdown(a_benchmark()))
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
    assert "rounds that alternate both" in to_text(a_benchmark())
    assert "Not measured" not in to_text(a_benchmark())
