"""Several sides of one case, measured in turn in one process: the only place that knows about time.

Wall times of one machine on one day mean little; the ratio of two sides that took turns means more. A round calls every
side once, in their order; a ratio is the median over the rounds of the ratio within each round, with its quartiles.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ode_detect.report.results import Comparison, Row

MIN_ROUNDS, MAX_ROUNDS = 5, 200
_TIME = "latency_ms"


@dataclass(frozen=True)
class Side:
    """One side of a case.

    Attributes:
        role: what it is: "ode" (ours), "twin" (the discrete stage), "baseline" (another library).
        run: what is timed; None if only its costs matter.
        cost: what is known of its costs without timing it, as ``kept_mib``, ``evaluations``.
        pictures: that one call of ``run`` goes through; their number per second is then among the costs.
        metrics: how good its result is, as ``gradient_difference``.
    """

    role: str
    run: Callable[[], object] | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: int = 0


@dataclass(frozen=True)
class Ratio:
    """A ratio between two sides of a case.

    Attributes:
        ours: name of a side.
        other: name of a side.
        aim: the ratio should be at most this; None if it is only reported.
        quantity: "latency_ms", another cost of both sides, or a metric of ``ours`` that is a relative difference to the
            other side.
    """

    ours: str
    other: str
    aim: float | None = None
    quantity: str = _TIME


@dataclass(frozen=True)
class Case:
    """What several sides do alike.

    Attributes:
        name: what they do; no two cases of a benchmark have the same.
        sides: by their names, in the order in which they take turns.
        ratios: what is stated about them.
        weight: how much more time than others it gets; an aim near 1 needs many rounds.
    """

    name: str
    sides: Mapping[str, Side]
    ratios: Sequence[Ratio]
    weight: float = 1.0


def measure(
    case: Case, *, section: str, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[Row], list[Comparison]]:
    """Measure a case.

    Args:
        case: its sides and ratios.
        section: the section of the benchmark that it belongs to.
        seconds: about how long the rounds may take together, at weight 1; there are at least 5 and at most 200.
        clock: the time in seconds.

    Returns:
        A row for each side, with the median and quartiles of its times, and a comparison for each ratio.
    """
    runs = {name: side.run for name, side in case.sides.items() if side.run}
    times = alternate(runs, seconds=seconds * case.weight, clock=clock)
    rows = [
        Row(
            name=f"{case.name}: {name}",
            role=side.role,
            seed=0,
            config=section,
            metrics=side.metrics,
            cost={**side.cost, **(_time_cost(times[name], side.pictures) if name in times else {})},
            case=case.name,
        )
        for name, side in case.sides.items()
    ]
    return rows, [_comparison(case, ratio, times) for ratio in case.ratios]


def alternate(
    runs: Mapping[str, Callable[[], object]], *, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Call each of ``runs`` once per round, in their order, after two rounds of warm-up.

    The second of those says how many rounds fit into ``seconds``. Garbage is collected before the rounds, not in them.

    Returns:
        The times of each in seconds, round by round.
    """
    if not runs:
        return {}
    for _ in range(2):
        warm = {name: _timed(run, clock) for name, run in runs.items()}
    rounds = min(max(int(seconds / max(sum(warm.values()), 1e-9)), MIN_ROUNDS), MAX_ROUNDS)
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(_timed(run, clock))
    finally:
        if was_enabled:
            gc.enable()
    return times


def rotate(
    sides: Mapping[str, Callable[[], AbstractContextManager[object]]],
    run: Callable[[Any], object],
    inputs: Sequence[Any],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Call ``run`` on each input twice at every side, the sides in turns; who begins changes from input to input.

    Args:
        sides: what makes ``run`` that of the side, as a context, outside of what is timed.
        run: what is timed.
        inputs: at least one.
        clock: the time in seconds.

    Returns:
        The faster of the two times of each side in seconds, input by input.
    """

    def once(name: str, given: Any) -> float:
        with sides[name]():
            return _timed(partial(run, given), clock)

    names = list(sides)
    for name in names:
        once(name, inputs[0])  # for warming up
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn, given in enumerate(inputs):
        start = turn % len(names) if names else 0
        order = [*names[start:], *names[:start]]
        first = {name: once(name, given) for name in order}
        for name in order:
            taken[name].append(min(first[name], once(name, given)))
    return taken


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    result = run()
    seconds = clock() - start
    del result  # freed by nobody's time
    return seconds


def _comparison(case: Case, ratio: Ratio, times: Mapping[str, Sequence[float]]) -> Comparison:
    ours, other = case.sides[ratio.ours], case.sides[ratio.other]
    if ratio.quantity == _TIME:
        values = [a / b for a, b in zip(times[ratio.ours], times[ratio.other], strict=True)]
    elif ratio.quantity in ours.metrics:
        values = [ours.metrics[ratio.quantity]]
    else:
        values = [ours.cost[ratio.quantity] / other.cost[ratio.quantity]]
    low, middle, high = _quartiles(values)
    return Comparison(
        case=case.name,
        ours=f"{case.name}: {ratio.ours}",
        other=f"{case.name}: {ratio.other}",
        quantity=ratio.quantity,
        ratio=middle,
        low=low,
        high=high,
        aim=ratio.aim,
    )


def _time_cost(seconds: Sequence[float], pictures: int) -> dict[str, float]:
    low, middle, high = (1e3 * value for value in _quartiles(seconds))
    speed = {"pictures_per_second": 1e3 * pictures / middle} if pictures else {}
    return {_TIME: middle, "latency_low_ms": low, "latency_high_ms": high, "rounds": len(seconds), **speed}


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
