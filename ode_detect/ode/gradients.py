"""How the gradient of a flow is paid for: a frozen value for each way, and the one function that solves with it.

- `Backprop` keeps every intermediate result: fastest, memory grows with the steps.
- `Checkpoint` keeps the state at each step and recomputes the rest: exact, one more evaluation each.
- `Adjoint` keeps the last state and solves backwards in time: inexact.

All three differentiate the same forward solve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import diffeq
from .names import check_name
from .record import Tally
from .solvers import FixedStep, Solver


@dataclass(frozen=True)
class Backprop:
    """Differentiate through the solver."""


@dataclass(frozen=True)
class Checkpoint:
    """Differentiate through the solver, recomputing in the backward pass.

    A fixed-step solve keeps the state at the start of each step and recomputes the step. An adaptive solve keeps the
    states at which the field was evaluated and recomputes the evaluation.
    """


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint of torchdiffeq: memory of one evaluation, but the gradient of another discretisation.

    Attributes:
        seminorm: leave the gradients of the parameters out of the error estimate; saves up to 62 % of the backward
            evaluations (Kidger et al. 2021, "Hey, that's not an ODE"). Adaptive methods only.
        rtol: relative tolerance of the backward solve; that of the solver if None.
        atol: absolute tolerance of the backward solve; that of the solver if None.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations".
    """

    seminorm: bool = True
    rtol: float | None = None
    atol: float | None = None


Gradient = Backprop | Checkpoint | Adjoint
GRADIENTS: dict[str, type[Gradient]] = {"backprop": Backprop, "checkpoint": Checkpoint, "adjoint": Adjoint}


def make_gradient(gradient: str | Gradient) -> Gradient:
    """A gradient by name, or as it is."""
    return gradient if isinstance(gradient, Gradient) else GRADIENTS[check_name(gradient, GRADIENTS, "gradient")]()


def solve(
    field: nn.Module, h: Tensor, *, solver: Solver, gradient: Gradient, duration: float, tally: Tally | None, block: str
) -> Tensor:
    """The state at time ``duration``.

    Args:
        field: the vector field.
        h: the state at time 0, (N, C, H, W).
        solver: how to integrate.
        gradient: how to differentiate.
        duration: the end of time.
        tally: counts evaluations and steps; None where nobody wants to know and the solver needs no count.
        block: name for error messages.
    """
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
        wrap=_recomputed if isinstance(gradient, Checkpoint) else None,
    )


def _fixed_steps(
    field: nn.Module, h: Tensor, solver: FixedStep, gradient: Gradient, duration: float, tally: Tally | None
) -> Tensor:
    evaluate: Callable[..., Tensor] = field if tally is None else tally.count(field)
    if h.dtype in (torch.bfloat16, torch.float16):
        # Many small steps would vanish in the rounding of a state of 8 or 11 bits.
        evaluate, h = partial(_in_precision, evaluate, h.dtype), h.float()
    step: Callable[..., Tensor] = partial(solver.step, evaluate)
    if isinstance(gradient, Checkpoint):
        step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
    for start, end in solver.grid(duration):
        h = step(start, end, h)
    if tally is not None:
        tally.steps(accepted=solver.steps)
    return h


def _in_precision(field: Callable[..., Tensor], dtype: torch.dtype, t: float, h: Tensor) -> Tensor:
    return field(t, h.to(dtype))


def _recomputed(field: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return partial(checkpoint, field, use_reentrant=False, preserve_rng_state=False)
