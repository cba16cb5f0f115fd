"""Changing the number of pieces of a flow: splitting each in two, and projecting many on few.

`split_pieces` leaves the flow as it is and gives it room to learn; `project_pieces` saves parameters and loses as
little of the flow as least squares on its activations allow. `distillation` refines the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.flows import find_flow, flows_of
from ode_detect.ode.gradients import scheme_for
from ode_detect.ode.names import check_name
from ode_detect.ode.observation import hooked, in_evaluation
from ode_detect.ode.pieces import HatFunctions, PiecewiseConstant, are_alike, blended, halved, parts_of, shares_at
from ode_detect.ode.solvers import FixedStep
from ode_detect.ode.tables import table

from .least_squares import (
    LinearEnd,
    NormalEquations,
    activations,
    best_solution,
    common_end,
    convolution,
    sampled_rows,
    set_solution,
)

_CONTAINERS: dict[str, type[PiecewiseConstant] | type[HatFunctions]] = {
    "piecewise": PiecewiseConstant,
    "hat": HatFunctions,
}
_NO_END = "best candidate only: the field does not end in a convolution and fixed statistics"


def split_pieces(model: nn.Module, *, flow: str | None = None) -> None:
    """Double the pieces and the steps of flows, in place: the way from a shallow network to a deep one.

    The time stays as it is, and each piece acts twice for half of its time (constant weights become two equal pieces;
    K knots become 2K - 1, the new ones half-way). So the weights as a function of time are what they were, and an
    accurate solution is the same; that of Euler with twice the steps differs by the error that it had, O(step).
    Statistics of normalisations are copied. The parameters are new: make a new optimizer, no state is carried over.
    A piece that lasts half a unit is no residual block: `to_resnet` does not take the result.

    Args:
        model: a model, or one `ODEBlock`.
        flow: the flow's path or name, as for `solver_override`; None is all.

    Raises:
        ValueError: no such flow, or an adaptive solver, which has no steps to double.

    Source: Chang et al. 2018, "Multi-level Residual Networks from Dynamical Systems View"; Queiruga et al. 2020,
    "Continuous-in-Depth Neural Networks", sec. 5.
    """
    flows = _flows(model, flow)
    for name, block in flows.items():
        _fixed_steps(name, block)
    for block in flows.values():
        twice = halved(block.field, block.duration)
        for module in (twice, *twice.children()):
            module.training = block.field.training
        assert isinstance(block.solver, FixedStep)
        block.field, block.solver = twice, replace(block.solver, steps=2 * block.solver.steps)


@dataclass(frozen=True)
class FlowProjection:
    """The result of a projection of one flow.

    Residuals are of dh/dt; all are root mean squares as a share of that of the original, on the given pictures.

    Attributes:
        name: of the flow in the model.
        pieces: number of pieces before.
        count: number of pieces or knots after.
        parameters: number of parameters before.
        parameters_after: the same after.
        averaged: residual if the weights of neighbouring pieces are averaged; NaN if their builds are unlike.
        candidate: residual of the best choice among that average and the pieces themselves.
        fitted: residual with the last convolution and its normalisation solved for; equal to ``candidate`` where that
            was not possible or did not help.
        output: difference of the output of the flow, as it is now, for the same input.
        note: what was not done, and why; "" where all was.
    """

    name: str
    pieces: int
    count: int
    parameters: int
    parameters_after: int
    averaged: float
    candidate: float
    fitted: float
    output: float
    note: str = ""


@dataclass(frozen=True)
class ProjectionReport:
    """The result of `project_pieces`; ``str()`` is a table.

    Attributes:
        kind: "piecewise" or "hat".
        flows: in the order of the model.
    """

    kind: str
    flows: tuple[FlowProjection, ...]

    def __str__(self) -> str:
        head = ("flow", f"pieces ({self.kind})", "parameters", "averaged", "candidate", "fitted", "output", "note")
        rows: list[tuple[str, ...]] = []
        for f in self.flows:
            shares = (f"{value:.2%}" for value in (f.averaged, f.candidate, f.fitted, f.output))
            sizes = (f"{f.pieces} -> {f.count}", f"{f.parameters:,} -> {f.parameters_after:,}")
            rows.append((f.name, *sizes, *shares, f.note))
        return table(head, rows, left=range(len(head)))


@torch.no_grad()
def project_pieces(
    model: nn.Module,
    pictures: Iterable[Any],
    *,
    count: int,
    flow: str | None = None,
    kind: str = "piecewise",
    positions: int = 32,
    ridge: float = 1e-4,
    seed: int = 0,
) -> ProjectionReport:
    """Project the N pieces of flows on fewer, by least squares on activations; in place. Time and steps stay.

    The model is run on the pictures. At each evaluation of a flow the new field should give the old one's value for the
    old one's state. Its layers are taken from a candidate: one of the pieces that it stands for, or their average. The
    last convolution and the batch normalisation after it, with fixed statistics, are then solved for exactly. Which
    candidate is best is seen after that. A field that does not end so (in a group normalisation, say) takes its best
    candidate as it is, and the report says so.

    Hat functions are fitted jointly, with the last normalisation's scale equal at all knots, so that blending is
    linear.

    Sums are kept in float64, D * D numbers for each candidate and piece, where D is the size of the kernel of one
    output channel (577 for 3x3 and 64 channels); pictures pass one batch at a time.

    Args:
        model: called on each batch, in evaluation mode.
        pictures: batches; 256 pictures are enough for a small network. They are kept in memory.
        count: K, at least 1 and fewer than the pieces of every flow that is projected.
        flow: the flow's path or name, as for `solver_override`; None is all.
        kind: "piecewise" or "hat".
        positions: how many positions of each state are sampled for the least squares.
        ridge: how strongly the solution is held to the candidate's, as a share of the mean square of the activations.
        seed: of the sampling.

    Returns:
        Residuals, sizes and the difference of outputs, per flow.

    Raises:
        ValueError: a count, flow, kind or number that cannot be, no pictures, an adaptive solver, or hat functions of
            unlike pieces.
    """
    check_name(kind, _CONTAINERS, "pieces")
    if positions < 1 or not ridge > 0:
        raise ValueError(
            f"least squares need 1 position or more and a ridge above 0, not {positions} and {ridge}; leave them out."
        )
    batches = list(pictures)
    if not batches:
        raise ValueError("a projection is fitted to pictures, and there are none; give at least one batch.")
    options = {name: _options_of(name, block, count, kind) for name, block in _flows(model, flow).items()}
    generator = torch.Generator().manual_seed(seed)
    with in_evaluation(model):
        with ExitStack() as hooks:
            sums = {n: hooks.enter_context(_summing(o, positions, generator)) for n, o in options.items()}
            _run(model, batches)
        # The sums of each flow go when its fields are fitted: they are large.
        fitted = {name: _fitted(option, sums.pop(name), ridge) for name, option in options.items()}
        with ExitStack() as hooks:
            compared = {n: hooks.enter_context(_comparing(o, fitted[n])) for n, o in options.items()}
            _run(model, batches)
    return ProjectionReport(kind, tuple(_put(o, fitted[n], compared[n]) for n, o in options.items()))


@dataclass(frozen=True)
class _Options:
    """One flow that is projected, and the fields from which its projection may start."""

    name: str
    block: ODEBlock
    kind: str  # "piecewise", whose pieces are independent systems of equations, or "hat", whose knots are one system
    pieces: list[nn.Module]
    fields: list[PiecewiseConstant | HatFunctions]

    def composed(self, chosen: Mapping[int, int]) -> nn.Module:
        """The field that takes each system of equations from the option that is chosen for it."""
        if self.kind == "hat":
            return self.fields[chosen[0]]
        parts = [parts_of(self.fields[chosen[system]])[system] for system in sorted(chosen)]
        return PiecewiseConstant(parts, duration=self.fields[0].duration)


@dataclass
class _Sums:
    """Sums over the evaluations of a flow: squares of dh/dt, and for each option those of the difference from it.

    The keys are (number of the option, system of equations). ``end`` is None if the pieces have no linear end in
    common.
    """

    power: float = 0.0
    off: dict[tuple[int, int], float] = dataclass_field(default_factory=dict)
    equations: dict[tuple[int, int], NormalEquations] = dataclass_field(default_factory=dict)
    end: LinearEnd | None = None


@dataclass(frozen=True)
class _Fitted:
    """The best option, and the best one after its linear end was solved for, with what is known of them."""

    candidate: nn.Module
    fitted: nn.Module
    averaged: float
    candidate_off: float
    power: float
    note: str


@dataclass
class _Compared:
    """Sums of squares over the second run: of the fitted field's difference, of outputs, and of their differences."""

    fitted_off: float = 0.0
    output_power: float = 0.0
    output_off: list[float] = dataclass_field(default_factory=lambda: [0.0, 0.0])


@contextmanager
def _summing(options: _Options, positions: int, generator: torch.Generator) -> Iterator[_Sums]:
    """While the model runs: sum up how far each option is off, and the equations of its linear end."""
    sums, first = _Sums(), True

    def see(module: nn.Module, inputs: tuple[float, Tensor], slope: Tensor) -> None:
        nonlocal first
        t, h = inputs
        if first:
            first, sums.end = False, common_end(options.pieces, t, h)
        sums.power += _power(slope)
        shares = shares_at(options.fields[0], t)
        system = shares[0][0] if options.kind == "piecewise" else 0
        where = torch.randperm(h[0, 0].numel(), generator=generator)[:positions].to(h.device)
        for number, option in enumerate(options.fields):
            key = (number, system)
            if sums.end is None:
                sums.off[key] = sums.off.get(key, 0.0) + _power(option(t, h) - slope)
                continue
            with activations(parts_of(option), sums.end) as seen:
                sums.off[key] = sums.off.get(key, 0.0) + _power(option(t, h) - slope)
            x, y = sampled_rows(seen[0], slope, convolution(parts_of(option)[shares[0][0]], sums.end), where)
            sums.equations.setdefault(key, NormalEquations()).add(x, y, shares)

    with hooked(options.block.field, see):
        yield sums


def _fitted(options: _Options, sums: _Sums, ridge: float) -> _Fitted:
    """Choose among the options, and solve for the linear ends."""
    if not sums.off:
        raise ValueError(f"{options.name!r} was not run on the pictures; the model must call it.")
    systems = sorted({system for _, system in sums.off})
    numbers = range(len(options.fields))
    best = {s: min(numbers, key=lambda o, s=s: sums.off[o, s]) for s in systems}  # type: ignore[misc]
    averaged = sum(sums.off[0, s] for s in systems) if are_alike(options.pieces) else math.nan
    candidate = options.composed(best)
    if sums.end is None:
        fitted, note = copy.deepcopy(candidate), _NO_END
    else:
        parts = [parts_of(field) for field in options.fields]
        solved = {
            s: best_solution([parts[o] for o in numbers], [sums.equations[o, s] for o in numbers], sums.end, ridge)
            for s in systems
        }
        fitted, note = copy.deepcopy(options.composed({s: number for s, (number, _) in solved.items()})), ""
        for s, (number, maps) in solved.items():
            set_solution(parts_of(fitted), sums.end, sums.equations[number, s], maps)
    return _Fitted(
        candidate,
        fitted,
        averaged=math.sqrt(averaged / max(sums.power, 1e-300)),
        candidate_off=sum(sums.off[best[s], s] for s in systems),
        power=sums.power,
        note=note,
    )


@contextmanager
def _comparing(options: _Options, fitted: _Fitted) -> Iterator[_Compared]:
    """While the model runs: sum up how far the candidate and the fitted field are off."""
    flows = [_with_field(options.block, field) for field in (fitted.candidate, fitted.fitted)]
    sums = _Compared()

    def see(module: nn.Module, inputs: tuple[float, Tensor], slope: Tensor) -> None:
        sums.fitted_off += _power(fitted.fitted(*inputs) - slope)

    def see_output(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        sums.output_power += _power(out)
        for index, flow in enumerate(flows):
            sums.output_off[index] += _power(flow(*inputs) - out)

    with hooked(options.block.field, see), hooked(options.block, see_output):
        yield sums


def _put(options: _Options, fitted: _Fitted, compared: _Compared) -> FlowProjection:
    """Put the better field in place of the pieces, and say what was done."""
    helped = compared.fitted_off < fitted.candidate_off
    block, before = options.block, options.block.field
    block.field = fitted.fitted if helped else fitted.candidate
    block.field.train(before.training)
    modes = {name: module.training for name, module in options.pieces[0].named_modules()}
    for part in parts_of(block.field):
        for name, module in part.named_modules():
            module.training = modes.get(name, before.training)
    power = max(fitted.power, 1e-300)
    return FlowProjection(
        name=options.name,
        pieces=len(options.pieces),
        count=len(parts_of(block.field)),
        parameters=_size(before),
        parameters_after=_size(block.field),
        averaged=fitted.averaged,
        candidate=math.sqrt(fitted.candidate_off / power),
        fitted=math.sqrt(min(compared.fitted_off, fitted.candidate_off) / power),
        output=math.sqrt(compared.output_off[int(helped)] / max(compared.output_power, 1e-300)),
        note=fitted.note,
    )


def _options_of(name: str, block: ODEBlock, count: int, kind: str) -> _Options:
    pieces = _pieces(name, block, count)
    return _Options(name, block, kind, pieces, list(_fields(name, block, pieces, count, kind)))


def _fields(
    name: str, block: ODEBlock, pieces: list[nn.Module], count: int, kind: str
) -> Iterator[PiecewiseConstant | HatFunctions]:
    """The fields from which a projection starts: of averages, then of single pieces, the nearest in time first."""
    solver, field = _fixed_steps(name, block), block.field
    assert isinstance(field, PiecewiseConstant)
    make, duration = _CONTAINERS[kind], field.duration
    if kind == "hat" and not are_alike(pieces):
        raise ValueError(
            f"the pieces of {name!r} are not of the same build, so hat functions cannot blend them; "
            "project on kind='piecewise'."
        )
    template = make([nn.Identity() for _ in range(count)], duration=duration)
    weights = torch.zeros(count, len(pieces))
    for start, _ in solver.grid(block.duration):
        for k, share in shares_at(template, start):
            weights[k, field.index(start)] += share
    if not bool(weights.any(dim=0).all()):
        raise ValueError(
            f"{name!r} has {len(pieces)} pieces and {solver.steps} steps, so that some are never evaluated; "
            f"give its solver {len(pieces)} steps or a multiple."
        )
    if are_alike(pieces):
        yield make([blended(pieces, (row / row.sum()).tolist()) for row in weights], duration=duration).eval()
    orders = [[int(n) for n in row.argsort(descending=True, stable=True) if row[n] > 0] for row in weights]
    for rank in range(max(map(len, orders))):
        nearest = [pieces[order[min(rank, len(order) - 1)]] for order in orders]
        yield make([copy.deepcopy(piece) for piece in nearest], duration=duration).eval()


def _flows(model: nn.Module, flow: str | None) -> dict[str, ODEBlock]:
    flows = flows_of(model)
    names = list(flows) if flow is None else [find_flow(flows, flow)]
    return {name: flows[name] for name in names}


def _fixed_steps(name: str, block: ODEBlock) -> FixedStep:
    if not isinstance(block.solver, FixedStep):
        raise ValueError(
            f"the pieces of {name!r} are changed along its steps, and {block.solver.method!r} chooses its own; "
            f"set its solver to FixedStep('euler', steps=...) first."
        )
    return block.solver


def _pieces(name: str, block: ODEBlock, count: int) -> list[nn.Module]:
    if not isinstance(block.field, PiecewiseConstant):
        raise ValueError(
            f"{name!r} has no pieces to project: its field is a {type(block.field).__name__}, not a PiecewiseConstant; "
            "name another flow."
        )
    pieces = list(block.field.pieces)
    if not 1 <= count < len(pieces):
        raise ValueError(
            f"{name!r} has {len(pieces)} pieces and cannot be projected on {count}; give a count from 1 to "
            f"{len(pieces) - 1}."
        )
    return pieces


def _with_field(block: ODEBlock, field: nn.Module) -> ODEBlock:
    return ODEBlock(
        field=field,
        solver=block.solver,
        gradient=scheme_for(block.gradient, block.solver),
        duration=block.duration,
        name=block.name,
        allow_stateful_field=True,
        check_finite=False,
    )


def _run(model: nn.Module, batches: Sequence[Any]) -> None:
    for batch in batches:
        model(batch)


def _power(x: Tensor) -> float:
    return float(x.detach().square().sum(dtype=torch.float32 if x.device.type == "mps" else torch.float64))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
