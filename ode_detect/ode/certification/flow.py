"""A certificate that a flow solves its differential equation, and is not tied to the steps it was trained with.

This is the question of Ott et al. 2021, "ResNet after all? Neural ODEs and their numerical solution": a network is a
flow if another solver with an equal or smaller numerical error gives the same result. Queiruga et al. 2020,
"Continuous-in-Depth Neural Networks", ask also for convergence at the order of the method. Both are measured here.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ode_detect.ode.adaptive import Adaptive, Solver
from ode_detect.ode.block import ODEBlock
from ode_detect.ode.difference import difference, ratio
from ode_detect.ode.errors import SolveError
from ode_detect.ode.gradients import scheme_for
from ode_detect.ode.pieces import segments_of
from ode_detect.ode.solvers import TABLEAUS, FixedStep
from ode_detect.ode.tables import table

TOLERANCE = 0.25
"""Largest change of the displacement h(T) - h(0) under another solver, as a share of it, that a flow may show.

The displacement is the measure, and not the output, most of which is often h(0), which no solver changes. For
dh/dt = L h one Euler step of size s misses the displacement by a share of about L s / 2. A step of Euler is invertible
while L s < 1 (Behrmann et al. 2019, "Invertible Residual Networks"); beyond, trajectories may cross, as those of a
differential equation never do, and that is what Ott et al. find in networks that are no flows. The tolerance stands
where L s is half of that. It fits the one network on which it was tried: in a run of the quickstart detector the flows,
of 2 Euler steps, were 9, 19 and 5 % away from their limits, and AP50 was 38 % at 2, 40 % at 4 and 38 % at 8 steps.
"""
ORDER_SLACK = 0.5
"""How far the observed order may stay below the expected one: half way to the order below."""
KINKED_ORDER = 2
"""Highest order that is asked for. The second derivative of the solution jumps where a relu in the field crosses zero,
and over a step with such a jump no method is of a higher order (Hairer, Norsett and Wanner 1993, section II.6)."""
FINER = 8
"""The limit is taken from steps this many times finer, by rk4; for a projected scheme from 4 times as many of its own.
"""
# Below this share of the displacement an error in float64 is rounding and shows no order.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Change:
    """The change of a result under another solver.

    Norms are Euclidean, over all elements; a solve that fails changes by infinity.

    Attributes:
        what: what was done to the solver.
        solver: the other solver.
        of_displacement: change of the flow's output, as a share of the displacement h(T) - h(0).
        of_output: the same change, as a share of the output h(T).
        of_model: change of the model's output when this flow alone is solved so, as a share of it; None: not measured.
        limit: whether it is that to the limit, which takes many steps.
    """

    what: str
    solver: Solver
    of_displacement: float
    of_output: float
    of_model: float | None = None
    limit: bool = False


@dataclass(frozen=True)
class FlowReport:
    """Whether a block is a flow, with the numbers that say so; ``str()`` is a table.

    Attributes:
        solver: the block's own.
        displacement: norm of h(T) - h(0), as a share of that of h(T).
        changes: what other solvers change; the last is the limit, which fixed steps are compared with.
        errors: for fixed steps, (steps, distance from the limit as a share of the displacement) at 1, 2 and 4 times the
            steps.
        order: order observed between the block's own steps and twice as many; None where there is none to see.
        expected: order of the scheme: the method's, 1 if it is projected or if weights jump inside a step; None for
            adaptive methods.
        tolerance: largest change of the displacement that a flow may show.
        verdict: "flow", "Euler-only" (the network is tied to its steps, whatever their method), or "identity" (the
            field is zero here, so there is nothing to judge).
        reasons: what the verdict rests on.
    """

    solver: Solver
    displacement: float
    changes: tuple[Change, ...]
    errors: tuple[tuple[int, float], ...]
    order: float | None
    expected: int | None
    tolerance: float
    verdict: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = ("another solver", "change of displacement", "of output", "of the model's output")
        rows = [
            (
                c.what,
                _percent(c.of_displacement),
                _percent(c.of_output),
                "" if c.of_model is None else _percent(c.of_model),
            )
            for c in self.changes
        ]
        measured = any(row[-1] for row in rows)
        lines = [f"verdict: {self.verdict}", *(f"  {reason}" for reason in self.reasons)]
        lines += [f"displacement: {_percent(self.displacement)} of the output"]
        lines += [table(head, rows) if measured else table(head[:-1], [row[:-1] for row in rows])]
        if self.errors:
            falls = ", ".join(f"{_percent(error)} at {steps}" for steps, error in self.errors)
            lines += [f"distance from the limit by steps: {falls}"]
        return "\n".join(lines)


def certify_flow(block: ODEBlock, state: Tensor, *, tolerance: float = TOLERANCE) -> FlowReport:
    """Return whether a block is a flow: halve and quarter its step, swap its method, observe its order.

    All is solved in float64 on a copy of the block in evaluation mode. The method is swapped for those of an equal or
    higher order at equal steps (rk4 for Kutta's 3/8 rule, which torchdiffeq brings): a coarser method would be blamed
    for its own error. An adaptive method is given 10 and 100 times tighter tolerances, and another method.

    A projected scheme is compared with the limit of the projected scheme: projection after ever shorter steps. It is
    of order 1 whatever the method. The order is judged at the block's own steps: a flow whose steps are too coarse for
    the method to converge is not one. Orders above 2 are not asked for, since a relu in the field hides them. A block
    whose gradient is `Reversible` is judged as it is solved, by the coupled scheme.

    Args:
        block: the flow; not changed.
        state: what enters it, (N, C, H, W).
        tolerance: largest change of the displacement, as a share of it, that a flow may show.

    Raises:
        ValueError: a tolerance that is not above 0.
        SolveError: the block's own solve failed.
    """
    if not tolerance > 0:
        raise ValueError(f"the tolerance must be above 0, not {tolerance}; {TOLERANCE} is usual.")
    solved = _Solved(block, state)
    changes = tuple(solved.change(what, solver) for what, solver in alternatives(block))
    errors: tuple[tuple[int, float], ...] = ()
    order = expected = None
    if isinstance(block.solver, FixedStep):
        changes = (*changes[:-1], dataclasses.replace(changes[-1], limit=True))
        errors = solved.errors(block.solver, changes[-1].solver)
        order, expected = _observed_order(errors[0][1], errors[1][1]), _expected_order(block)
    reasons = [
        f"{c.what} changes the displacement by {_percent(c.of_displacement)}, more than {_percent(tolerance)}"
        for c in changes
        if not c.of_displacement <= tolerance
    ]
    needed = min(expected or 0, KINKED_ORDER) - ORDER_SLACK
    if order is not None and order < needed:
        reasons.append(f"the error falls with order {order:.2f} when the step is halved, less than {needed:g}")
    verdict = "Euler-only" if reasons else "flow"
    if all(share <= _ROUNDING for share in (solved.displacement, *(c.of_output for c in changes))):
        verdict, reasons = "identity", ["the field is zero here: any solver gives back the input"]
    elif not reasons:
        reasons = _why_a_flow(changes, order, expected, tolerance)
    return FlowReport(
        solver=block.solver,
        displacement=solved.displacement,
        changes=changes,
        errors=errors,
        order=order,
        expected=expected,
        tolerance=tolerance,
        verdict=verdict,
        reasons=tuple(reasons),
    )


def alternatives(block: ODEBlock) -> list[tuple[str, Solver]]:
    """The solvers that a flow is compared with, as (what was done, solver); for fixed steps the limit comes last."""
    solver = block.solver
    if isinstance(solver, Adaptive):
        return [
            *((f"tolerances / {k}", _tighter(solver, k)) for k in (10, 100)),
            (other := "bosh3" if solver.method == "dopri5" else "dopri5", dataclasses.replace(solver, method=other)),
        ]
    parts = len(segments_of(block.field, block.duration))
    chosen: list[tuple[str, Solver]] = [
        ("half the step", dataclasses.replace(solver, steps=2 * solver.steps)),
        ("a quarter of the step", dataclasses.replace(solver, steps=4 * solver.steps)),
    ]
    for method, tableau in TABLEAUS.items():
        if method != solver.method and tableau.order >= solver.tableau.order:
            chosen.append((f"{method} at equal steps", dataclasses.replace(solver, method=method)))
    if solver.method == "rk4" and solver.projection == "none":
        # The steps of each piece are rounded up.
        most = 4 * (solver.steps + parts - 1)
        chosen.append(("3/8 rule at equal steps", Adaptive("rk4", steps=solver.steps, max_evaluations=most)))
    fine = FINER * math.lcm(solver.steps, parts)
    if solver.projection == "none":
        return [*chosen, (f"limit (rk4, {fine} steps)", FixedStep("rk4", steps=fine))]
    return [*chosen, (f"limit ({4 * fine} steps)", dataclasses.replace(solver, steps=4 * fine))]


def in_float64(block: ODEBlock, state: Tensor) -> tuple[ODEBlock, Tensor]:
    """A copy of a block in float64 and evaluation mode, and its state; on the CPU where the device has no float64."""
    device = "cpu" if state.device.type == "mps" else state.device
    return copy.deepcopy(block).to(device, torch.float64).eval(), state.detach().to(device, torch.float64)


class _Solved:
    """A block's own solution in float64, and those of other solvers, each solved once; None for one that fails."""

    def __init__(self, block: ODEBlock, state: Tensor) -> None:
        self._block, self._state = in_float64(block, state)
        self._own_gradient = block.gradient
        self._own = self._solve(block.solver)
        self._others: dict[Solver, Tensor | None] = {block.solver: self._own}
        moved = difference([self._state], [self._own])
        self._norms = (moved.norm, float(self._own.norm()))
        self.displacement = ratio(*self._norms)

    def change(self, what: str, solver: Solver) -> Change:
        distance = self._distance(self._own, solver)
        return Change(what, solver, ratio(distance, self._norms[0]), ratio(distance, self._norms[1]))

    def errors(self, solver: FixedStep, limit: Solver) -> tuple[tuple[int, float], ...]:
        """Distance from the limit, by steps."""
        finer = [dataclasses.replace(solver, steps=k * solver.steps) for k in (1, 2, 4)]
        reference = self._other(limit)
        return tuple((s.steps, ratio(self._distance(reference, s), self._norms[0])) for s in finer)

    def _distance(self, reference: Tensor | None, solver: Solver) -> float:
        other = self._other(solver)
        return math.inf if reference is None or other is None else difference([reference], [other]).norm

    def _other(self, solver: Solver) -> Tensor | None:
        if solver not in self._others:
            try:
                self._others[solver] = self._solve(solver)
            except SolveError:
                self._others[solver] = None
        return self._others[solver]

    @torch.no_grad()
    def _solve(self, solver: Solver) -> Tensor:
        self._block.solver, self._block.gradient = solver, scheme_for(self._own_gradient, solver)
        with torch.autocast(self._state.device.type, enabled=False):
            return self._block(self._state)


def _tighter(solver: Adaptive, factor: int) -> Adaptive:
    """Tolerances divided by a factor; twice the steps for a factor of 10, for those methods that do not adapt."""
    return dataclasses.replace(
        solver,
        rtol=solver.rtol / factor,
        atol=solver.atol / factor,
        steps=solver.steps * 2 ** round(math.log10(factor)),
        max_evaluations=solver.max_evaluations * factor,
    )


def _observed_order(error: float, halved: float) -> float | None:
    if not (math.isfinite(error) and math.isfinite(halved)) or halved < _ROUNDING:
        return None
    return math.log2(error / halved) if error > 0 else -math.inf


def _expected_order(block: ODEBlock) -> int:
    solver = block.solver
    assert isinstance(solver, FixedStep)
    jumps = [start for _, start, _ in segments_of(block.field, block.duration)[1:]]
    places = [solver.steps * jump / block.duration for jump in jumps]
    inside = any(abs(place - round(place)) > 1e-9 for place in places)
    return 1 if inside or solver.projection != "none" else solver.tableau.order


def _why_a_flow(changes: tuple[Change, ...], order: float | None, expected: int | None, tolerance: float) -> list[str]:
    largest = max(changes, key=lambda c: c.of_displacement)
    reasons = [
        f"no other solver changes the displacement by more than {_percent(largest.of_displacement)} ({largest.what}); "
        f"{_percent(tolerance)} is allowed"
    ]
    if order is not None:
        reasons.append(f"the error falls with order {order:.2f} when the step is halved; {expected} is expected")
    elif expected is not None:
        reasons.append("the error is rounding at these steps already: no order to see")
    return reasons


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "infinite"
