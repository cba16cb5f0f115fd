"""Section ``gradients``: what each way to pay for a gradient keeps, takes and gives, by the number of steps."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from ode_detect.ode import Adjoint, Backprop, Checkpoint, FixedStep, ODEBlock, Reversible, record_solves
from ode_detect.ode.difference import difference
from ode_detect.ode.gradients import Gradient
from ode_detect.ode.memory import bytes_kept
from ode_detect.studies.process_memory import growth
from ode_detect.studies.timing import Case, Ratio, Side

from .stages import Stage, train_step

TIME_AIM, CONSTANT_AIM, BINOMIAL_AIM = 1.5, 1.1, 0.25
EXACT_AIMS = {torch.float32: 1e-5, torch.float64: 1e-10}
STAGES = (
    Stage("R-101 res4, 1x1024x15x20", "bottleneck", 22, (1, 1024, 15, 20)),
    Stage("GN 64 channels, 2x64x32x32", "basic", 8, (2, 64, 32, 32)),
)
STEPS, MIDDLE = (4, 8, 22, 64), 22
QUICK_STAGES, QUICK_STEPS, QUICK_MIDDLE = (Stage("GN, 1x32x4x4", "basic", 2, (1, 32, 4, 4)),), (4, 8), 8
_MIB = 2**20
BACKPROP, CHECKPOINT, BINOMIAL = "backprop", "checkpoint", "binomial, 4 states"
REVERSIBLE, COUPLED, ADJOINT = "reversible", "backprop, coupled scheme", "adjoint"
MODES: dict[str, Gradient] = {
    BACKPROP: Backprop(),
    CHECKPOINT: Checkpoint(),
    BINOMIAL: Checkpoint(states=4),
    REVERSIBLE: Reversible(),
    COUPLED: Reversible(keep=True),
    ADJOINT: Adjoint(),
}
# What a gradient is compared with: backpropagation through the same scheme.
SAME_SCHEME = {CHECKPOINT: BACKPROP, BINOMIAL: BACKPROP, REVERSIBLE: COUPLED, ADJOINT: BACKPROP}


def cases(*, quick: bool) -> Iterator[Case]:
    """One case per stage and number of steps, then one per stage about bytes."""
    stages, steps, middle = (QUICK_STAGES, QUICK_STEPS, QUICK_MIDDLE) if quick else (STAGES, STEPS, MIDDLE)
    for stage in stages:
        costs: dict[int, dict[str, dict[str, float]]] = {}
        for count in steps:
            # The adjoint takes minutes for many steps.
            flows = {mode: f for mode, f in _flows(stage, count).items() if mode != ADJOINT or count <= middle}
            costs[count] = {mode: _cost(flow, stage.state(), count) for mode, flow in flows.items()}
            # Rounding grows with the steps: the gradients are compared in the middle and where there are most.
            stated = count in (middle, steps[-1])
            metrics = _differences(stage, count, flows) if stated else {}
            yield _training_step(stage, count, flows, costs[count], metrics, stated=stated)
        yield _bytes(stage, costs, few=steps[0], middle=middle, many=steps[-1])


def _flows(stage: Stage, steps: int, dtype: torch.dtype = torch.float32) -> dict[str, ODEBlock]:
    _, field = stage.build(dtype=dtype)
    solver = FixedStep("euler", steps=steps)
    return {mode: ODEBlock(field=field, solver=solver, gradient=gradient) for mode, gradient in MODES.items()}


def _training_step(
    stage: Stage,
    steps: int,
    flows: Mapping[str, ODEBlock],
    costs: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, float]],
    *,
    stated: bool,
) -> Case:
    sides = {
        mode: Side(
            "twin" if mode in (BACKPROP, COUPLED) else "ode",
            partial(train_step, flow, stage.state()),
            cost=costs[mode],
            metrics=metrics.get(mode, {}),
        )
        for mode, flow in flows.items()
    }
    aims = {CHECKPOINT: TIME_AIM, REVERSIBLE: TIME_AIM}
    ratios = [Ratio(mode, other, aims.get(mode)) for mode, other in SAME_SCHEME.items() if mode in flows]
    ratios.append(Ratio(REVERSIBLE, BACKPROP))
    for mode in metrics:
        for dtype, aim in EXACT_AIMS.items():
            ratios.append(Ratio(mode, SAME_SCHEME[mode], None if mode == ADJOINT else aim, _difference_name(dtype)))
    return Case(f"{stage.name}, {steps} steps, training step", sides, ratios if stated else [])


def _bytes(
    stage: Stage, costs: Mapping[int, Mapping[str, Mapping[str, float]]], *, few: int, middle: int, many: int
) -> Case:
    def side(role: str, mode: str, steps: int) -> tuple[str, Side]:
        return f"{mode}, {steps} steps", Side(role, cost=costs[steps][mode])

    sides = dict(
        [
            side("ode", REVERSIBLE, many),
            side("ode", REVERSIBLE, few),
            side("ode", BINOMIAL, middle),
            side("ode", CHECKPOINT, middle),
            side("twin", BACKPROP, middle),
        ]
    )
    constant, reference, binomial, checkpoint, backprop = sides
    ratios = []
    for quantity in ("kept_mib", "held_mib"):
        # What the system holds is noise for tiny states, and unknown on some systems.
        if all(side.cost.get(quantity, 0.0) > 0 for side in sides.values()):
            stated = quantity == "kept_mib"
            ratios.append(Ratio(constant, reference, CONSTANT_AIM if stated else None, quantity))
            ratios.append(Ratio(binomial, backprop, BINOMIAL_AIM if stated else None, quantity))
            ratios.append(Ratio(checkpoint, backprop, None, quantity))
    return Case(f"{stage.name}, memory", sides, ratios)


def _cost(flow: ODEBlock, h: Tensor, steps: int) -> dict[str, float]:
    """Steps, evaluations, bytes that autograd keeps, and by how much the process grows.

    ``held_mib`` is the growth by a forward pass whose output is held, the output itself included; ``peak_mib`` that in
    a training step, at most, the gradients of the weights included.
    """
    h = h.detach().requires_grad_()
    flow(h)  # what the first evaluation of this shape leaves behind for good is not the gradient's
    forward = growth(lambda: flow(h))
    with record_solves(flow, measure=False) as record:
        step = growth(lambda: train_step(flow, h))
    cost = {
        "steps": steps,
        "evaluations": record.total.forward_evaluations,
        "backward_evaluations": record.total.backward_evaluations,
        "kept_mib": bytes_kept(lambda: flow(h), without=[h, *flow.parameters(), *flow.buffers()]) / _MIB,
    }
    if forward is not None and step is not None:
        cost |= {"held_mib": forward.held / _MIB, "peak_mib": step.peak / _MIB}
    return cost


def _differences(stage: Stage, steps: int, modes: Container[str]) -> dict[str, dict[str, float]]:
    """For each of the modes, how far its gradients are from backpropagation's, by precision."""
    compared = {mode: other for mode, other in SAME_SCHEME.items() if mode in modes}
    differences: dict[str, dict[str, float]] = {mode: {} for mode in compared}
    for dtype in EXACT_AIMS:
        flows, h = _flows(stage, steps, dtype), stage.state(dtype=dtype)
        exact = {mode: train_step(flows[mode], h) for mode in (BACKPROP, COUPLED)}
        for mode, other in compared.items():
            apart = difference(exact[other], train_step(flows[mode], h))
            differences[mode][_difference_name(dtype)] = apart.relative_norm()
    return differences


def _difference_name(dtype: torch.dtype) -> str:
    return f"gradient_difference_{str(dtype).removeprefix('torch.')}"
