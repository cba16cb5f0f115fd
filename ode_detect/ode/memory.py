"""Bytes that a forward pass keeps for its backward pass: measured, and predicted for each exact way to a gradient."""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.backward.recompute import summing_in_float32, trained, version_of, without_trace
from ode_detect.ode.backward.schedules import evaluations_to_reverse, places_kept

from .errors import GradientError
from .gradients import Backprop, Checkpoint, Gradient
from .randomness import draws_masks
from .solve import in_precision_of_state
from .solvers import FixedStep
from .tables import table

_log = logging.getLogger(__name__)


class KeptBytes:
    """A context that counts the bytes which autograd saves in this thread and still holds.

    Each storage counts once, and in full. What a custom function keeps other than by ``save_for_backward`` is not seen.

    Examples:
        >>> with KeptBytes(without=block.parameters()) as kept:
        ...     out = block(h)
        >>> kept.bytes

    Args:
        without: tensors that do not count, such as parameters and the input, which are held anyway.
    """

    def __init__(self, without: Iterable[Tensor] = ()) -> None:
        self._without = {_storage(tensor) for tensor in without}
        self._saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    @property
    def bytes(self) -> int:
        """The bytes that are held now. A graph that is freed holds nothing, so keep the output until you read this."""
        storages = {_storage(saved.tensor): saved.tensor.untyped_storage().nbytes() for saved in self._saved}
        return sum(size for storage, size in storages.items() if storage not in self._without)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the storage of a tensor is held now."""
        return _storage(tensor) in {_storage(saved.tensor) for saved in self._saved}

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor)
        self._saved.add(saved)
        return saved


class _Saved:
    """What autograd holds instead of a tensor. It is freed with the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # An output that held itself would never be freed.
        self.version = version_of(self.tensor)


def _unpack(saved: _Saved) -> Tensor:
    # With hooks, autograd leaves this to them.
    if version_of(saved.tensor) != saved.version:
        raise GradientError(
            f"what a backward pass reads must be as the forward pass left it, and a tensor of shape "
            f"{tuple(saved.tensor.shape)} was modified by an inplace operation. Call backward() before weights or "
            "states are changed, or change a clone."
        )
    return saved.tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_kept(run: Callable[[], object], *, without: Iterable[Tensor] = ()) -> int:
    """Return the bytes that a forward pass keeps for its backward pass.

    Args:
        run: runs the forward pass and returns its output, which has the graph.
        without: tensors that do not count, such as parameters, buffers and the input.
    """
    with KeptBytes(without) as kept:
        out = run()
    size = kept.bytes
    del out
    return size


def is_watched() -> bool:
    """Whether hooks already watch what autograd saves; only the hooks entered last would see it."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of one way to a gradient.

    Attributes:
        gradient: the way.
        kept: bytes that the forward pass keeps for the backward pass, parameters, buffers and input not counted.
        peak: the most that is held of it and of what is recomputed, in bytes.
        evaluations: evaluations of the field in the backward pass.
    """

    gradient: Gradient
    kept: int
    peak: int
    evaluations: int


@dataclass(frozen=True)
class MemoryReport:
    """What was predicted, chosen and measured for a flow with a memory budget; ``str()`` is a table.

    Attributes:
        budget: bytes that the flow may hold for its backward pass.
        predictions: of each way, the fastest first.
        chosen: the fastest whose peak is within the budget; if there is none, the one with the smallest peak.
        measured: bytes that the forward pass kept, in the first solve of this kind; None before it, or if other
            hooks (`KeptBytes`, ``save_on_cpu``) already watched what autograd saves.
    """

    budget: int
    predictions: tuple[Prediction, ...]
    chosen: Prediction
    measured: int | None = None

    @property
    def fits(self) -> bool:
        """Whether what was chosen is within the budget."""
        return self.chosen.peak <= self.budget

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{_size(self.measured)} measured as kept"
        rows = table(("gradient", "kept", "peak", "backward NFE"), [*map(_cells, self.predictions)])
        fits = "within" if self.fits else "the smallest, but above"
        head = f"{self.chosen.gradient}, {fits} the budget of {_size(self.budget)}; {measured}. Predicted:"
        return f"{head}\n{rows}"


def plan(field: nn.Module, h: Tensor, *, solver: FixedStep, duration: float, budget: int) -> MemoryReport:
    """Choose the fastest exact way to a gradient within a budget, from the measure of one step.

    Of the ways, `Backprop` evaluates nothing again; `Checkpoint` with every state, and with every k-th (the k of the
    smallest peak), evaluates each step once more; the binomial one (not with dropout) has as many states as fit.

    Args:
        field: the vector field, evaluated for one step (the middle one) as in a training step.
        h: the state at time 0, (N, C, H, W).
        solver: fixed steps.
        duration: the end of time.
        budget: bytes that may be held for the backward pass at any time.
    """
    cost = _measure_step(field, h, solver, duration)
    spread = min(range(1, solver.steps + 1), key=lambda k: cost.every(k).peak)
    ways = [cost.backprop(), *map(cost.every, dict.fromkeys((1, spread)))]
    if solver.steps > 1 and not draws_masks(field):
        few = [cost.few(states) for states in range(1, solver.steps)]
        ways.append(next((way for way in reversed(few) if way.peak <= budget), few[0]))
    chosen = next((way for way in ways if way.peak <= budget), min(ways, key=lambda way: way.peak))
    return MemoryReport(budget=budget, predictions=tuple(ways), chosen=chosen)


def solve_within_budget(
    solve: Callable[[Gradient], Tensor],
    field: nn.Module,
    h: Tensor,
    *,
    solver: FixedStep,
    duration: float,
    budget: int,
    training: bool,
    plans: dict[Any, MemoryReport],
    block: str,
) -> tuple[Tensor, MemoryReport]:
    """Solve in the fastest exact way to a gradient within a budget; each kind of solve is planned and measured once.

    Args:
        solve: solves with the gradient that it is given.
        field: the vector field.
        h: the state at time 0, (N, C, H, W).
        solver: fixed steps.
        duration: the end of time.
        budget: bytes that may be held for the backward pass at any time.
        training: whether the block is in training mode.
        plans: what was planned so far, by the kind of solve; this kind is added.
        block: name for the log and for the warning that nothing fits.

    Returns:
        The state at the end of time, and what was predicted, chosen and measured.
    """
    device = h.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    asked = (h.requires_grad, len(trained(field)), training)
    kind = (id(field), h.shape, h.dtype, h.device, precision, solver, duration, budget, asked)
    report = plans.get(kind)
    if report is None:
        report = plan(field, h, solver=solver, duration=duration, budget=budget)
        if not report.fits:
            warnings.warn(f"no exact gradient of {block!r} fits its memory budget: {report}", stacklevel=2)
    if report.measured is not None or is_watched():
        out = solve(report.chosen.gradient)
    else:
        with KeptBytes([*field.parameters(), *field.buffers(), h]) as kept:
            out = solve(report.chosen.gradient)
        report = replace(report, measured=kept.bytes)
        _log.info("memory of %s: %s", block, report)
    plans[kind] = report
    return out, report


@dataclass(frozen=True)
class _StepCost:
    """What the steps of a solve keep, in bytes.

    Attributes:
        state: of one state.
        copy: of the state to start from; 0 where it is the input itself.
        start: of that copy, where a step keeps the state that it starts from; else 0.
        first: what one step keeps, but for the state that it starts from.
        next: what one more step adds.
        stages: evaluations in a step.
        steps: of the solve.
    """

    state: int
    copy: int
    start: int
    first: int
    next: int
    stages: int
    steps: int

    def backprop(self) -> Prediction:
        kept = self.start + self._graph(self.steps)
        return Prediction(Backprop(), kept=kept, peak=kept, evaluations=0)

    def every(self, k: int) -> Prediction:
        kept = self.copy + (math.ceil(self.steps / k) - 1) * self.state
        return Prediction(Checkpoint(every=k), kept, kept + self._graph(k), self.steps * self.stages)

    def few(self, states: int) -> Prediction:
        evaluations = evaluations_to_reverse(self.steps, states) * self.stages
        kept = self.copy + (len(places_kept(0, self.steps + 1, states)) - 1) * self.state
        # In the backward pass all states may be kept while one more is advanced.
        held = self.copy + min(states, self.steps - 1) * self.state
        return Prediction(Checkpoint(states=states), kept, held + self._graph(1), evaluations)

    def _graph(self, steps: int) -> int:
        return self.first + (steps - 1) * self.next


def _measure_step(field: nn.Module, h: Tensor, solver: FixedStep, duration: float) -> _StepCost:
    evaluate, state = in_precision_of_state(field, h.detach(), Backprop())
    start, end = list(solver.grid(duration))[solver.steps // 2]
    with torch.enable_grad(), without_trace(field, h), summing_in_float32(h):
        state = state.detach().requires_grad_()
        with KeptBytes([*field.parameters(), *field.buffers(), state]) as kept:
            out = solver.step(evaluate, start, end, state)
    # The state that the next step starts from is kept by that step, unless this one has kept it already.
    copy = state.nbytes if state.dtype != h.dtype else 0
    between = state.nbytes if kept.holds(state) and not kept.holds(out) else 0
    return _StepCost(
        state=state.nbytes,
        copy=copy,
        start=copy if kept.holds(state) else 0,
        first=kept.bytes,
        next=kept.bytes + between,
        stages=len(solver.tableau.b),
        steps=solver.steps,
    )


def _cells(way: Prediction) -> tuple[str, ...]:
    return (str(way.gradient), _size(way.kept), _size(way.peak), str(way.evaluations))


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
