"""The dial: another solver for the flows of a trained model, and the BatchNorm statistics that go with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .block import ODEBlock, flows_of
from .diffeq import adaptive_methods, takes_steps
from .gradients import check_solvable
from .names import check_name
from .observation import in_evaluation
from .solvers import LEFT_OUT, TABLEAUS, Adaptive, FixedStep, LeftOut, Solver

T = TypeVar("T")


class StatisticsError(ValueError):
    """Statistics of BatchNorm that cannot be estimated."""


def find_flow(flows: Mapping[str, ODEBlock], name: str) -> str:
    """The path of the flow that a user means.

    Args:
        flows: what `flows_of` gave.
        name: the path ("backbone.bottom_up.res4.1.flow"), the block's own name ("res4.flow"), or whole words of one of
            them ("res4").

    Raises:
        ValueError: no flow is called so, or several are; the known names are listed.
    """
    exact = [path for path, block in flows.items() if name in (path, block.name)]
    fits = exact or [p for p, block in flows.items() if name and (_within(name, p) or _within(name, block.name))]
    if len(fits) > 1:
        raise ValueError(f"a name must mean one flow, and {name!r} means {', '.join(fits)}; write one of these.")
    return fits[0] if fits else check_name(name, flow_names(flows).values(), "flow")


def flow_names(flows: Mapping[str, ODEBlock]) -> dict[str, str]:
    """What to call each flow, by path: the block's own name, or the path where that name is not its alone."""
    names = [block.name for block in flows.values()]
    unnamed = "ODEBlock"  # what a block is called that was given no name
    return {
        path: block.name if names.count(block.name) == 1 and block.name != unnamed else path
        for path, block in flows.items()
    }


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
    solvers = set_solvers(
        model,
        steps=steps,
        method=method,
        flow=flow,
        rtol=rtol,
        atol=atol,
        max_evaluations=max_evaluations,
        dry=True,
    )
    with solved_by(model, solvers):
        yield


@contextmanager
def solved_by(model: nn.Module, solvers: Mapping[str, Solver]) -> Iterator[None]:
    """As `solver_override`, with the solver of each flow by its path, as `set_solvers` gives them."""
    flows = flows_of(model)
    before = {path: flows[path].solver for path in solvers}
    try:
        for path, solver in solvers.items():
            flows[path].solver = solver
        yield
    finally:
        for path, solver in before.items():
            flows[path].solver = solver


def set_solvers(
    model: nn.Module,
    *,
    steps: int | Mapping[str, int] | None = None,
    method: str | Mapping[str, str] | None = None,
    flow: str | Sequence[str] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_evaluations: int | None = None,
    dry: bool = False,
) -> dict[str, Solver]:
    """Change the solvers of flows for good; arguments and errors as for `solver_override`.

    Args:
        model: see `solver_override`.
        steps: see `solver_override`.
        method: see `solver_override`.
        flow: see `solver_override`.
        rtol: see `solver_override`.
        atol: see `solver_override`.
        max_evaluations: see `solver_override`.
        dry: only say what would be set.

    Returns:
        The new solver of each flow that was named, by path.
    """
    if steps is None and method is None:
        raise ValueError("a solver is changed by its steps or its method, and neither was given; give steps or method.")
    flows = flows_of(model)
    names = flow_names(flows)
    by_steps, by_method = _per_flow(flows, flow, steps), _per_flow(flows, flow, method)
    chosen = {
        path: changed_solver(
            block.solver,
            steps=by_steps.get(path),
            method=by_method.get(path),
            rtol=rtol,
            atol=atol,
            max_evaluations=max_evaluations,
            block=names[path],
        )
        for path, block in flows.items()
        if path in by_steps or path in by_method
    }
    for path, solver in chosen.items():
        check_solvable(flows[path].gradient, solver, names[path], gradient_needed=False)
    if not dry:
        for path, solver in chosen.items():
            flows[path].solver = solver
    return chosen


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
    """The solver with another number of steps or another method.

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


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The layers with running statistics, by path; a frozen BatchNorm has none that run."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Any]) -> int:
    """Estimate the running statistics of every BatchNorm again, under the solvers that the flows have now.

    Each becomes the plain average of the batches' means and (unbiased) variances, in which the first batch counts as
    much as the last. A layer that was never evaluated (of a piece that the steps leave out) keeps what it had. All
    other layers run as in evaluation.

    Args:
        model: any module; called with each batch.
        batches: what the model takes when it is evaluated, with the augmentation of the training.

    Returns:
        The number of batches.

    Raises:
        StatisticsError: no batch, or statistics that are not finite; the old ones are kept then.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN).
    """
    norms = list(batch_norms(model).values())
    before = [({k: v.clone() for k, v in n.state_dict().items()}, n.momentum) for n in norms]
    seen = dict.fromkeys(norms, 0)

    def average(norm: _BatchNorm, _: Any) -> None:
        # The cumulative average. A momentum of None says the same, but not to Detectron2's synchronised BatchNorm.
        seen[norm] += 1
        norm.momentum = 1 / seen[norm]

    count, done = 0, False
    with in_evaluation(model):
        hooks = [norm.register_forward_pre_hook(average) for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for batch in batches:
                model(batch)
                count += 1
            _check_statistics(norms, count)
            done = True
        finally:
            for hook in hooks:
                hook.remove()
            for norm, (state, momentum) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if not done or not seen[norm]:
                    norm.load_state_dict(state)
    return count


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let no BatchNorm update its running statistics; in training mode it normalises by the batch as ever."""
    norms = list(batch_norms(model).values())
    before = [(norm.track_running_stats, norm.momentum) for norm in norms]
    for norm in norms:
        norm.track_running_stats = not norm.training
        # For layers that look at the momentum only, as Detectron2's synchronised one.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (track, momentum) in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum = track, momentum


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


def _within(name: str, path: str) -> bool:
    return f".{name}." in f".{path}."


def _check_statistics(norms: list[_BatchNorm], count: int) -> None:
    if count == 0:
        raise StatisticsError("statistics are estimated from batches, and there was none; give at least one.")
    for norm in norms:
        for statistics in (norm.running_mean, norm.running_var):
            if statistics is not None and not bool(statistics.isfinite().all()):
                raise StatisticsError(
                    "the statistics of a batch are not finite: the features overflow under these solvers, or a batch "
                    "holds one number per channel. Take more steps, or larger batches."
                )
