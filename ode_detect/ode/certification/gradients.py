"""A certificate that the gradients of a flow are right in every mode, compared with float64 backpropagation."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.diffeq import check_differentiable
from ode_detect.ode.difference import difference
from ode_detect.ode.errors import SolveError
from ode_detect.ode.gradients import Adjoint, Backprop, Checkpoint, Gradient, Reversible, check_solvable
from ode_detect.ode.memory import KeptBytes
from ode_detect.ode.randomness import draws_masks
from ode_detect.ode.record import record_solves
from ode_detect.ode.tables import table
from ode_detect.ode.tally import now

from .flow import in_float64

EXACT = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.1}
"""Largest relative difference from float64 backpropagation of a gradient that is called exact, by its precision: the
rounding of each format (2^-53, 2^-24, 2^-11, 2^-8), accumulated over the operations of a solve."""
ROUNDING_FACTOR = 3
"""A gradient may also differ this many times as much as backpropagation in the same precision: where rounding moves a
state across the kink of a relu, no way to pay for the gradient comes nearer."""
MODES: dict[str, Gradient] = {
    "backprop": Backprop(),
    "checkpoint": Checkpoint(),
    "binomial": Checkpoint(states=4),
    "reversible": Reversible(),
    "adjoint": Adjoint(),
}
"""The ways to pay for a gradient that are certified."""


@dataclass(frozen=True)
class ModeReport:
    """One way to pay for a flow's gradient, measured.

    Attributes:
        mode: "backprop", "checkpoint", "binomial", "reversible" or "adjoint".
        verdict: "exact", "inexact" (the adjoint, which is the gradient of another discretisation), "WRONG" (it promises
            to be exact and is not), "does not apply", or "failed".
        remark: why it does not apply or failed, or what to know.
        difference: from float64 backpropagation through the same scheme, in the flow's own precision: the larger of the
            relative differences of the state's gradient and of the parameters' gradients, these taken together.
        difference_float64: the same, computed in float64.
        forward_evaluations: of the field, in one forward pass.
        backward_evaluations: of the field, in the backward pass.
        bytes_kept: between forward and backward.
        time: of forward and backward, relative to backpropagation's.
    """

    mode: str
    verdict: str
    remark: str = ""
    difference: float | None = None
    difference_float64: float | None = None
    forward_evaluations: int | None = None
    backward_evaluations: int | None = None
    bytes_kept: int | None = None
    time: float | None = None

    @property
    def broken(self) -> bool:
        """Whether it does not keep what it promises."""
        return self.verdict in ("WRONG", "failed")


@dataclass(frozen=True)
class GradientReport:
    """The gradients of one flow, by mode; ``str()`` is a table."""

    modes: tuple[ModeReport, ...]

    @property
    def right(self) -> bool:
        """Whether every mode keeps what it promises."""
        return not any(mode.broken for mode in self.modes)

    def __str__(self) -> str:
        head = (
            "gradient",
            "verdict",
            "difference",
            "in float64",
            "NFE",
            "backward NFE",
            "MiB kept",
            "time (backprop: 1)",
        )
        lines = ["gradients, compared with float64 backpropagation through the same scheme"]
        lines += [table(head, [_cells(mode) for mode in self.modes])]
        return "\n".join([*lines, *(f"{mode.mode}: {mode.remark}" for mode in self.modes if mode.remark)])


def certify_gradients(block: ODEBlock, state: Tensor, *, repeats: int = 5) -> GradientReport:
    """Compare each way to pay for a flow's gradient with float64 backpropagation through the same scheme.

    The gradients are those of the output's inner product with fixed normal random numbers, by the state and by every
    parameter that is trained. `Reversible` solves a coupled scheme and is compared with backpropagation through that.

    Args:
        block: the flow; not changed. Its own gradient mode does not matter.
        state: what enters it, (N, C, H, W).
        repeats: how often forward and backward are timed, modes taking turns; medians are compared.

    Raises:
        ValueError: fewer than 1 repeat.
    """
    if repeats < 1:
        raise ValueError(f"times are medians of 1 repeat or more, not {repeats}; 5 is usual.")
    precise, own = _Trial(*in_float64(block, state)), _Trial(copy.deepcopy(block).eval(), state.detach())
    reports = [_judged(mode, gradient, precise, own) for mode, gradient in MODES.items()]
    del precise
    seconds = own.seconds([MODES[r.mode] for r in reports if r.bytes_kept is not None], repeats)
    base = seconds.get(MODES["backprop"])
    return GradientReport(
        tuple(
            dataclasses.replace(r, time=seconds[MODES[r.mode]] / base) if base and MODES[r.mode] in seconds else r
            for r in reports
        )
    )


class _Trial:
    """A copy of a block, whose gradients are taken in one way or another."""

    def __init__(self, block: ODEBlock, state: Tensor) -> None:
        self._block, self._state = block, state
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        self._weights = weights.to(state.device, state.dtype)
        self._references: dict[Gradient, list[Tensor]] = {}
        self.tolerance = EXACT.get(state.dtype, EXACT[torch.float32])

    def gradients(self, gradient: Gradient) -> list[Tensor]:
        """By the state, then by each trained parameter."""
        inputs = self._inputs()
        return self._backward(inputs, self._forward(gradient, inputs))

    def reference(self, gradient: Gradient) -> list[Tensor]:
        """Return the gradients by plain backpropagation through the same scheme; computed once for each scheme."""
        plain = dataclasses.replace(gradient, keep=True) if isinstance(gradient, Reversible) else Backprop()
        if plain not in self._references:
            self._references[plain] = self.gradients(plain)
        return self._references[plain]

    def cost(self, mode: str, gradient: Gradient) -> ModeReport:
        """Evaluations and bytes of one forward and backward pass."""
        inputs = self._inputs()
        with record_solves(self._block, measure=False) as record:
            with KeptBytes(without=[*inputs, *self._block.parameters(), *self._block.buffers()]) as kept:
                out = self._forward(gradient, inputs)
            held = kept.bytes
            self._backward(inputs, out)
        spent = record.total
        return ModeReport(
            mode,
            "",
            forward_evaluations=spent.forward_evaluations,
            backward_evaluations=spent.backward_evaluations,
            bytes_kept=held,
        )

    def seconds(self, gradients: list[Gradient], repeats: int) -> dict[Gradient, float]:
        """Median time of forward and backward, the gradients taking turns."""
        times: dict[Gradient, list[float]] = {gradient: [] for gradient in gradients}
        for _ in range(repeats):
            for gradient in gradients:
                began = now(self._state.device)
                self.gradients(gradient)
                times[gradient].append(now(self._state.device) - began)
        return {gradient: statistics.median(values) for gradient, values in times.items()}

    def _inputs(self) -> list[Tensor]:
        return [self._state.clone().requires_grad_(), *(p for p in self._block.parameters() if p.requires_grad)]

    def _forward(self, gradient: Gradient, inputs: list[Tensor]) -> Tensor:
        self._block.gradient = gradient
        with torch.enable_grad(), torch.autocast(self._state.device.type, enabled=False):
            return self._block(inputs[0])

    def _backward(self, inputs: list[Tensor], out: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(out, inputs, self._weights, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]

    def why_not(self, gradient: Gradient) -> str:
        """Why the block cannot be differentiated in this way; "" where it can."""
        solver, name = self._block.solver, self._block.name
        adjoint = gradient if isinstance(gradient, Adjoint) else None
        again = isinstance(gradient, Reversible) or (isinstance(gradient, Checkpoint) and gradient.states is not None)
        try:
            check_solvable(gradient, solver, name)
            with torch.enable_grad():
                check_differentiable(self._block.field, self._inputs()[0], solver, name, adjoint)
        except ValueError as error:
            return str(error)
        return "the field draws at random, and is evaluated again" if again and draws_masks(self._block.field) else ""


def _judged(mode: str, gradient: Gradient, precise: _Trial, own: _Trial) -> ModeReport:
    if reason := own.why_not(gradient):
        return ModeReport(mode, "does not apply", reason)
    try:
        report = own.cost(mode, gradient)
        reference = precise.reference(gradient)
        finest = _apart(precise.gradients(gradient), reference)
        found = _apart(own.gradients(gradient), reference)
        rounding = _apart(own.reference(gradient), reference)
    except (SolveError, ValueError) as error:
        return ModeReport(mode, "failed", str(error))
    right = finest <= precise.tolerance and found <= max(own.tolerance, ROUNDING_FACTOR * rounding) < math.inf
    verdict, remark = "exact" if right else "WRONG", ""
    if isinstance(gradient, Adjoint):
        verdict, remark = "inexact", "the gradient of another discretisation: it comes nearer with finer steps only"
    elif isinstance(gradient, Reversible):
        remark = "solves a coupled scheme, and is compared with backpropagation through that"
    return dataclasses.replace(report, verdict=verdict, remark=remark, difference=found, difference_float64=finest)


def _apart(found: list[Tensor], reference: list[Tensor]) -> float:
    """The larger of the relative differences of the state's gradient and of the parameters'; infinite for NaN."""
    parts = (difference(reference[part], found[part]) for part in (slice(0, 1), slice(1, None)))
    shares = [part.relative_norm() for part in parts]
    # NaN is no larger than anything, and would get lost in a maximum.
    return math.inf if any(map(math.isnan, shares)) else max(shares)


def _cells(mode: ModeReport) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    kept = None if mode.bytes_kept is None else mode.bytes_kept / 2**20
    return (
        mode.mode,
        mode.verdict,
        shown(mode.difference, ".1e"),
        shown(mode.difference_float64, ".1e"),
        shown(mode.forward_evaluations, "d"),
        shown(mode.backward_evaluations, "d"),
        shown(kept, ".2f"),
        shown(mode.time, ".2f"),
    )
