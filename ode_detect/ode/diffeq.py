"""Solve by torchdiffeq: adaptive methods and the continuous adjoint, with failures raised as `SolveError`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint
from torchdiffeq._impl.misc import Perturb
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from ode_detect.ode.backward.recompute import Unchanged, check_differentiated_once

from .adaptive import OURS, Adaptive, Solver, takes_steps
from .errors import NonFiniteStateError, SolveError, StepUnderflowError, TooManyEvaluationsError
from .gradients import Adjoint
from .pieces import segments_of
from .solvers import TABLEAUS, Tableau, advance, grid_point, runge_kutta_step
from .tally import Tally

# torchdiffeq would go to 12, where explicit Adams methods are stable for hardly any step.
_ADAMS_ORDER = 5


def solve(
    field: nn.Module,
    h: Tensor,
    *,
    solver: Solver,
    duration: float,
    tally: Tally,
    block: str,
    adjoint: Adjoint | None = None,
    wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None,
) -> Tensor:
    """Return the state at time ``duration``, by torchdiffeq; solved in float32 or float64, in the dtype of ``h``.

    The field is evaluated in h's dtype. A complex state is solved as its real and imaginary parts. A field in pieces is
    solved piece by piece: no error estimate sees a jump. A fixed number of steps is spread over the pieces, at least
    one in each.

    Args:
        field: the vector field.
        h: the state at time 0, (N, C, H, W).
        solver: which method, how finely.
        duration: the end of time.
        tally: counts evaluations and steps.
        block: name for error messages.
        adjoint: how to run the continuous adjoint; None differentiates through the solver.
        wrap: makes another function of a field before it is evaluated (one that recomputes, say).

    Raises:
        NonFiniteStateError, StepUnderflowError, TooManyEvaluationsError: the solve failed.
        ValueError: the solver cannot be differentiated as asked.
    """
    check_differentiable(field, h, solver, block, adjoint)
    if h.numel() == 0:
        # An error norm over no numbers is NaN; any solve of nothing is nothing.
        return runge_kutta_step(tally.count(field), TABLEAUS["euler"], 0.0, duration, h)
    state = _real(h)
    state = state if state.dtype in (torch.float32, torch.float64) else state.float()
    parts = segments_of(field, duration) if isinstance(solver, Adaptive) else [(field, 0.0, duration)]
    limit = solver.max_evaluations if isinstance(solver, Adaptive) else None
    watched = _Watched(h, tally, limit, block)
    for part, start, end in parts:
        counted = tally.count(part)
        watched.field = wrap(counted) if wrap else counted
        times = torch.tensor([start, end], dtype=_time_dtype(state), device=state.device)
        solver_of_part = _for_part(solver, (end - start) / duration) if len(parts) > 1 else solver
        states = _integrate(watched.bound(solver_of_part), state, times, solver_of_part, adjoint, part)
        watched.reached(states, times)
        state = states[-1]
    if adjoint is not None and state.requires_grad:
        unchanged = Unchanged(field)
        state.register_hook(lambda grad: watched.restart(unchanged))
    return _in_dtype(state, h.dtype)


def plain_odeint(field: nn.Module, h: Tensor, *, method: str, steps: int, duration: float) -> Tensor:
    """Return the state at time ``duration`` by torchdiffeq alone, called as its user would: a baseline for our loop.

    Args:
        field: the vector field.
        h: the state at time 0, any shape.
        method: a fixed-grid method of torchdiffeq; its "rk4" is the 3/8 rule, not the classical method.
        steps: number of equal steps.
        duration: the end of time.
    """
    times = torch.tensor([0.0, duration], dtype=h.dtype, device=h.device)
    return odeint(field, h, times, method=method, options={"step_size": duration / steps})[-1]


def _real(h: Tensor) -> Tensor:
    """Real and imaginary parts of a complex tensor, as the last axis; a real tensor as it is."""
    # Not as a view: torchdiffeq cuts gradients out of a long vector, at places where no complex number can start.
    return torch.stack([h.real, h.imag], dim=-1) if h.is_complex() else h


def _in_dtype(state: Tensor, dtype: torch.dtype) -> Tensor:
    """A state of torchdiffeq in the dtype of the flow; undoes `_real`."""
    return torch.complex(*state.unbind(-1)).to(dtype) if dtype.is_complex else state.to(dtype)


def _for_part(solver: Solver, share: float) -> Solver:
    """The solver with its steps for a share of the time, rounded up."""
    # A whole number of steps may come out a few bits above itself.
    return dataclasses.replace(solver, steps=max(1, math.ceil(solver.steps * share - 1e-9)))


def _integrate(
    evaluate: Any, state: Tensor, times: Tensor, solver: Solver, adjoint: Adjoint | None, field: nn.Module
) -> Tensor:
    arguments = _arguments(solver, state, times)
    if adjoint is None:
        return odeint(evaluate, state, times, **arguments)
    arguments |= {"adjoint_rtol": adjoint.rtol, "adjoint_atol": adjoint.atol}
    if adjoint.seminorm and _adapts(solver):
        arguments["adjoint_options"] = {**arguments["options"], "norm": "seminorm"}
    return odeint_adjoint(evaluate, state, times, **arguments, adjoint_params=tuple(field.parameters()))


def _arguments(solver: Solver, state: Tensor, times: Tensor) -> dict[str, Any]:
    if not isinstance(solver, Adaptive):
        return {"method": _register(solver.method), "options": _grid(solver.steps)}
    options: dict[str, Any] = {}
    if _adapts(solver):
        # Step onto the end, forwards and backwards. Left alone, torchdiffeq steps past it and interpolates, with an
        # error that no tolerance bounds (dopri8: 1,000 times the tolerance) and evaluations outside the field's time.
        options = {"dtype": _time_dtype(state), "step_t": times}
    elif takes_steps(solver):
        options = _grid(solver.steps)
        if "adams" in solver.method:
            options["max_order"] = _ADAMS_ORDER
    return {"method": solver.method, "rtol": solver.rtol, "atol": solver.atol, "options": options}


def _grid(steps: int) -> dict[str, Any]:
    """Equal steps, with jumps of the weights at the end of a step seen from within the step."""

    def grid(func: Any, y0: Tensor, times: Tensor) -> Tensor:
        # From 0, and backwards from minus the duration to 0, these are the points of FixedStep.grid, bit for bit.
        start, end = float(times[0]), float(times[-1])
        points = [grid_point(start, steps - i, steps) + grid_point(end, i, steps) for i in range(steps + 1)]
        return torch.tensor(points, dtype=times.dtype, device=times.device)

    return {"grid_constructor": grid, "perturb": True}


def _adapts(solver: Solver) -> bool:
    return isinstance(solver, Adaptive) and "callback_accept_step" in SOLVERS[solver.method].valid_callbacks()


def _time_dtype(state: Tensor) -> torch.dtype:
    return torch.float32 if state.device.type == "mps" else torch.float64


def check_differentiable(field: nn.Module, h: Tensor, solver: Solver, block: str, adjoint: Adjoint | None) -> None:
    """Raise a `ValueError` where `solve` cannot be differentiated as asked."""
    wanted = torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in field.parameters()))
    if wanted and adjoint is None and solver.method == "scipy_solver":
        raise ValueError(
            f"'scipy_solver' cannot be differentiated through, and {block!r} needs a gradient; "
            "use gradient='adjoint', another method, or torch.no_grad()."
        )
    if adjoint is not None and any(p.is_complex() for p in field.parameters()):
        raise ValueError(
            f"the adjoint integrates the gradients of weights beside the state, in real numbers, and {block!r} has "
            "complex weights; use gradient='checkpoint', or weights that are pairs of real ones."
        )
    if adjoint is not None and not isinstance(solver, Adaptive) and solver.projection != "none":
        raise ValueError(
            f"the adjoint integrates a smooth flow, and {block!r} is projected by {solver.projection!r} after each "
            "step; use gradient='checkpoint', which is exact."
        )


class _Watched:
    """A field as torchdiffeq calls it: counted, limited, with the autocast of the forward pass in the backward too."""

    def __init__(self, h: Tensor, tally: Tally, limit: int | None, block: str) -> None:
        self.field: Callable[..., Tensor]
        self._tally, self._limit, self._block = tally, limit, block
        self._spent = {"forward": 0, "backward": 0}
        self._slope = h.detach()
        self._dtype = h.dtype
        device = h.device.type
        self._autocast = functools.partial(
            torch.amp.autocast,
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )

    def bound(self, solver: Solver) -> Callable[..., Tensor]:
        """The function for torchdiffeq, with the callbacks that its method knows."""
        field = self.field

        def evaluate(t: Tensor, h: Tensor) -> Tensor:
            return self._evaluate(field, t, h)

        callbacks: dict[str, Callable[..., None]] = {}
        if _adapts(solver):
            callbacks["callback_step"] = self._begin
            callbacks["callback_step_adjoint"] = self._begin
            callbacks["callback_accept_step"] = lambda t, h, dt: self._tally.steps(accepted=1)
            callbacks["callback_reject_step"] = lambda t, h, dt: self._tally.steps(rejected=1)
        elif solver.method != "scipy_solver":
            callbacks["callback_step"] = lambda t, h, dt: self._tally.steps(accepted=1)
        for name, callback in callbacks.items():
            setattr(evaluate, name, callback)
        return evaluate

    def _evaluate(self, field: Callable[..., Tensor], t: Tensor, h: Tensor) -> Tensor:
        phase = self._tally.phase
        if self._limit is not None and self._spent[phase] >= self._limit:
            raise self._error(TooManyEvaluationsError, t, f"{phase} pass")
        self._spent[phase] += 1
        with self._autocast():
            slope = _real(field(t, _in_dtype(h, self._dtype))).to(h.dtype)
        self._slope = slope.detach()
        return slope

    def restart(self, unchanged: Unchanged) -> None:
        """Begin a backward pass of the adjoint; a graph that is kept may have seen one already."""
        check_differentiated_once()
        unchanged.check()
        self._spent["backward"] = 0

    def reached(self, states: Tensor, times: Tensor) -> None:
        """Check that there is a state at each time: SciPy's solver returns fewer when it fails."""
        if len(states) < len(times):
            raise self._error(StepUnderflowError, times[len(states) - 1], "the last step")

    def _begin(self, t: Tensor, h: Tensor | Sequence[Tensor], dt: Tensor) -> None:
        """Check a step that torchdiffeq would only assert about. The state of an adjoint is a sequence."""
        parts = [h] if isinstance(h, Tensor) else h
        moves, finite = bool(t + dt != t), all(bool(torch.isfinite(part).all()) for part in parts)
        if moves and finite:
            return
        finite = finite and bool(torch.isfinite(self._slope).all())
        raise self._error(
            StepUnderflowError if finite else NonFiniteStateError, t, f"step size {float(dt.detach()):.3g}"
        )

    def _error(self, kind: type[SolveError], t: Tensor, step: str) -> SolveError:
        return kind(block=self._block, time=float(t.detach()), step=step, evaluations=self._spent[self._tally.phase])


class _FixedGrid(FixedGridODESolver):
    """One of our fixed-step methods, run by torchdiffeq."""

    order = 0

    def __init__(self, *, tableau: Tableau, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._tableau = tableau

    def _step_func(self, func: Any, t0: Tensor, dt: Tensor, t1: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
        sides = {0.0: Perturb.NEXT, 1.0: Perturb.PREV}
        slopes: list[Tensor] = []
        for weights, c in zip(self._tableau.a, self._tableau.c, strict=True):
            time = t1 if c == 1.0 else t0 + c * dt
            stage = advance(y0, slopes, weights, float(dt))
            slopes.append(func(time, stage, perturb=sides.get(c, Perturb.NONE)))
        return advance(torch.zeros_like(y0), slopes, self._tableau.b, float(dt)), slopes[0]


def _register(method: str) -> str:
    """Make our fixed-step method known to torchdiffeq, whose method of the same name may be another one."""
    name = OURS + method
    if name not in SOLVERS:
        solver: Any = functools.partial(_FixedGrid, tableau=TABLEAUS[method])
        solver.valid_callbacks = _FixedGrid.valid_callbacks
        SOLVERS[name] = solver
    return name
