"""Steps of each flow for a budget: a greedy search by measured sensitivities, verified by evaluating what it chose."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ode_detect.ode import FixedStep
from ode_detect.report.results import Results
from ode_detect.task import ConfigError

from .dial import Dial
from .output import worth, write_choice, write_results
from .settings import Setting

logger = logging.getLogger("ode_detect.studies")


class BudgetError(ConfigError):
    """No setting meets the budget; the message says which comes nearest."""


@dataclass(frozen=True)
class Budget:
    """What a setting must keep to: exactly one of the two.

    Attributes:
        milliseconds: for one picture; the best within it is wanted.
        loss: of the main metric, against the full steps, in its unit (AP50: 0.01 is one percent point); the fastest
            within it is wanted.

    Raises:
        ConfigError: none or both are given, or a number out of range.
    """

    milliseconds: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        if (self.milliseconds is None) == (self.loss is None):
            raise ConfigError("a budget is either milliseconds or a loss of quality; give one of the two.")
        if self.milliseconds is not None and not self.milliseconds > 0:
            raise ConfigError(f"a budget of milliseconds is above 0, not {self.milliseconds}; 20 is an example.")
        if self.loss is not None and not 0 <= self.loss < float("inf"):
            raise ConfigError(f"a loss of quality is 0 or more, not {self.loss}; 0.01 is an example.")


@dataclass(frozen=True)
class Change:
    """One flow solved more cheaply, the others at the full steps.

    Attributes:
        flow: path of the flow.
        setting: the full setting with that change.
        loss: of quality, against the full steps; below 0 is a gain.
        saved: milliseconds of one picture.
    """

    flow: str
    setting: Setting
    loss: float
    saved: float


@dataclass(frozen=True)
class Choice:
    """What was picked for a budget.

    Attributes:
        setting: solver of each flow.
        claim: its quality and time, those of the full steps, and what they are worth, in a line.
        path: the config to use it by.
    """

    setting: Setting
    claim: str
    path: Path


def turn(
    dial: Dial,
    *,
    steps: Sequence[int],
    methods: Sequence[str],
    flows: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> tuple[Results, Choice | None]:
    """Sweep steps and methods, pick a setting if there is a budget, write all of it into the dial's folder.

    Args:
        dial: the checkpoint.
        steps: numbers of steps.
        methods: of ours or of torchdiffeq.
        flows: names of the flows that are turned; None turns all.
        budget: what the choice must keep to; None only sweeps.

    Returns:
        Everything that was measured, and the choice.

    Raises:
        ConfigError: an impossible request, or a network without quality at the full steps.
        BudgetError: no setting keeps to the budget; what was measured is written all the same.
    """
    settings = dial.settings(steps, methods, flows)
    dial.evaluate(dial.full)
    if dial.quality(dial.full.name) is None:
        raise ConfigError(
            f"the dial compares {dial.metric} with that at the full steps, and this network has none on the test set. "
            "Give weights of a trained network."
        )
    for setting in settings:
        dial.evaluate(setting)
    if budget is None:
        return write_results(dial, dial.times(dial.known)), None
    paths = dial.paths(flows)
    try:
        setting, times = choose(dial, settings, budget, flows=paths)
    except BudgetError:
        write_results(dial, dial.times(dial.known))
        raise
    results = write_results(dial, times)
    words = [
        f"{name}: {dial.metric} {dial.measured[name].metrics[dial.metric]:.4f}, {times[name]:.1f} ms for one picture"
        for name in (setting.name, dial.full.name)
    ]
    machine = f"{results.machine['threads']} threads of {results.machine['cpu']}"
    picked = worth(dial, len(_allowed(dial, times, paths)))
    claim = f"{words[0]} (full steps, {words[1]}); {machine}; picked {picked}"
    return results, Choice(setting, claim, write_choice(dial, setting, claim))


def choose(
    dial: Dial, candidates: Sequence[Setting], budget: Budget, *, flows: Sequence[str]
) -> tuple[Setting, dict[str, float]]:
    """Pick a solver for each flow.

    Each flow by itself is measured at each cheaper candidate. Adding up losses and savings, the changes are ordered by
    loss for a saved millisecond; the first that should meet the budget is evaluated, and the next or the one before
    until the budget is kept. What is then chosen is the best of all that was measured.

    Args:
        dial: the checkpoint; the full setting has a quality.
        candidates: settings that solve all of ``flows`` in one way.
        budget: what to keep to.
        flows: paths of the flows that may change.

    Returns:
        The setting, and the milliseconds of all settings that were measured, by name.

    Raises:
        BudgetError: nothing that was measured keeps to the budget.
    """
    order = greedy(measure_changes(dial, candidates, flows))
    if budget.loss is not None:
        _walk_to_loss(dial, order, budget.loss)
    else:
        _walk_to_time(dial, order, budget.milliseconds or 0.0)
    times = dial.times(dial.known)
    return _best(dial, budget, {name: times[name] for name in _allowed(dial, times, flows)}), times


def _allowed(dial: Dial, names: Iterable[str], flows: Sequence[str]) -> list[str]:
    """The settings that change none but these flows."""
    return [name for name in names if dial.measured[name].setting.differs(dial.full) <= set(flows)]


def measure_changes(dial: Dial, candidates: Sequence[Setting], flows: Sequence[str]) -> list[Change]:
    """Evaluate each flow by itself at each candidate that costs it fewer evaluations than the full steps."""
    probes: dict[str, tuple[str, Setting]] = {}
    for candidate in candidates:
        for path, solver in candidate.solvers:
            probe = dial.full.with_flows({path: solver})
            if path in flows and probe != dial.full:
                probes.setdefault(probe.name, (path, probe))
    full = dial.measured[dial.full.name].cost["evaluations"]
    for name, (_, probe) in list(probes.items()):
        # Known beforehand where all steps are fixed: what costs as much is not worth an evaluation.
        expected = [solver.evaluations for _, solver in probe.solvers if isinstance(solver, FixedStep)]
        cheap = len(expected) < len(probe.solvers) or sum(expected) < full
        if not cheap or dial.evaluate(probe).cost.get("evaluations", full) >= full or dial.quality(name) is None:
            del probes[name]
    times = dial.times([dial.full.name, *probes])
    best = dial.quality(dial.full.name) or 0.0
    return [
        Change(path, probe, best - (dial.quality(name) or 0.0), times[dial.full.name] - times[name])
        for name, (path, probe) in probes.items()
    ]


def greedy(changes: Sequence[Change]) -> list[tuple[Setting, float, float]]:
    """From the full setting to the cheapest, one change at a time, that of the least loss for a saved millisecond.

    Args:
        changes: several for each flow; those that save nothing are not taken.

    Returns:
        Settings with the loss and the saved milliseconds that the sums of their changes predict.
    """
    taken: dict[str, Change] = {}
    steps: list[tuple[Setting, float, float]] = []
    while True:
        moves = [c for c in changes if c.saved > (taken[c.flow].saved if c.flow in taken else 0.0)]
        if not moves:
            return steps

        def rate(change: Change) -> float:
            now = taken.get(change.flow)
            loss, saved = (now.loss, now.saved) if now else (0.0, 0.0)
            return (change.loss - loss) / (change.saved - saved)

        best = min(moves, key=rate)
        taken[best.flow] = best
        setting = best.setting
        for change in taken.values():
            setting = setting.with_flows({p: s for p, s in change.setting.solvers if p == change.flow})
        steps.append((setting, sum(c.loss for c in taken.values()), sum(c.saved for c in taken.values())))


def _walk_to_loss(dial: Dial, order: list[tuple[Setting, float, float]], limit: float) -> None:
    """Evaluate the last setting that should lose little enough; then on while it does, or back until it does."""
    index = max([i for i, (_, loss, _) in enumerate(order) if loss <= limit], default=-1)
    logger.info("%d changes are worth trying together; the first %d should keep to the loss", len(order), index + 1)
    if index >= 0 and _loss(dial, order[index][0]) <= limit:
        while index + 1 < len(order) and _loss(dial, order[index + 1][0]) <= limit:
            index += 1
        return
    while index > 0 and _loss(dial, order[index - 1][0]) > limit:
        index -= 1


def _walk_to_time(dial: Dial, order: list[tuple[Setting, float, float]], limit: float) -> None:
    """Evaluate the first setting that should be fast enough, and on until one is."""
    # What is saved was measured in turns with the full steps, so it is those that it is subtracted from.
    full = dial.times([dial.full.name])[dial.full.name]
    for number, (setting, _, saved) in enumerate(order, start=1):
        if full - saved > limit and number < len(order):
            continue
        dial.evaluate(setting)
        if dial.quality(setting.name) is None:
            continue
        taken = dial.times(list(dict.fromkeys([dial.full.name, setting.name])))[setting.name]
        logger.info("%s takes %.1f ms, and %.1f are wanted", setting.name, taken, limit)
        if taken <= limit:
            return


def _loss(dial: Dial, setting: Setting) -> float:
    dial.evaluate(setting)
    quality, full = dial.quality(setting.name), dial.quality(dial.full.name)
    return float("inf") if quality is None or full is None else full - quality


def _best(dial: Dial, budget: Budget, times: dict[str, float]) -> Setting:
    losses = {name: _loss(dial, dial.measured[name].setting) for name in times}
    if budget.loss is not None:
        # The full steps lose nothing, so one always keeps to it.
        name = min([n for n in times if losses[n] <= budget.loss], key=lambda n: times[n])
    else:
        limit = budget.milliseconds or 0.0
        within = [n for n in times if times[n] <= limit]
        if not within:
            nearest = min(times, key=lambda n: times[n])
            raise BudgetError(
                f"no setting keeps to {limit:g} ms for one picture; the nearest is {nearest} with {times[nearest]:.1f} "
                f"ms and a loss of {losses[nearest]:.4f} {dial.metric}. Give a larger budget, or smaller --steps."
            )
        name = min(within, key=lambda n: (losses[n], times[n]))
    return dial.measured[name].setting
