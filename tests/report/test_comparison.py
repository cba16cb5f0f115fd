"""Means, differences and reasons, against numbers worked out by hand."""

import math

import pytest

from ode_detect.report.comparison import NO_REASON, Cell, Compared, differences, group, numbers, spread, summary, title
from ode_detect.report.rows import Row


def row(name: str, role: str, seed: int, ap50: float | None, **cost: float) -> Row:
    return Row(name, role, seed, f"{name}.yaml", {} if ap50 is None else {"AP50": ap50}, cost)


ROWS = (
    row("ode", "ode", 0, 0.80, parameters=2_000_000, latency_ms=20.0, train_minutes=4.0),
    row("ode", "ode", 1, 0.90, parameters=2_000_000, train_minutes=6.0),
    row("twin", "twin", 0, 0.78, parameters=4_000_000, latency_ms=16.0, evaluations=0),
    row("twin", "twin", 1, 0.86, parameters=4_000_000),
    row("cut", "ablation", 0, 0.50, parameters=1_000_000),
    row("cut", "ablation", 1, 0.50, parameters=1_000_000),
)
PAIRS = {"twins": {"ode": "twin", "cut": "twin"}, "ablations": {"ode": "cut"}}
COMPARED = Compared(
    group(ROWS),
    **PAIRS,
    ratios={("ode", "twin", "latency_ms"): (1.3, 1.2, 1.4)},
    reasons={("cut", "latency_ms"): "why"},
)


def cells(table, quantity: str) -> tuple[Cell, ...]:
    return next(line.cells for _, lines in table.groups for line in lines if line.title.rstrip("\u00a0↑↓") == quantity)


def test_rows_of_one_name_are_one_network_in_the_order_given() -> None:
    assert [(n.name, n.role, len(n.rows)) for n in group(ROWS)] == [
        ("ode", "ode", 2),
        ("twin", "twin", 2),
        ("cut", "ablation", 2),
    ]


def test_numbers_are_means_with_the_standard_deviation_over_seeds() -> None:
    table = numbers(COMPARED)
    assert [c.text for c in cells(table, "AP50 (%)")] == ["85.0 ± 7.1", "82.0 ± 5.7", "50.0 ± 0.0"]
    assert [c.text for c in cells(table, "parameters (M)")] == ["2", "4", "1"]
    assert cells(table, "training (min)")[0].text == "5 ± 1.41"
    assert table.columns == (("ode", "ODE"), ("twin", "twin"), ("cut", "ablation"))
    assert table.caption.startswith("Mean ± standard deviation")


def test_a_quantity_says_in_which_direction_it_is_better() -> None:
    quantities = ("AP50", "f1", "error", "best_f1_threshold", "RMSE", "latency_ms", "pictures_per_second")
    assert [title(quantity).replace("\u00a0", " ") for quantity in quantities] == [
        *("AP50 (%) ↑", "F1 (%) ↑", "error (%) ↓", "best F1 threshold", "RMSE", "latency (ms) ↓"),
        "pictures per second ↑",
    ]


def test_what_is_missing_points_to_its_reason() -> None:
    table = numbers(COMPARED)
    latency, minutes = cells(table, "latency (ms)"), cells(table, "training (min)")
    assert (latency[2].text, table.notes[latency[2].note - 1]) == ("–", "why")
    assert table.notes[minutes[1].note - 1] == NO_REASON
    assert minutes[1].note == minutes[2].note
    # A latency is measured for one seed and nobody misses the others; a metric of one seed of two is told.
    assert latency[0].small == ""
    one = Compared(group([*ROWS[:1], row("ode", "ode", 1, None)]))
    assert cells(numbers(one), "AP50 (%)")[0].small == "1 of 2 seeds"


def test_what_no_network_has_is_shown_if_there_is_a_reason() -> None:
    table = numbers(Compared(group(ROWS), reasons={("ode", "kept_mib"): "no training data"}))
    assert [c.text for c in cells(table, "kept for the gradient (MiB)")] == ["–"] * 3


def test_differences_are_stated_with_their_spread() -> None:
    table = differences(COMPARED)
    ours, ablation = cells(table, "AP50 (points)")
    # 85 - 82, and the root of 7.07^2 + 5.66^2.
    assert (ours.text, ours.small) == ("+3.0 ± 9.1", "within the spread of 2 seeds")
    assert (ablation.text, ablation.small) == ("−32.0 ± 5.7", "beyond the spread of 2 seeds")
    assert cells(table, "parameters (M)")[0].text == "× 0.500"
    # What was measured in turns counts, not the quotient of two medians.
    assert (cells(table, "latency (ms)")[0]) == Cell("× 1.300", "quartiles 1.200 to 1.400")
    assert "evaluations" not in [line.title.rstrip("\u00a0↑↓") for _, lines in table.groups for line in lines]


def test_one_seed_has_no_spread_and_no_twin_no_differences() -> None:
    single = Compared(group(ROWS[::2]), **PAIRS)
    table = differences(single)
    assert cells(table, "AP50 (points)")[0] == Cell("+2.0")
    assert table.caption.startswith("Differences of one seed, spread unknown")
    assert numbers(single).caption.startswith("One seed.")
    assert "(one seed, spread unknown)" in summary(single, "AP50")[1]
    assert spread([0.1], [0.2, 0.3]) is None
    assert spread([1.0, 3.0], [2.0, 2.0]) == pytest.approx(math.sqrt(2))
    assert differences(Compared(group(ROWS))) is None


def test_the_summary_states_numbers_and_claims_nothing_from_two_seeds() -> None:
    first, twin, ablation, seeds = summary(COMPARED, "AP50")
    assert first.startswith("ode (ODE): AP50 85.0 ± 7.1 % with 2 M parameters; twin (twin): AP50 82.0 ± 5.7 %")
    assert "ode against its twin: AP50 +3.0 ± 9.1 percentage points (within the spread of 2 seeds)" in twin
    assert "0.50 × the parameters" in twin
    assert "1.30 × the latency" in twin
    assert "ode against its ablation: AP50 +35.0" in ablation
    assert seeds == "2 seeds say nothing about significance."
    assert "no RMSE" in summary(COMPARED, "RMSE")[0]


def test_networks_may_have_different_numbers_of_seeds() -> None:
    three = [row("ode", "ode", seed, 0.8) for seed in range(3)]
    mixed = Compared(group([*three, *ROWS[2:4]]), twins={"ode": "twin"})
    assert summary(mixed, "AP50")[-1] == "2 seeds say nothing about significance (twin)."
    assert numbers(mixed).caption.startswith("Mean ± standard deviation over seeds")
    single = Compared(group([*three, ROWS[2]]), twins={"ode": "twin"})
    assert summary(single, "AP50")[-1] == "One seed says nothing about significance (twin)."
    assert cells(differences(single), "AP50 (points)")[0].small == "one seed, spread unknown"


def test_of_what_a_classifier_gives_less_error_and_more_accuracy_is_better() -> None:
    found = [title(quantity).replace("\u00a0", " ") for quantity in ("error", "top1", "ece", "nll", "unfamiliar")]
    assert found == ["error (%) ↓", "top-1 (%) ↑", "ECE (%) ↓", "NLL ↓", "unfamiliar (%)"]
