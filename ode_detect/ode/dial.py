"""The dial: another solver for the flows of a trained model, for good or while a context lasts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from .adaptive import Adaptive, Solver, adaptive_methods, takes_steps
from .block import ODEBlock
from .flows import find_flow, flow_names, flows_of
from .gradients import check_solvable
from .names import check_name
from .solvers import PROJECTIONS, TABLEAUS, FixedStep, Tableau, check_count

T = TypeVar("T")

# The method of `LeftOut`, which is no way to solve a flow.
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class LeftOut(FixedStep):
    """Some blocks of a residual network, the others left out: the baseline for fewer steps through all of them.

    Steps of size 1, as those of the network, at evenly spread whole times; in between the state stays as it is.

    Attributes:
        method: "left_out".
        steps: blocks that are kept, at most as many as the flow lasts.
        projection: as for `FixedStep`.

    Raises:
        ValueError: as for `FixedStep`; when it is solved, a flow that does not last a whole time of ``steps`` or more.
    """

    method: str = LEFT_OUT

    def __post_init__(self) -> None:
        check_name(self.method, (LEFT_OUT,), "method of LeftOut")
        check_name(self.projection, PROJECTIONS, "projection")
        check_count("steps", self.steps, "at least one block is kept")

    @property
    def tableau(self) -> Tableau:
        """Euler's coefficients."""
        return TABLEAUS["euler"]

    def grid(self, duration: float) -> Iterator[tuple[float, float]]:
        """Start and end of each block that is kept."""
        blocks = round(duration)
        if blocks != duration or self.steps > blocks:
            raise ValueError(
                f"of the blocks of a flow at most all are kept, and {self.steps} were asked for of a flow that lasts "
                f"{duration:g}; give fewer steps, and one piece for each block."
            )
        for index in range(self.steps):
            start = (2 * index + 1) * blocks // (2 * self.steps)
            yield float(start), float(start + 1)


@dataclass(frozen=True)
class SolverChange:
    """A change of the solvers of a model's flows. Projection and tolerances of an adaptive solver stay what they are.

    Attributes:
        steps: steps over the whole time, >= 1; or a mapping from flow to steps, which leaves the other flows alone.
        method: "euler", "midpoint", "heun", "rk4", a method of torchdiffeq, or "left_out", which runs some blocks of a
            converted network and leaves out the others; or a mapping from flow to method.
        flow: change only these flows, by path, by block name or by whole words of one ("res4"); None changes all. It
            goes with one number and one method: a mapping names its flows itself.
        rtol: relative tolerance of a flow that leaves fixed steps for a method of torchdiffeq; None is `Adaptive`'s.
        atol: its absolute tolerance.
        max_evaluations: the most evaluations in a solve of it.

    Raises:
        ValueError: neither steps nor a method.
    """

    steps: int | Mapping[str, int] | None = None
    method: str | Mapping[str, str] | None = None
    flow: str | Sequence[str] | None = None
    rtol: float | None = None
    atol: float | None = None
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.method is None:
            raise ValueError(
                "a solver is changed by its steps or its method, and neither was given; give steps or method."
            )


def chosen_solvers(model: nn.Module, change: SolverChange) -> dict[str, Solver]:
    """Return the new solver of each flow that a change names, by path. The model stays as it is.

    Raises:
        ValueError: a model without flows, an unknown flow or method, fewer than 1 step, steps for a method that
            chooses its own, an adaptive method for a flow that is projected or solved reversibly, or a flow that is
            named twice.
    """
    flows = flows_of(model)
    names = flow_names(flows)
    steps, method = _per_flow(flows, change.flow, change.steps), _per_flow(flows, change.flow, change.method)
    chosen = {
        path: changed_solver(
            block.solver,
            steps=steps.get(path),
            method=method.get(path),
            rtol=change.rtol,
            atol=change.atol,
            max_evaluations=change.max_evaluations,
            block=names[path],
        )
        for path, block in flows.items()
        if path in steps or path in method
    }
    for path, solver in chosen.items():
        check_solvable(flows[path].gradient, solver, names[path], gradient_needed=False)
    return chosen


def set_solvers(model: nn.Module, change: SolverChange) -> dict[str, Solver]:
    """Change the solvers of flows for good; returns and raises what `chosen_solvers` does."""
    chosen = chosen_solvers(model, change)
    flows = flows_of(model)
    for path, solver in chosen.items():
        flows[path].solver = solver
    return chosen


@contextmanager
def solver_override(
    model: nn.Module,
    *,
    steps: int | Mapping[str, int] | None = None,
    method: str | Mapping[str, str] | None = None,
    flow: str | Sequence[str] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_evaluations: int | None = None,
) -> Iterator[None]:
    """Solve the flows of a model in another way until the context ends; weights are not touched.

    Projection and tolerances stay what they are. Contexts may be nested: the inner one wins, and each restores what it
    found, after an error too.

    The solver belongs to the block, so all threads that run the model see the change: while one is in the context, no
    other must run the model or change its solvers. Give each thread a ``copy.deepcopy`` of it.

    Examples:
        >>> with solver_override(detector, steps=2, method="midpoint"):
        ...     detector(pictures)
        >>> with solver_override(detector, steps={"res3": 1, "res4": 11}):
        ...     detector(pictures)

    Args:
        model: a module with flows, or a flow.
        steps: steps over the whole time, >= 1; or a mapping from flow to steps, which leaves the other flows alone.
        method: "euler", "midpoint", "heun", "rk4", a method of torchdiffeq, or "left_out", which runs some blocks of a
            converted network and leaves out the others; or a mapping from flow to method.
        flow: change only these flows, by path, by block name or by whole words of one ("res4"); None changes all. It
            goes with one number and one method: a mapping names its flows itself.
        rtol: relative tolerance of a flow that leaves fixed steps for a method of torchdiffeq; None is `Adaptive`'s.
        atol: its absolute tolerance.
        max_evaluations: the most evaluations in a solve of it.

    Raises:
        ValueError: a model without flows, an unknown flow or method, fewer than 1 step, steps for a method that
            chooses its own, an adaptive method for a flow that is projected or solved reversibly, neither steps nor a
            method, or a flow that is named twice.
    """
    change = SolverChange(steps, method, flow, rtol, atol, max_evaluations)
    with solved_by(model, chosen_solvers(model, change)):
        yield


@contextmanager
def solved_by(model: nn.Module, solvers: Mapping[str, Solver]) -> Iterator[None]:
    """Solve flows by these solvers, by path as `chosen_solvers` returns them, until the context ends."""
    flows = flows_of(model)
    before = {path: flows[path].solver for path in solvers}
    try:
        for path, solver in solvers.items():
            flows[path].solver = solver
        yield
    finally:
        for path, solver in before.items():
            flows[path].solver = solver


def check_method(name: str) -> bool:
    """Whether a method takes steps of ours: `FixedStep`'s, or "left_out", which leaves blocks out.

    Raises:
        ValueError: it is neither, nor a method of torchdiffeq; the known names are listed.
    """
    check_name(name, [*TABLEAUS, *adaptive_methods(), LEFT_OUT], "method")
    return name in (*TABLEAUS, LEFT_OUT)


def changed_solver(
    solver: Solver,
    *,
    steps: int | None = None,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_evaluations: int | None = None,
    block: str = "the flow",
) -> Solver:
    """Return the solver with another number of steps or another method.

    Args:
        solver: the one to begin with; it gives projection, tolerances, and what is None here.
        steps: number of steps, >= 1.
        method: a method of ours or of torchdiffeq, or "left_out".
        rtol: where a `FixedStep`, which has no tolerances, becomes an `Adaptive`: its rtol; None is its default.
        atol: the same of its atol.
        max_evaluations: the same of its max_evaluations.
        block: name for error messages.

    Raises:
        ValueError: see `solver_override`.
    """
    name = solver.method if method is None else method
    fixed = isinstance(solver, FixedStep) if method is None else check_method(method)
    if fixed:
        count = steps if steps is not None else solver.steps if takes_steps(solver) else None
        if count is None:
            raise ValueError(
                f"{name!r} takes steps of a fixed size, and {block!r}, solved by {solver.method!r}, has no number of "
                "them; give steps."
            )
        kind = LeftOut if name == LEFT_OUT else FixedStep
        return kind(name, steps=count, projection=getattr(solver, "projection", "none"))
    if isinstance(solver, FixedStep) and solver.projection != "none":
        raise ValueError(
            f"{name!r} integrates a smooth flow, and {block!r} is projected by {solver.projection!r} after each step; "
            f"use one of {', '.join(TABLEAUS)}, or a network trained without projection."
        )
    if isinstance(solver, Adaptive):
        tolerant = dataclasses.replace(solver, method=name)
    else:
        usual = Adaptive(name)
        tolerant = Adaptive(
            name,
            rtol=usual.rtol if rtol is None else rtol,
            atol=usual.atol if atol is None else atol,
            max_evaluations=usual.max_evaluations if max_evaluations is None else max_evaluations,
        )
        if steps is None and takes_steps(tolerant):
            steps = solver.steps
    if steps is None:
        return tolerant
    if not takes_steps(tolerant):
        raise ValueError(
            f"{name!r} chooses its own steps, so {block!r} cannot take {steps}; leave steps out, or use one of "
            f"{', '.join(TABLEAUS)}."
        )
    return dataclasses.replace(tolerant, steps=steps)


def _per_flow(
    flows: Mapping[str, ODEBlock], flow: str | Sequence[str] | None, value: T | Mapping[str, T] | None
) -> dict[str, T]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        named = [flow] if isinstance(flow, str) else list(flows) if flow is None else flow
        return {find_flow(flows, name): value for name in named}
    if flow is not None:
        raise ValueError(
            f"a mapping names its flows itself, and flow={flow!r} was given beside {dict(value)!r}; leave flow out, or "
            "give one value for all that it names."
        )
    found: dict[str, tuple[str, T]] = {}
    for name, each in value.items():
        path = find_flow(flows, name)
        if path in found:
            raise ValueError(
                f"a flow has one value, and {found[path][0]!r} and {name!r} are both {path}; leave one of them out."
            )
        found[path] = name, each
    return {path: each for path, (_, each) in found.items()}
