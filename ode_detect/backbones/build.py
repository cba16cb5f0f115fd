"""From a config to the flows that stand in place of the tail of a stage; every backbone builds its flows here."""

# No annotations as strings: TorchScript reads those of forward().

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase
from torch import Tensor, nn

from ode_detect.ode import Adaptive, Checkpoint, FixedStep, HatFunctions, ODEBlock, Reversible, in_pieces
from ode_detect.ode.adaptive import Solver
from ode_detect.ode.fields import ACTIVATIONS, FIELDS, NORMS, Norm
from ode_detect.ode.gradients import Gradient, make_gradient, scheme_for
from ode_detect.ode.names import check_name
from ode_detect.ode.solvers import TABLEAUS

ROLES = ("ode", "twin", "ablation")


class FlowBlock(CNNBlockBase):
    """An `ODEBlock` in the place of the residual blocks that it replaces.

    Args:
        flow: (N, C, H, W) -> (N, C, H, W).
        channels: C.
    """

    def __init__(self, *, flow: ODEBlock, channels: int) -> None:
        super().__init__(channels, channels, 1)
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of time, shape of ``x``."""
        return self.flow(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what ``torch.jit.script`` takes for this block: the steps of its flow, traced.

        Raises:
            ValueError: the flow does not take fixed steps, or blends its weights.
        """
        return ScriptedFlow(flow=self.flow, channels=self.in_channels)


class ScriptedFlow(nn.Module):
    """The steps of a flow as a graph, for TorchScript.

    Args:
        flow: in fixed steps; its weights are shared.
        channels: C.

    Raises:
        ValueError: the flow does not take fixed steps, or blends its weights.
    """

    def __init__(self, *, flow: ODEBlock, channels: int) -> None:
        super().__init__()
        if isinstance(flow.field, HatFunctions):
            raise ValueError(
                f"a script evaluates layers as they are, and {flow.name!r} blends the weights of hat functions; export "
                "it by ode_detect.ode.export_model, or build it with MODEL.ODE.PIECES piecewise."
            )
        if not isinstance(flow.solver, FixedStep):
            raise ValueError(
                f"a script has a fixed number of evaluations, and {flow.name!r} is solved by {flow.solver}, which "
                "chooses its steps; set a FixedStep, by solver_override(model, method='rk4', steps=4) or "
                "MODEL.ODE.METHOD and STEPS."
            )
        traced = copy.copy(flow)
        traced.gradient, traced.check_finite = scheme_for(flow.gradient), False
        weight = next(flow.parameters())
        state = torch.zeros(1, channels, 8, 8, device=weight.device, dtype=weight.dtype)
        with warnings.catch_warnings():
            # Of shapes that are looked at, as group normalisation does: they are no part of the result.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            self.steps = torch.jit.trace(traced, state, check_trace=False)
        self.stride = 1

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of time, shape of ``x``."""
        return self.steps(x)


class ExtraChannels(CNNBlockBase):
    """Channels of zeros behind those of a state: room in which a flow need not cross itself.

    Args:
        channels: C of the input.
        extra: channels that are added.

    Source: Dupont et al. 2019, "Augmented Neural ODEs".
    """

    def __init__(self, *, channels: int, extra: int) -> None:
        super().__init__(channels, channels + extra, 1)
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + extra, H, W)."""
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))


@dataclass(frozen=True)
class Tail:
    """The shape-keeping part of a stage, whose place flows take.

    Attributes:
        stage: its name; the flow is called "STAGE.flow", those behind it "STAGE.flow2", ...
        channels: C of the state.
        blocks: residual blocks that one flow replaces, >= 1: its pieces if the config does not count them.
        norm: how the backbone normalises, for MODEL.ODE.NORM "".
        norm_key: the config key that says so.
        field: what MODEL.ODE.FIELD "auto" means.
        bottleneck: channels of the 3x3 convolution of a bottleneck field; None is C / 4.
        groups: of that convolution.
        dilation: of the 3x3 convolutions.
    """

    stage: str
    channels: int
    blocks: int
    norm: str
    norm_key: str
    field: str = "basic"
    bottleneck: int | None = None
    groups: int = 1
    dilation: int = 1


def check_flows(cfg: CfgNode) -> None:
    """Check what ``MODEL.ODE`` says in every role, so that a twin is refused where its ODE network would be.

    Raises:
        ValueError: an unknown name or a count out of range, with what to do.
    """
    ode = cfg.MODEL.ODE
    check_name(ode.ROLE, ROLES, "MODEL.ODE.ROLE")
    check_name(ode.ACTIVATION, ACTIVATIONS, "MODEL.ODE.ACTIVATION")
    check_name(ode.FIELD, ["auto", *FIELDS], "MODEL.ODE.FIELD")
    if ode.STEPS < 0:
        raise ValueError(
            f"MODEL.ODE.STEPS must be an integer of 1 or more, or 0, not {ode.STEPS}; 0 is one step for each piece."
        )
    if ode.STACK < 1:
        raise ValueError(f"MODEL.ODE.STACK counts flows behind one another, 1 or more, not {ode.STACK}; 1 is usual.")
    if ode.EXTRA_CHANNELS < 0:
        raise ValueError(
            f"MODEL.ODE.EXTRA_CHANNELS counts channels of zeros, 0 or more, not {ode.EXTRA_CHANNELS}; 0 adds none."
        )


def make_flows(cfg: CfgNode, tail: Tail) -> list[CNNBlockBase]:
    """Build what ``MODEL.ODE`` puts in place of the tail of a stage.

    Args:
        cfg: the config; `check_flows` has seen it.
        tail: what is known of the tail.

    Returns:
        ``MODEL.ODE.STACK`` flows to be called in a row, each with weights of its own; before them the layer that adds
        ``MODEL.ODE.EXTRA_CHANNELS``, if any. (N, C, H, W) -> (N, C + EXTRA_CHANNELS, H, W).

    Raises:
        ValueError: a value that cannot be built, with what to do.
    """
    ode = cfg.MODEL.ODE
    channels = tail.channels + ode.EXTRA_CHANNELS
    names = [f"{tail.stage}.flow{index if index > 1 else ''}" for index in range(1, ode.STACK + 1)]
    blocks: list[CNNBlockBase] = [FlowBlock(flow=_flow(cfg, tail, name), channels=channels) for name in names]
    return [ExtraChannels(channels=tail.channels, extra=ode.EXTRA_CHANNELS), *blocks] if ode.EXTRA_CHANNELS else blocks


def norm_layer(name: str) -> Norm:
    """What a field takes for a normalisation of a config: its name; for "BN", which fields do not offer, the layer."""
    return nn.BatchNorm2d if name == "BN" else name


def _flow(cfg: CfgNode, tail: Tail, name: str) -> ODEBlock:
    ode = cfg.MODEL.ODE
    count = ode.NUM_PIECES or (1 if ode.PIECES == "constant" else tail.blocks)
    duration = ode.DURATION or None
    norm = _norm(cfg, tail)
    return ODEBlock(
        field=in_pieces(ode.PIECES, count, lambda: _field(cfg, tail, norm), duration=duration),
        solver=_solver(cfg, count),
        gradient=_gradient(cfg),
        duration=duration,
        name=name,
        # Its statistics are those of the steps it was trained with; after a turn of the dial they are estimated again.
        allow_stateful_field=norm == "BN",
    )


def _norm(cfg: CfgNode, tail: Tail) -> str:
    ode = cfg.MODEL.ODE
    norm, key = (ode.NORM, "MODEL.ODE.NORM") if ode.NORM else (tail.norm, tail.norm_key)
    if norm == "BN" and ode.PIECES != "piecewise":
        raise ValueError(
            f"a flow with MODEL.ODE.PIECES {ode.PIECES} cannot be normalised by 'BN' (from {key}): its layers are "
            f"evaluated at several times, each of which has other statistics. Set MODEL.ODE.NORM to one of "
            f"{', '.join(NORMS)}, or PIECES to piecewise, where each piece has its own statistics."
        )
    if norm not in ("BN", *NORMS):
        raise ValueError(
            f"a flow cannot be normalised by {norm!r} (from {key}): its layers are evaluated at several times. "
            f"Set MODEL.ODE.NORM to one of {', '.join(NORMS)}."
        )
    return str(norm)


def _field(cfg: CfgNode, tail: Tail, norm: str) -> nn.Module:
    ode = cfg.MODEL.ODE
    kind = tail.field if ode.FIELD == "auto" else ode.FIELD
    arguments: dict[str, Any] = {
        "channels": tail.channels + ode.EXTRA_CHANNELS,
        "norm": norm_layer(norm),
        "activation": ode.ACTIVATION,
        "dilation": tail.dilation,
    }
    if kind == "bottleneck":
        arguments |= {"bottleneck_channels": tail.bottleneck, "groups": tail.groups}
    return FIELDS[kind](**arguments)


def _gradient(cfg: CfgNode) -> Gradient:
    ode = cfg.MODEL.ODE
    if ode.GRADIENT in ("adjoint", "reversible") and ode.PROJECTION != "none":
        raise ValueError(
            f"MODEL.ODE.GRADIENT {ode.GRADIENT} goes backwards through the flow, which one projected by "
            f"{ode.PROJECTION!r} does not allow; set MODEL.ODE.PROJECTION none, or GRADIENT checkpoint."
        )
    if ode.GRADIENT == "checkpoint":
        return Checkpoint(every=ode.CHECKPOINT_EVERY, states=ode.CHECKPOINT_STATES or None)
    if ode.GRADIENT == "reversible":
        return Reversible(coupling=ode.COUPLING)
    return make_gradient(ode.GRADIENT, ode.MEMORY_BUDGET * 2**20 if ode.GRADIENT == "auto" else None)


def _solver(cfg: CfgNode, pieces: int) -> Solver:
    ode = cfg.MODEL.ODE
    if ode.METHOD in TABLEAUS:
        return FixedStep(ode.METHOD, steps=ode.STEPS or pieces, projection=ode.PROJECTION)
    if ode.PROJECTION != "none":
        raise ValueError(
            f"MODEL.ODE.PROJECTION {ode.PROJECTION!r} belongs to the steps of a fixed-step method, and "
            f"{ode.METHOD!r} is not one. Set PROJECTION to 'none', or METHOD to one of {', '.join(TABLEAUS)}."
        )
    arguments: dict[str, Any] = {"rtol": ode.RTOL, "atol": ode.ATOL, "max_evaluations": ode.MAX_EVALUATIONS}
    if ode.STEPS:
        arguments["steps"] = ode.STEPS
    return Adaptive(ode.METHOD, **arguments)
