"""`ODEBlock`: a vector field, a solver and a gradient make a layer."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .errors import NonFiniteStateError
from .gradients import Gradient, make_gradient, solve
from .pieces import duration_of
from .record import Observer, Tally
from .solvers import FixedStep, Solver


class ODEBlock(nn.Module):
    """The flow of a vector field: h(0) -> h(duration), where dh/dt = field(t, h).

    Example:
        >>> block = ODEBlock(field=BasicField(channels=64), solver=FixedStep("rk4", steps=2))
        >>> block(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 64, 32, 32])

    The solver and the gradient are plain attributes: set ``block.solver`` to turn the dial of a trained block.

    Args:
        field: module called as ``field(t, h)``, with t a float (fixed steps) or a 0-d tensor (adaptive), that returns
            dh/dt in the shape of h.
        solver: `FixedStep` or `Adaptive`.
        gradient: "backprop", "checkpoint", "adjoint", or a value of `Backprop`, `Checkpoint`, `Adjoint`.
        duration: the end of time, > 0; None takes the field's own (its number of pieces; 1 for constant weights).
        name: what error messages call this block.
        allow_stateful_field: accept a field with batch statistics or dropout.
        check_finite: whether to look for NaN and infinity in the result. None looks on the CPU and not on a GPU, where
            it would wait for the device.

    Raises:
        ValueError: a field whose value depends on when or how often it is evaluated, a duration out of range, an
            unknown gradient.
    """

    def __init__(
        self,
        *,
        field: nn.Module,
        solver: Solver | None = None,
        gradient: str | Gradient = "backprop",
        duration: float | None = None,
        name: str = "ODEBlock",
        allow_stateful_field: bool = False,
        check_finite: bool | None = None,
    ) -> None:
        super().__init__()
        if not allow_stateful_field:
            _check_stateless(field)
        self.field = field
        self.solver: Solver = solver if solver is not None else FixedStep()
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"a flow is solved by a FixedStep or an Adaptive, not {solver!r}; try FixedStep('rk4', steps=4)."
            )
        self.gradient = make_gradient(gradient)
        self.duration = duration_of(field) if duration is None else float(duration)
        if not 0 < self.duration < float("inf"):
            raise ValueError(f"the duration of a flow must be a number above 0, not {duration!r}; 1.0 is usual.")
        self.name = name
        self.check_finite = check_finite
        self.observers: dict[int, list[Observer]] = {}

    def forward(self, h: Tensor) -> Tensor:
        """Solve.

        Args:
            h: the state, shape (N, C, H, W), any floating dtype, device and memory format.

        Returns:
            The state at the end of time, same shape, dtype, device and memory format.

        Raises:
            SolveError: the solve failed; the subclass says how.
        """
        if torch.compiler.is_compiling():
            return self._solve(h, None)
        observers = self.observers.get(threading.get_ident(), [])
        if not observers and isinstance(self.solver, FixedStep):
            return self._checked(h, self._solve(h, None))
        tally = Tally(list(observers))
        state = tally.start(self.field, h)
        out = self._checked(h, self._solve(state, tally), tally)
        tally.finish(out)
        return out

    def extra_repr(self) -> str:
        """Solver, gradient and duration."""
        return f"solver={self.solver}, gradient={self.gradient}, duration={self.duration:g}"

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to nobody who is recording the original.
        return {**self.__dict__, "observers": {}}

    def _solve(self, h: Tensor, tally: Tally | None) -> Tensor:
        out = solve(
            self.field,
            h,
            solver=self.solver,
            gradient=self.gradient,
            duration=self.duration,
            tally=tally,
            block=self.name,
        )
        out = out.to(h.dtype)
        return out if out.stride() == h.stride() else _in_layout_of(h, out)

    def _checked(self, h: Tensor, out: Tensor, tally: Tally | None = None) -> Tensor:
        wanted = out.device.type == "cpu" if self.check_finite is None else self.check_finite
        # The sum is finite unless a value is not, or unless it overflows: a cheap question first.
        if wanted and not bool(out.detach().sum(dtype=torch.float32).isfinite()) and not bool(out.isfinite().all()):
            raise self._locate(h.detach(), tally)
        return out

    @torch.no_grad()
    def _locate(self, h: Tensor, tally: Tally | None) -> NonFiniteStateError:
        """Solve again, step by step, to say where the state stopped being finite."""
        solver = self.solver
        if not isinstance(solver, FixedStep):
            spent = tally.evaluations if tally is not None else 0
            return NonFiniteStateError(block=self.name, time=self.duration, step="the last step", evaluations=spent)
        stages = len(solver.tableau.b)
        for index, (start, end) in enumerate(solver.grid(self.duration)):
            if not bool(h.isfinite().all()):
                break
            h = solver.step(self.field, start, end, h)
            if not bool(h.isfinite().all()):
                index += 1
                break
        where = f"step {index} of {solver.steps}" if index else "the input"
        time = self.duration * index / solver.steps
        return NonFiniteStateError(block=self.name, time=time, step=where, evaluations=index * stages)


def _in_layout_of(h: Tensor, out: Tensor) -> Tensor:
    channels_last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _check_stateless(field: nn.Module) -> None:
    for name, module in field.named_modules():
        where = f"{type(module).__name__} at {name!r}" if name else type(module).__name__
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"a vector field must not depend on batch statistics, and {where} does: they differ at each time and "
                "with the other pictures of the batch. Use norm='GN' (or 'FrozenBN' with pretrained weights), or pass "
                "allow_stateful_field=True."
            )
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(
                f"a vector field must be a function, and {where} draws a new mask at each evaluation. Put dropout "
                "outside the flow, or pass allow_stateful_field=True."
            )
