"""Solve dh/dt = f(t, h) with a given solver and a given way to the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ode_detect.ode.backward.recompute import Grid, recomputing, solve_from_every, solve_from_few, summing_in_float32
from ode_detect.ode.backward.reversible import coupled, in_precision_of_pair, solve_reversibly

from . import diffeq
from .adaptive import Solver
from .gradients import Adjoint, Backprop, Checkpoint, Gradient, Reversible, check_solvable, needs_gradient
from .solvers import Evaluate, FixedStep, slopes_of_step
from .tally import Tally


def solve(
    field: nn.Module, h: Tensor, *, solver: Solver, gradient: Gradient, duration: float, tally: Tally | None, block: str
) -> Tensor:
    """Return the state at time ``duration``.

    Args:
        field: the vector field.
        h: the state at time 0, (N, C, H, W).
        solver: how to integrate.
        gradient: how to differentiate; not `Auto`, but what it chose.
        duration: the end of time.
        tally: counts evaluations and steps; None where nothing is recorded and the solver needs no count.
        block: name for error messages.

    Raises:
        ValueError: the solver cannot be differentiated in this way.
    """
    wanted = needs_gradient(field, h)
    check_solvable(gradient, solver, block, gradient_needed=wanted)
    with summing_in_float32(h) if wanted else nullcontext():
        if isinstance(solver, FixedStep) and not isinstance(gradient, Adjoint):
            return _fixed_steps(field, h, solver, gradient, duration, tally)
        return diffeq.solve(
            field,
            h,
            solver=solver,
            duration=duration,
            tally=tally or Tally([]),
            block=block,
            adjoint=gradient if isinstance(gradient, Adjoint) else None,
            wrap=recomputing(field) if isinstance(gradient, Checkpoint) else None,
        )


def states(
    evaluate: Evaluate, h: Tensor, *, solver: FixedStep, gradient: Gradient, duration: float
) -> Iterator[Tensor]:
    """Yield the state after each step, in a plain loop: autograd keeps all intermediate results.

    The state of a half-precision input is in float32, and that of a reversible solve in float64; the field is evaluated
    in the precision of the input.

    Args:
        evaluate: the field, (t, h) -> dh/dt.
        h: the state at time 0, (N, C, H, W).
        solver: how to integrate.
        gradient: `Reversible` has a scheme of its own; the others have that of the solver.
        duration: the end of time.
    """
    evaluate, state = in_precision_of_state(evaluate, h, gradient)
    if isinstance(gradient, Reversible):
        slopes = partial(slopes_of_step, evaluate, solver.tableau)
        for y, _ in coupled(slopes, solver.tableau, list(solver.grid(duration)), gradient.coupling, state):
            yield y
        return
    for start, end in solver.grid(duration):
        state = solver.step(evaluate, start, end, state)
        yield state


def _fixed_steps(
    field: nn.Module, h: Tensor, solver: FixedStep, gradient: Gradient, duration: float, tally: Tally | None
) -> Tensor:
    evaluate: Evaluate = field if tally is None else tally.count(field)
    if needs_gradient(field, h) and not _keeps_everything(gradient):
        out = _sparing_memory(field, evaluate, h, solver, gradient, list(solver.grid(duration)))
    else:
        out = h
        for state in states(evaluate, h, solver=solver, gradient=gradient, duration=duration):
            out = state
    if tally is not None:
        tally.steps(accepted=solver.steps)
    return out


def _sparing_memory(
    field: nn.Module, evaluate: Evaluate, h: Tensor, solver: FixedStep, gradient: Gradient, grid: Grid
) -> Tensor:
    evaluate, state = in_precision_of_state(evaluate, h, gradient)
    if isinstance(gradient, Reversible):
        slopes = partial(slopes_of_step, evaluate, solver.tableau)
        return solve_reversibly(field, slopes, solver.tableau, grid, gradient.coupling, state)
    assert isinstance(gradient, Checkpoint), f"{gradient} is no way to solve"
    step = partial(solver.step, evaluate)
    if gradient.states is not None:
        return solve_from_few(field, step, grid, state, gradient.states)
    return solve_from_every(field, step, grid, state, gradient.every)


def _keeps_everything(gradient: Gradient) -> bool:
    return isinstance(gradient, Backprop) or (isinstance(gradient, Reversible) and gradient.keep)


def in_precision_of_state(evaluate: Evaluate, h: Tensor, gradient: Gradient) -> tuple[Evaluate, Tensor]:
    """Return the field and the state in the precisions in which a fixed-step solve uses them."""
    if isinstance(gradient, Reversible):
        return partial(_in_precision, evaluate, h.dtype), in_precision_of_pair(h)
    if h.dtype in (torch.bfloat16, torch.float16):
        # Many small steps would vanish in the rounding of a state of 8 or 11 bits.
        return partial(_in_precision, evaluate, h.dtype), h.float()
    return evaluate, h


def _in_precision(field: Evaluate, dtype: torch.dtype, t: float, h: Tensor) -> Tensor:
    return field(t, h.to(dtype))
