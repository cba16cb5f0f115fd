"""Section ``flow``: a fixed-step flow against the discrete stage with the same blocks, and against torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ode_detect.ode import FixedStep, ODEBlock, PiecewiseConstant
from ode_detect.ode.diffeq import plain_odeint
from ode_detect.ode.difference import difference
from ode_detect.studies.timing import Case, Ratio, Side

from .stages import Stage, train_step

DISCRETE_AIM, TORCHDIFFEQ_AIM = 1.02, 1.0
STAGES = (
    Stage("R-101 res4, 1x1024x30x40", "bottleneck", 22, (1, 1024, 30, 40)),
    Stage("GN 64 channels, 16x64x64x64", "basic", 8, (16, 64, 64, 64)),
    Stage("GN 64 channels, 16x64x32x32", "basic", 8, (16, 64, 32, 32)),
    Stage("GN 64 channels, 1x64x8x8", "basic", 8, (1, 64, 8, 8)),
)
QUICK_STAGES = (
    Stage("GN, 1x32x4x4", "basic", 2, (1, 32, 4, 4)),
    Stage("res4, 1x16x4x4", "bottleneck", 2, (1, 16, 4, 4)),
)
METHODS = ("euler", "midpoint", "rk4")


class PlainLoop(nn.Module):
    """What the flow has to compute and nothing else: h <- relu(h + f(h)), piece by piece."""

    def __init__(self, field: PiecewiseConstant) -> None:
        super().__init__()
        self.field = field

    def forward(self, h: Tensor) -> Tensor:
        """The state after the last piece, shape of ``h``."""
        for index, piece in enumerate(self.field.pieces):
            h = F.relu(h + piece(float(index), h))
        return h


class Torchdiffeq(nn.Module):
    """The same field, solved by torchdiffeq as its user would."""

    def __init__(self, field: PiecewiseConstant, *, method: str, steps: int) -> None:
        super().__init__()
        self.field, self.method, self.steps = field, method, steps

    def forward(self, h: Tensor) -> Tensor:
        """The state at the end of time, shape of ``h``."""
        return plain_odeint(self.field, h, method=self.method, steps=self.steps, duration=self.field.duration)


def cases(*, quick: bool) -> Iterator[Case]:
    """Forward and training step of each stage, then each method for few and many steps."""
    stages = QUICK_STAGES if quick else STAGES
    for stage in stages:
        yield from _against_discrete(stage)
    for stage in stages:
        if stage.shape != (16, 64, 64, 64):
            yield from _against_torchdiffeq(stage, (2,) if quick else (4, 16))


def _against_discrete(stage: Stage) -> Iterator[Case]:
    blocks, field = stage.build()
    flow = ODEBlock(field=field, solver=FixedStep("euler", steps=stage.blocks, projection="relu"))
    sides: dict[str, tuple[str, nn.Module]] = {
        "flow": ("ode", flow),
        "residual blocks": ("twin", blocks),
        "plain loop": ("twin", PlainLoop(field)),
    }
    h = stage.state()
    with torch.no_grad():
        reference = blocks(h)
        differences = {n: difference([reference], [m(h)]).relative_largest() for n, (_, m) in sides.items()}
    for what, run in (("forward", _forward), ("training step", train_step)):
        yield Case(
            name=f"{stage.name}, {stage.blocks} blocks, {what}",
            sides={
                name: Side(role, partial(run, model, h), metrics={"output_difference": differences[name]})
                for name, (role, model) in sides.items()
            },
            ratios=[Ratio("flow", other, DISCRETE_AIM) for other in ("residual blocks", "plain loop")],
            weight=4.0,
        )


def _against_torchdiffeq(stage: Stage, steps: tuple[int, ...]) -> Iterator[Case]:
    _, field = stage.build()
    h = stage.state()
    runs: tuple[tuple[str, Callable[..., object]], ...] = (("forward", _forward), ("training step", train_step))
    for method in METHODS:
        for count in steps:
            solver = FixedStep(method, steps=count)
            flow = ODEBlock(field=field, solver=solver)
            theirs = Torchdiffeq(field, method=method, steps=count)
            # The training step is long: once, where the cost of a step is largest in it.
            for what, run in runs if count == steps[-1] and stage.kind == "basic" else runs[:1]:
                yield Case(
                    name=f"{stage.name}, {method}, {count} steps, {what}",
                    sides={
                        "flow": Side("ode", partial(run, flow, h), {"evaluations": solver.evaluations}),
                        "torchdiffeq": Side("baseline", partial(run, theirs, h)),
                    },
                    ratios=[Ratio("flow", "torchdiffeq", TORCHDIFFEQ_AIM)],
                )


@torch.no_grad()
def _forward(model: nn.Module, h: Tensor) -> Tensor:
    return model(h)
