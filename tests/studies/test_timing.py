from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from ode_detect.studies.timing import MAX_ROUNDS, MIN_ROUNDS, Case, Ratio, Side, alternate, measure, rotate


class Clock:
    """A clock that stands still unless a side takes its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float) -> Callable[[], None]:
        """A side that takes so long in each call; the last time is that of all further calls."""
        left: Iterator[float] = iter(seconds[:-1])

        def run() -> None:
            self.calls.append(name)
            self.now += next(left, seconds[-1])

        return run


def test_sides_take_turns_after_two_rounds_of_warm_up() -> None:
    clock = Clock()
    times = alternate({"a": clock.side("a", 1.0), "b": clock.side("b", 3.0)}, seconds=28.0, clock=clock)
    assert clock.calls == ["a", "b"] * (2 + 7)
    assert times == {"a": [1.0] * 7, "b": [3.0] * 7}


def test_warm_up_is_not_measured_and_its_second_round_counts_the_rounds() -> None:
    clock = Clock()
    times = alternate({"a": clock.side("a", 100.0, 2.0, 1.0)}, seconds=20.0, clock=clock)
    assert times == {"a": [1.0] * 10}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, MIN_ROUNDS), (1e9, MAX_ROUNDS)])
def test_there_are_never_too_few_or_too_many_rounds(seconds: float, rounds: int) -> None:
    clock = Clock()
    assert len(alternate({"a": clock.side("a", 1.0)}, seconds=seconds, clock=clock)["a"]) == rounds


def test_nothing_to_time_takes_no_time() -> None:
    assert alternate({}, seconds=1.0) == {}


def test_garbage_is_not_collected_while_a_side_is_timed() -> None:
    seen = []
    alternate({"a": lambda: seen.append(gc.isenabled())}, seconds=0.0)
    assert seen == [True] * 2 + [False] * MIN_ROUNDS
    assert gc.isenabled()


def test_garbage_is_collected_again_after_a_failure() -> None:
    def fail_in_a_round() -> None:
        if not gc.isenabled():
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        alternate({"a": fail_in_a_round}, seconds=0.0)
    assert gc.isenabled()


def _measured(ours: tuple[float, ...], other: tuple[float, ...], aim: float | None = None):
    """Rows and comparison of two sides whose five rounds take these seconds."""
    clock = Clock()
    sides = {
        "flow": Side("ode", clock.side("flow", 9.0, 9.0, *ours)),
        "blocks": Side("twin", clock.side("blocks", 9.0, 9.0, *other)),
    }
    rows, (comparison,) = measure(
        Case("a case", sides, [Ratio("flow", "blocks", aim)]), section="flow", seconds=0.0, clock=clock
    )
    return rows, comparison


def test_a_ratio_is_the_median_of_the_rounds_with_quartiles() -> None:
    # A slow round of both sides changes no ratio: 1, 2, 3, 4, 5.
    rows, comparison = _measured((1.0, 2.0, 300.0, 4.0, 5.0), (1.0, 1.0, 100.0, 1.0, 1.0))
    assert (comparison.low, comparison.ratio, comparison.high) == pytest.approx((2.0, 3.0, 4.0))
    assert (comparison.case, comparison.ours, comparison.other) == ("a case", "a case: flow", "a case: blocks")
    assert comparison.quantity == "latency_ms"
    assert [(row.name, row.role, row.config) for row in rows] == [
        ("a case: flow", "ode", "flow"),
        ("a case: blocks", "twin", "flow"),
    ]
    assert rows[0].cost == pytest.approx(
        {"latency_ms": 4000.0, "latency_low_ms": 2000.0, "latency_high_ms": 5000.0, "rounds": 5}
    )


@pytest.mark.parametrize(("aim", "met"), [(2.0, True), (1.999, False), (None, None)])
def test_an_aim_is_met_by_a_ratio_up_to_it(aim: float | None, met: bool | None) -> None:
    _, comparison = _measured((2.0,), (1.0,), aim)
    assert comparison.met is met


def test_a_case_of_more_weight_gets_more_rounds() -> None:
    clock = Clock()
    case = Case("a case", {"a": Side("ode", clock.side("a", 1.0))}, [], weight=3.0)
    (row,), _ = measure(case, section="flow", seconds=10.0, clock=clock)
    assert row.cost["rounds"] == 30


def test_other_costs_and_differences_are_compared_without_time() -> None:
    sides = {
        "ours": Side("ode", cost={"kept_mib": 1.0}, metrics={"gradient_difference": 1e-7}),
        "other": Side("twin", cost={"kept_mib": 4.0}),
    }
    ratios = [Ratio("ours", "other", 0.25, "kept_mib"), Ratio("ours", "other", 1e-8, "gradient_difference")]
    rows, (kept, difference) = measure(Case("memory", sides, ratios), section="gradients", seconds=1.0)
    assert (kept.low, kept.ratio, kept.high, kept.met) == (0.25, 0.25, 0.25, True)
    assert (difference.ratio, difference.met) == (1e-7, False)
    assert rows[0].cost == {"kept_mib": 1.0}


def test_pictures_per_second_are_told_where_pictures_are() -> None:
    clock = Clock()
    sides = {"a": Side("ode", clock.side("a", 0.5), pictures=8), "b": Side("baseline", clock.side("b", 1.0))}
    rows, _ = measure(Case("case", sides, []), section="s", seconds=1.0, clock=clock)
    assert [row.cost.get("pictures_per_second") for row in rows] == [16.0, None]


def rotated(clock: Clock, sides: str, given: list[str], seconds: Callable[[str, str], float]) -> dict[str, list[float]]:
    """Times of sides, each entered and left at no cost; ``seconds`` of a side and an input."""
    at: list[str] = []

    @contextmanager
    def side(name: str) -> Iterator[None]:
        clock.now += 1000.0  # what a side is made by is not timed
        at.append(name)
        yield
        at.pop()

    def run(one: str) -> None:
        clock.calls.append(f"{at[-1]}{one}")
        clock.now += seconds(at[-1], one)

    return rotate({name: partial(side, name) for name in sides}, run, given, clock=clock)


def test_whoever_begins_changes_from_input_to_input() -> None:
    clock = Clock()
    rotated(clock, "abc", ["1", "2", "3", "4"], lambda side, given: 1.0)
    warm_up, *rounds = ["a1 b1 c1", "a1 b1 c1", "a1 b1 c1", "b2 c2 a2", "b2 c2 a2", "c3 a3 b3", "c3 a3 b3"]
    assert " ".join(clock.calls) == " ".join([warm_up, *rounds, "a4 b4 c4", "a4 b4 c4"])


def test_the_faster_of_two_calls_counts_and_only_the_call_is_timed() -> None:
    clock = Clock()
    seconds = {"a1": [9.0, 4.0, 2.0], "b1": [9.0, 3.0, 5.0], "a2": [1.0, 1.0], "b2": [7.0, 6.0]}
    times = rotated(clock, "ab", ["1", "2"], lambda side, given: seconds[side + given].pop(0))
    assert times == {"a": [2.0, 1.0], "b": [3.0, 6.0]}


def test_of_no_sides_there_are_no_times() -> None:
    assert rotated(Clock(), "", ["1"], lambda side, given: 1.0) == {}
