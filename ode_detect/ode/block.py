"""`ODEBlock`: a layer made of a vector field, a solver and a way to the gradient."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ode_detect.ode.backward.recompute import without_trace

from .adaptive import Solver
from .errors import NonFiniteStateError
from .gradients import Auto, Backprop, Gradient, Reversible, check_solvable, make_gradient, needs_gradient
from .memory import MemoryReport, solve_within_budget
from .pieces import Lasting, duration_of
from .randomness import random_layers
from .solve import solve, states
from .solvers import FixedStep
from .tally import Observer, Tally


class ODEBlock(Lasting):
    """The flow of a vector field: h(0) -> h(duration), where dh/dt = field(t, h).

    Examples:
        >>> block = ODEBlock(field=BasicField(channels=64), solver=FixedStep("rk4", steps=2))
        >>> block(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 64, 32, 32])

    The solver and the gradient are plain attributes: set ``block.solver`` to turn the dial of a trained block. What is
    set is checked as what is given here.

    Args:
        field: module called as ``field(t, h)``, with t a float (fixed steps) or a 0-d tensor (adaptive), that returns
            dh/dt in the shape of h.
        solver: `FixedStep` or `Adaptive`.
        gradient: "backprop", "checkpoint", "reversible", "adjoint", "auto", or a value of `Backprop`, `Checkpoint`,
            `Reversible`, `Adjoint`, `Auto`.
        memory_budget: with gradient="auto": bytes that this flow may hold for its backward pass.
        duration: the end of time, > 0; None takes the field's own (its number of pieces; 1 for constant weights).
        name: what error messages call this block.
        allow_stateful_field: accept a field with batch statistics, dropout, or other layers that draw at random.
        check_finite: whether to look for NaN and infinity in the result. None looks on the CPU and not on a GPU, where
            it would wait for the device.

    Attributes:
        memory: with gradient="auto", what was predicted, chosen and measured for the last solve that needed a
            gradient; None before.

    Raises:
        ValueError: a field whose value depends on when or how often it is evaluated, a duration out of range, an
            unknown gradient, or one that does not go with the solver.
    """

    def __init__(
        self,
        *,
        field: nn.Module,
        solver: Solver | None = None,
        gradient: str | Gradient = "backprop",
        memory_budget: int | None = None,
        duration: float | None = None,
        name: str = "ODEBlock",
        allow_stateful_field: bool = False,
        check_finite: bool | None = None,
    ) -> None:
        super().__init__()
        self.allow_stateful_field = allow_stateful_field
        self.field = field
        self.solver: Solver = solver if solver is not None else FixedStep()
        self.gradient = make_gradient(gradient, memory_budget)
        check_solvable(self.gradient, self.solver, name)
        self.duration = duration_of(field) if duration is None else duration
        self.name = name
        self.check_finite = check_finite
        self.memory: MemoryReport | None = None
        self._plans: dict[Any, MemoryReport] = {}
        self.observers: dict[int, list[Observer]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "field" and not getattr(self, "allow_stateful_field", True):
            _check_stateless(value)
        elif name == "solver" and not isinstance(value, Solver):
            raise TypeError(
                f"a flow is solved by a FixedStep or an Adaptive, not {value!r}; try FixedStep('rk4', steps=4)."
            )
        super().__setattr__(name, make_gradient(value) if name == "gradient" else value)

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse ``torch.jit.script``, which calls this first."""
        raise TypeError(
            "torch.jit.script reads the source of a network, and a solver is Python that it cannot read; the network "
            f"has the flow {self.name!r}, in no backbone of ours, which know the shape of its state. Write it by "
            "export_model, for torch.export or ONNX."
        )

    def forward(self, h: Tensor) -> Tensor:
        """Return the state at the end of time.

        Args:
            h: the state, shape (N, C, H, W), any floating or complex dtype, device and memory format.

        Returns:
            The state at the end of time, same shape, dtype, device and memory format.

        Raises:
            ValueError: a state of integers, or of other channels than the field takes or gives.
            TypeError: the field is not one that is called as ``field(t, h)``.
            SolveError: the solve failed; the subclass says how.
        """
        if not (h.is_floating_point() or h.is_complex()):
            raise ValueError(
                f"the state of a flow is of real or complex numbers, and {self.name!r} was given {h.dtype}, in which "
                "its steps would be rounded to integers; call it with h.float()."
            )
        if torch.compiler.is_compiling():
            return self._solve(h, None)
        try:
            return self._observed(h)
        except (TypeError, RuntimeError) as error:
            if mistake := _mistake(self.field, h, self.name, error):
                raise mistake from error
            raise

    def _observed(self, h: Tensor) -> Tensor:
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
        # A copy is not recorded with the original, and has a field of its own to plan for.
        return {**self.__dict__, "observers": {}, "_plans": {}}

    def _solve(self, h: Tensor, tally: Tally | None) -> Tensor:
        if isinstance(self.gradient, Auto):
            out = self._solve_within_budget(h, tally, self.gradient.memory_budget)
        else:
            out = self._solve_by(self.gradient, h, tally)
        if out.shape != h.shape or out.is_complex() != h.is_complex():
            raise _wrong_slope(self.name, h, out)
        out = out.to(h.dtype)
        return out if out.stride() == h.stride() else _in_layout_of(h, out)

    def _solve_by(self, gradient: Gradient, h: Tensor, tally: Tally | None) -> Tensor:
        return solve(
            self.field,
            h,
            solver=self.solver,
            gradient=gradient,
            duration=self.duration,
            tally=tally,
            block=self.name,
        )

    def _solve_within_budget(self, h: Tensor, tally: Tally | None, budget: int) -> Tensor:
        if not needs_gradient(self.field, h):
            return self._solve_by(Backprop(), h, tally)
        check_solvable(self.gradient, self.solver, self.name)
        return self._solve_and_measure(h, tally, budget)

    @torch.compiler.disable
    def _solve_and_measure(self, h: Tensor, tally: Tally | None, budget: int) -> Tensor:
        assert isinstance(self.solver, FixedStep)
        out, self.memory = solve_within_budget(
            lambda gradient: self._solve_by(gradient, h, tally),
            self.field,
            h,
            solver=self.solver,
            duration=self.duration,
            budget=budget,
            training=self.training,
            plans=self._plans,
            block=self.name,
        )
        return out

    def _checked(self, h: Tensor, out: Tensor, tally: Tally | None = None) -> Tensor:
        wanted = out.device.type == "cpu" if self.check_finite is None else self.check_finite
        # The sum is finite unless a value is not, or unless it overflows: a cheap question first.
        dtype = torch.complex64 if out.is_complex() else torch.float32
        if wanted and not bool(out.detach().sum(dtype=dtype).isfinite()) and not bool(out.isfinite().all()):
            raise self._locate(h.detach(), tally)
        return out

    @torch.no_grad()
    def _locate(self, h: Tensor, tally: Tally | None) -> NonFiniteStateError:
        """Solve again, step by step, to say where the state stopped being finite."""
        solver = self.solver
        if not isinstance(solver, FixedStep):
            spent = tally.evaluations if tally is not None else 0
            return NonFiniteStateError(block=self.name, time=self.duration, step="the last step", evaluations=spent)
        stages, coupled = len(solver.tableau.b), isinstance(self.gradient, Reversible)
        index = 0
        if bool(h.isfinite().all()):
            path = states(self.field, h, solver=solver, gradient=self.gradient, duration=self.duration)
            # What grew too large only when it was put into the input's dtype is finite until the end.
            index = next((i for i, state in enumerate(path, 1) if not bool(state.isfinite().all())), solver.steps)
        where = f"step {index} of {solver.steps}" if index else "the input"
        time = self.duration * index / solver.steps
        increments = 2 * index - 1 if coupled and index else index
        return NonFiniteStateError(block=self.name, time=time, step=where, evaluations=increments * stages)


def _mistake(field: nn.Module, h: Tensor, block: str, error: Exception) -> Exception | None:
    """Return an error that names the mistake in a field or its state; None if that is not why the evaluation failed."""
    if isinstance(error, TypeError):
        try:
            inspect.signature(field.forward).bind(0.0, h)
        except TypeError as unfit:
            return TypeError(
                f"a vector field is called as field(t, h), with the time and the state, and {type(field).__name__} of "
                f"{block!r} cannot be: {unfit}. Give its forward the arguments t and h, though it may leave t aside."
            )
    elif "channels" in str(error):
        return ValueError(
            f"the field of {block!r} takes states of other channels than the {h.shape[1]} of this one, of shape "
            f"{tuple(h.shape)}: {str(error).splitlines()[0]}. Give it a state (N, C, H, W) with the C of the field."
        )
    elif type(error) is RuntimeError:
        return _misfit(field, h, block)
    return None


@torch.no_grad()
def _misfit(field: nn.Module, h: Tensor, block: str) -> ValueError | None:
    """Return the error of a dh/dt of the wrong shape, which torchdiffeq cannot add to the state; None if it fits."""
    try:
        with without_trace(field, h):
            slope = field(0.0, h.detach())
    except Exception:  # an error of its own, which is the one to see
        return None
    fits = slope.shape == h.shape and slope.is_complex() == h.is_complex()
    return None if fits else _wrong_slope(block, h, slope)


def _wrong_slope(block: str, h: Tensor, slope: Tensor) -> ValueError:
    return ValueError(
        f"the field of {block!r} must return dh/dt in the shape of the state, and made {tuple(slope.shape)}, "
        f"{slope.dtype}, of {tuple(h.shape)}, {h.dtype}; make its last layer as wide as its input."
    )


def _in_layout_of(h: Tensor, out: Tensor) -> Tensor:
    channels_last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _check_stateless(field: nn.Module) -> None:
    for name, module in field.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"a vector field must not depend on batch statistics, and {_where(name, module)} does: they differ at "
                "each time and with the other pictures of the batch. Use norm='GN' (or 'FrozenBN' with pretrained "
                "weights), or pass allow_stateful_field=True."
            )
    for name, module, _ in random_layers(field):
        raise ValueError(
            f"a vector field must be a function, and {_where(name, module)} draws a new mask at each evaluation. Put "
            "dropout outside the flow, or pass allow_stateful_field=True."
        )


def _where(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} at {name!r}" if name else type(module).__name__
