"""Changing the number of pieces of a flow: splitting each in two, and projecting many on few.

`split_pieces` leaves the flow as it is and gives it room to learn; `project_pieces` saves parameters and loses as
little of the flow as least squares on its activations allow. `distillation` refines the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.flows import find_flow, flows_of
from ode_detect.ode.gradients import scheme_for
from ode_detect.ode.names import check_name
from ode_detect.ode.observation import hooked, in_evaluation
from ode_detect.ode.pieces import HatFunctions, PiecewiseConstant, parameters_and_buffers, shapes_of
from ode_detect.ode.solvers import FixedStep
from ode_detect.ode.tables import table

from .least_squares import (
    LinearEnd,
    NormalEquations,
    activations,
    affine_map,
    convolution,
    find_linear_end,
    sampled_rows,
    set_affine_map,
)

_CONTAINERS: dict[str, type[PiecewiseConstant] | type[HatFunctions]] = {
    "piecewise": PiecewiseConstant,
    "hat": HatFunctions,
}


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
        twice = _split(block.field, block.duration)
        for module in (twice, *twice.children()):
            module.training = block.field.training
        assert isinstance(block.solver, FixedStep)
        block.field, block.solver = twice, replace(block.solver, steps=2 * block.solver.steps)


def _split(field: nn.Module, duration: float) -> nn.Module:
    """A field of the same weights over time in twice the pieces; ``duration`` is that of constant weights."""
    if isinstance(field, HatFunctions) and len(field.knots) > 1:
        knots = list(field.knots)
        for index in reversed(range(1, len(knots))):
            knots.insert(index, _blended(knots[index - 1 : index + 1], [0.5, 0.5]))
        return HatFunctions(knots, duration=field.duration)
    if isinstance(field, PiecewiseConstant | HatFunctions):
        pieces, duration = _parts(field), field.duration
    else:
        pieces = [field]
    twice = [part for piece in pieces for part in (piece, copy.deepcopy(piece))]
    return (HatFunctions if isinstance(field, HatFunctions) else PiecewiseConstant)(twice, duration=duration)


@dataclass(frozen=True)
class FlowProjection:
    """What a projection did to one flow.

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
    """What `project_pieces` did; ``str()`` is a table.

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
    fits = {name: _Fit(name, block, count, kind) for name, block in _flows(model, flow).items()}
    generator = torch.Generator().manual_seed(seed)
    with in_evaluation(model):
        with ExitStack() as hooks:
            for fit in fits.values():
                hooks.enter_context(fit.collecting(positions, generator))
            _run(model, batches)
        for fit in fits.values():
            fit.solve(ridge)
        with ExitStack() as hooks:
            for fit in fits.values():
                hooks.enter_context(fit.comparing())
            _run(model, batches)
    return ProjectionReport(kind, tuple(fit.finish() for fit in fits.values()))


class _Fit:
    """The projection of one flow, under way.

    Piecewise constant pieces are independent systems of equations; the knots of hat functions are one.
    """

    def __init__(self, name: str, block: ODEBlock, count: int, kind: str) -> None:
        self._name, self._block, self._kind = name, block, kind
        self._pieces = _pieces(name, block, count)
        self._end: LinearEnd | None = None
        self._options = list(_options(name, block, count, kind))
        self._power = 0.0
        self._off: dict[tuple[int, int], float] = {}
        self._equations: dict[tuple[int, int], NormalEquations] = {}
        self._modes = {name: module.training for name, module in self._pieces[0].named_modules()}

    @contextmanager
    def collecting(self, positions: int, generator: torch.Generator) -> Iterator[None]:
        """While the model runs: write down what each option gives, and the equations of its linear end."""
        first = True

        def see(module: nn.Module, inputs: tuple[float, Tensor], slope: Tensor) -> None:
            nonlocal first
            t, h = inputs
            if first:
                first = False
                self._end = _common_end(self._pieces, t, h)
            self._power += _power(slope)
            shares = _shares(self._options[0], t)
            system = shares[0][0] if self._kind == "piecewise" else 0
            where = torch.randperm(h[0, 0].numel(), generator=generator)[:positions].to(h.device)
            for number, option in enumerate(self._options):
                key = (number, system)
                if self._end is None:
                    self._off[key] = self._off.get(key, 0.0) + _power(option(t, h) - slope)
                    continue
                with activations(_parts(option), self._end) as seen:
                    self._off[key] = self._off.get(key, 0.0) + _power(option(t, h) - slope)
                part = _parts(option)[shares[0][0]]
                x, y = sampled_rows(seen[0], slope, convolution(part, self._end), where)
                self._equations.setdefault(key, NormalEquations()).add(x, y, shares)

        with hooked(self._block.field, see):
            yield

    def solve(self, ridge: float) -> None:
        """Choose the options and solve for the linear ends."""
        if not self._off:
            raise ValueError(f"{self._name!r} was not run on the pictures; the model must call it.")
        systems = sorted({system for _, system in self._off})
        numbers = range(len(self._options))
        best = {s: min(numbers, key=lambda o, s=s: self._off[o, s]) for s in systems}  # type: ignore[misc]
        averaged = sum(self._off[0, s] for s in systems) if _alike(self._pieces) else math.nan
        self._averaged = math.sqrt(averaged / max(self._power, 1e-300))
        self._candidate_off = sum(self._off[best[s], s] for s in systems)
        self._candidate = self._composed(best)
        self._fitted = copy.deepcopy(self._candidate)
        if self._end is None:
            return
        chosen, maps = {}, {}
        for s in systems:
            solved = {}
            for o in numbers:
                known = {k: affine_map(_parts(self._options[o])[k], self._end) for k in self._equations[o, s].indices}
                solved[o] = self._equations[o, s].solve(known, ridge)
            chosen[s] = min(numbers, key=lambda o, s=s: self._equations[o, s].residual(solved[o]))  # type: ignore[misc]
            maps[s] = solved[chosen[s]]
        self._fitted = copy.deepcopy(self._composed(chosen))
        for s in systems:
            mean, variance = self._equations[chosen[s], s].statistics(maps[s])
            for k, wanted in maps[s].items():
                set_affine_map(_parts(self._fitted)[k], self._end, wanted, mean, variance)
        self._equations.clear()

    @contextmanager
    def comparing(self) -> Iterator[None]:
        """While the model runs: see what the candidate and the fitted field give."""
        flows = [_with_field(self._block, field) for field in (self._candidate, self._fitted)]
        self._fitted_off, self._output_power, self._output_off = 0.0, 0.0, [0.0, 0.0]

        def see(module: nn.Module, inputs: tuple[float, Tensor], slope: Tensor) -> None:
            self._fitted_off += _power(self._fitted(*inputs) - slope)

        def see_output(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
            self._output_power += _power(out)
            for index, flow in enumerate(flows):
                self._output_off[index] += _power(flow(*inputs) - out)

        with hooked(self._block.field, see), hooked(self._block, see_output):
            yield

    def finish(self) -> FlowProjection:
        """Put the better field in place of the pieces, and say what was done."""
        helped = self._fitted_off < self._candidate_off
        before = self._block.field
        self._block.field = self._fitted if helped else self._candidate
        self._block.field.train(before.training)
        for part in _parts(self._block.field):
            for name, module in part.named_modules():
                module.training = self._modes.get(name, before.training)
        note = "" if self._end else "best candidate only: the field does not end in a convolution and fixed statistics"
        power = max(self._power, 1e-300)
        return FlowProjection(
            name=self._name,
            pieces=len(self._pieces),
            count=len(_parts(self._block.field)),
            parameters=_size(before),
            parameters_after=_size(self._block.field),
            averaged=self._averaged,
            candidate=math.sqrt(self._candidate_off / power),
            fitted=math.sqrt(min(self._fitted_off, self._candidate_off) / power),
            output=math.sqrt(self._output_off[int(helped)] / max(self._output_power, 1e-300)),
            note=note,
        )

    def _composed(self, chosen: dict[int, int]) -> nn.Module:
        if self._kind == "hat":
            return self._options[chosen[0]]
        parts = [_parts(self._options[chosen[s]])[s] for s in sorted(chosen)]
        return PiecewiseConstant(parts, duration=self._options[0].duration)


def _options(name: str, block: ODEBlock, count: int, kind: str) -> Iterator[PiecewiseConstant | HatFunctions]:
    """The fields from which a projection starts: of averages, then of single pieces, the nearest in time first."""
    pieces, solver, field = _pieces(name, block, count), _fixed_steps(name, block), block.field
    assert isinstance(field, PiecewiseConstant)
    make, duration = _CONTAINERS[kind], field.duration
    if kind == "hat" and not _alike(pieces):
        raise ValueError(
            f"the pieces of {name!r} are not of the same build, so hat functions cannot blend them; "
            "project on kind='piecewise'."
        )
    template = make([nn.Identity() for _ in range(count)], duration=duration)
    weights = torch.zeros(count, len(pieces))
    for start, _ in solver.grid(block.duration):
        for k, share in _shares(template, start):
            weights[k, field.index(start)] += share
    if not bool(weights.any(dim=0).all()):
        raise ValueError(
            f"{name!r} has {len(pieces)} pieces and {solver.steps} steps, so that some are never evaluated; "
            f"give its solver {len(pieces)} steps or a multiple."
        )
    if _alike(pieces):
        yield make([_blended(pieces, (row / row.sum()).tolist()) for row in weights], duration=duration).eval()
    orders = [[int(n) for n in row.argsort(descending=True, stable=True) if row[n] > 0] for row in weights]
    for rank in range(max(map(len, orders))):
        nearest = [pieces[order[min(rank, len(order) - 1)]] for order in orders]
        yield make([copy.deepcopy(piece) for piece in nearest], duration=duration).eval()


def _alike(pieces: Sequence[nn.Module]) -> bool:
    return all(shapes_of(piece) == shapes_of(pieces[0]) for piece in pieces)


def _blended(pieces: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """A copy of the first piece with the weighted mean of the floating-point tensors of all."""
    blend = copy.deepcopy(pieces[0])
    tensors = [parameters_and_buffers(piece) for piece in pieces]
    for name, tensor in parameters_and_buffers(blend).items():
        if tensor.is_floating_point():
            parts = [weight * other[name].detach() for weight, other in zip(weights, tensors, strict=True) if weight]
            tensor.detach().copy_(torch.stack(parts).sum(dim=0))
    return blend


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


def _parts(field: nn.Module) -> list[nn.Module]:
    assert isinstance(field, PiecewiseConstant | HatFunctions)
    return list(field.pieces if isinstance(field, PiecewiseConstant) else field.knots)


def _shares(field: PiecewiseConstant | HatFunctions, t: float) -> list[tuple[int, float]]:
    """Which pieces act at a time, with which weights."""
    if isinstance(field, PiecewiseConstant):
        return [(field.index(t), 1.0)]
    left, weight = field.between(t)
    return [(k, share) for k, share in ((left, 1.0 - weight), (left + 1, weight)) if share > 0.0]


def _common_end(pieces: Sequence[nn.Module], t: float, h: Tensor) -> LinearEnd | None:
    ends = {find_linear_end(piece, t, h) if h.dim() == 4 else None for piece in pieces}
    return ends.pop() if len(ends) == 1 else None


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
