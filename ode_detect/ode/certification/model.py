"""A certificate of a model's flows: are their gradients right, and are they flows at all?"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock, flows_of
from ode_detect.ode.diffeq import check_differentiable
from ode_detect.ode.errors import SolveError
from ode_detect.ode.gradients import Adjoint, Backprop, Checkpoint, Gradient, Reversible, check_solvable, scheme_for
from ode_detect.ode.memory import KeptBytes
from ode_detect.ode.observation import in_evaluation
from ode_detect.ode.randomness import draws_masks
from ode_detect.ode.record import now, record_solves
from ode_detect.ode.solvers import Solver
from ode_detect.ode.tables import table

from .flow import TOLERANCE, FlowReport, certify_flow, in_float64, ratio

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


@dataclass(frozen=True)
class BlockReport:
    """One flow of a model.

    Attributes:
        calls: how often the example reached it; at 0 there is nothing else.
        shape: of the state of the first call, which the reports are about.
        flow: is it a flow?
        gradients: are its gradients right?
    """

    calls: int
    shape: tuple[int, ...] = ()
    flow: FlowReport | None = None
    gradients: GradientReport | None = None


@dataclass(frozen=True)
class Report:
    """The certificate of a model; ``str()`` is for people, ``to_dict()`` for files.

    Attributes:
        blocks: by the flow's name in the model.
        together: change of the model's output, as a share of it, when all flows are solved otherwise at once, by what
            was done; empty for one flow, and where the output is no tensor.
    """

    blocks: dict[str, BlockReport]
    together: dict[str, float]

    @property
    def verdict(self) -> str:
        """That of the flows that were reached: "Euler-only" if one is, or "flow"; "not reached" where none was."""
        verdicts = {block.flow.verdict for block in self.blocks.values() if block.flow}
        return "Euler-only" if "Euler-only" in verdicts else "flow" if verdicts else "not reached"

    @property
    def right(self) -> bool:
        """Whether every mode of every flow that was reached keeps what it promises about its gradient."""
        return not self._broken()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: fractions, counts, names; a number that is not finite becomes None."""
        return {"verdict": self.verdict, "right": self.right, **_plain(dataclasses.asdict(self))}

    def __str__(self) -> str:
        lines = []
        for name, block in self.blocks.items():
            size = " x ".join(map(str, block.shape))
            calls = "" if block.calls == 1 else f", the first of {block.calls} calls"
            lines += [name, *([f"  state {size}{calls}"] if block.calls else ["  not reached by this example"])]
            if block.flow:
                lines += [f"  {block.flow.solver}", *_indented(block.flow), *_indented(block.gradients), ""]
        for what, change in self.together.items():
            lines += [f"all flows, {what}: the model's output changes by {100 * change:.3g} %"]
        lines += [f"gradients of {name} that are WRONG or failed: {', '.join(m)}" for name, m in self._broken().items()]
        gradients = f"; its gradients are {'right' if self.right else 'NOT right'}"
        return "\n".join([*lines, _SUMMARY[self.verdict] + (gradients if self.verdict != "not reached" else "")])

    def _broken(self) -> dict[str, list[str]]:
        """The modes that do not keep what they promise, by the flow's name."""
        found = {n: [m.mode for m in b.gradients.modes if m.broken] for n, b in self.blocks.items() if b.gradients}
        return {name: modes for name, modes in found.items() if modes}


_SUMMARY = {
    "flow": "the network is a flow: finer steps and other methods change it by no more than is allowed",
    "Euler-only": "the network is Euler-only: it is tied to its steps, and with others it is another network",
    "not reached": "nothing is certified: the example reached no flow",
}


def certify_model(
    model: nn.Module,
    example: Any,
    *,
    run: Callable[[nn.Module, Any], Any] | None = None,
    tolerance: float = TOLERANCE,
    repeats: int = 5,
) -> Report:
    """Certify all flows of a model at the states that enter them when it runs on an example.

    The model runs in evaluation mode and is afterwards what it was: weights, modes, solvers, random state; after an
    error too. A flow that is called several times is certified at its first state.

    Args:
        model: any module with at least one `ODEBlock`.
        example: what it is called with.
        run: ``run(model, example)``, where that is not ``model(example)``, or to choose what counts as the model's
            output: tensors, or lists, tuples or dicts of tensors. Anything else is not compared.
        tolerance: see `certify_flow`.
        repeats: see `certify_gradients`.

    Raises:
        ValueError: the model has no flow.
        SolveError: the model's own solve failed.
    """
    flows = flows_of(model)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with in_evaluation(model), torch.random.fork_rng(devices=devices):
        running = _Running(flows, (lambda: run(model, example)) if run else (lambda: model(example)))
        blocks = {name: BlockReport(calls) for name, calls in running.calls.items()}
        for name, state in running.states.items():
            flow = certify_flow(flows[name], state, tolerance=tolerance)
            changes = tuple(
                dataclasses.replace(c, of_model=None if c.limit else running.change({name: c.solver}))
                for c in flow.changes
            )
            blocks[name] = dataclasses.replace(
                blocks[name],
                shape=tuple(state.shape),
                flow=dataclasses.replace(flow, changes=changes),
                gradients=certify_gradients(flows[name], state, repeats=repeats),
            )
        return Report(blocks, _together(blocks, running))


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
        """What plain backpropagation through the same scheme gives; computed once for each scheme."""
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
        finest = _difference(precise.gradients(gradient), reference)
        found = _difference(own.gradients(gradient), reference)
        rounding = _difference(own.reference(gradient), reference)
    except (SolveError, ValueError) as error:
        return ModeReport(mode, "failed", str(error))
    right = finest <= precise.tolerance and found <= max(own.tolerance, ROUNDING_FACTOR * rounding) < math.inf
    verdict, remark = "exact" if right else "WRONG", ""
    if isinstance(gradient, Adjoint):
        verdict, remark = "inexact", "the gradient of another discretisation: it comes nearer with finer steps only"
    elif isinstance(gradient, Reversible):
        remark = "solves a coupled scheme, and is compared with backpropagation through that"
    return dataclasses.replace(report, verdict=verdict, remark=remark, difference=found, difference_float64=finest)


def _difference(found: list[Tensor], reference: list[Tensor]) -> float:
    """The larger of the relative differences of the state's gradient and of the parameters'; infinite for NaN."""
    apart = [float((f.double().to(r.device) - r).norm()) for f, r in zip(found, reference, strict=True)]
    whole = [float(r.norm()) for r in reference]
    shares = ratio(apart[0], whole[0]), ratio(math.hypot(*apart[1:]), math.hypot(*whole[1:]))
    # NaN is no larger than anything, and would get lost in a maximum.
    return math.inf if any(map(math.isnan, shares)) else max(shares)


class _Running:
    """A model on its example: the states that enter its flows, and what other solvers do to its output."""

    def __init__(self, flows: dict[str, ODEBlock], run: Callable[[], Any]) -> None:
        self._flows, self._run = flows, run
        self.calls = dict.fromkeys(flows, 0)
        self.states: dict[str, Tensor] = {}
        hooks = [b.register_forward_pre_hook(partial(self._enter, n), with_kwargs=True) for n, b in flows.items()]
        try:
            self._output = self._leaves()
        finally:
            for hook in hooks:
                hook.remove()

    def change(self, solvers: dict[str, Solver]) -> float | None:
        """Change of the output, as a share of it, when flows are solved otherwise; None where it is no tensor."""
        if not self._output:
            return None
        before = {name: (self._flows[name].solver, self._flows[name].gradient) for name in solvers}
        try:
            for name, solver in solvers.items():
                block = self._flows[name]
                block.solver, block.gradient = solver, scheme_for(block.gradient, solver)
            other = self._leaves()
        except SolveError:
            return math.inf
        finally:
            for name, own in before.items():
                self._flows[name].solver, self._flows[name].gradient = own
        if [x.shape for x in other] != [x.shape for x in self._output]:
            return None
        apart = math.hypot(*(float((a - b).norm()) for a, b in zip(other, self._output, strict=True)))
        return ratio(apart, math.hypot(*(float(x.norm()) for x in self._output)))

    @torch.no_grad()
    def _leaves(self) -> list[Tensor]:
        return [leaf.double() for leaf in _tensors(self._run())]

    def _enter(self, name: str, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[name] += 1
        if name not in self.states:
            # The model may go on to change it in place.
            self.states[name] = (args[0] if args else kwargs["h"]).detach().clone()


def _together(blocks: dict[str, BlockReport], running: _Running) -> dict[str, float]:
    """Change of the output when the same is done to the solvers of all flows; for one flow it is known already."""
    solvers: dict[str, dict[str, Solver]] = {}
    for name, block in blocks.items():
        for change in block.flow.changes if block.flow else ():
            if not change.limit:
                solvers.setdefault(change.what, {})[name] = change.solver
    changes = {what: running.change(chosen) for what, chosen in solvers.items() if len(chosen) > 1}
    return {what: change for what, change in changes.items() if change is not None}


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in nested containers; none if there is anything else."""
    if isinstance(output, Tensor):
        return [output]
    parts = (
        list(output.values()) if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else []
    )
    found = [_tensors(part) for part in parts]
    return [leaf for leaves in found for leaf in leaves] if all(found) else []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def _indented(report: object) -> list[str]:
    return [f"  {line}" for line in str(report).splitlines()]
