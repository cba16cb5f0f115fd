"""Optimizers and schedules of the learning rate by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2s
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from ode_detect.ode.names import check_name

from .checkpoint import CheckpointError


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER.OPTIMIZER``, with Detectron2's ``SOLVER`` keys for rates, decay and clipping."""
    if check_name(cfg.SOLVER.OPTIMIZER, ("SGD", "AdamW"), "SOLVER.OPTIMIZER") == "SGD":
        return build_sgd(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """The names of an optimizer's parameters, in the order in which its state counts them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], names: Sequence[str], saved_names: Sequence[str] | None
) -> dict[str, Any]:
    """A saved state, such as momentum, with the rates, decays and groups of an optimizer.

    Args:
        optimizer: as the config now builds it.
        saved: ``state_dict()`` of the optimizer that a run began with, whose parameters may be grouped otherwise.
        names: of the parameters, in the optimizer's order.
        saved_names: in the order of the saved one; None in checkpoints of earlier versions.

    Returns:
        What ``optimizer.load_state_dict`` takes. A parameter without a saved state has none.

    Raises:
        CheckpointError: the optimizers are of two kinds, or it is not known which parameter is which.
    """
    now = optimizer.state_dict()
    before, after = (_kind(state["param_groups"]) for state in (saved, now))
    if before != after:
        raise CheckpointError(
            f"a run goes on with the optimizer that it began with, whose state is in its checkpoints, and that is "
            f"{before}, while SOLVER.OPTIMIZER is {after}. Set SOLVER.OPTIMIZER {before}, or start another run from "
            "this one's weights: MODEL.WEIGHTS, and another OUTPUT_DIR. Rates, decay, momentum and schedule may change."
        )
    if saved_names is None:
        sizes, counts = ([len(group["params"]) for group in state["param_groups"]] for state in (saved, now))
        if sizes != counts:
            raise CheckpointError(
                f"the checkpoint is of an earlier version, which does not name the parameters, and its optimizer has "
                f"them in groups of {sizes}, while the config makes groups of {counts}. Set FREEZE_AT, BIAS_LR_FACTOR, "
                "WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS as the run began, or start another run from its weights."
            )
        saved_names = names
    states = {saved_names[number]: state for number, state in saved["state"].items()}
    return {**now, "state": {number: states[name] for number, name in enumerate(names) if name in states}}


def _kind(groups: Sequence[dict[str, Any]]) -> str:
    return "AdamW" if "betas" in groups[0] else "SGD"


SCHEDULERS = ("OneCycleLR", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of ``SOLVER.LR_SCHEDULER_NAME``, for the rates that the optimizer has.

    OneCycleLR rises linearly from ``WARMUP_FACTOR`` to 1 in ``WARMUP_ITERS`` iterations, and falls as half a cosine
    that begins there to 0 at ``MAX_ITER``. The others are Detectron2's.
    """
    name = check_name(cfg.SOLVER.LR_SCHEDULER_NAME, SCHEDULERS, "SOLVER.LR_SCHEDULER_NAME")
    if name != "OneCycleLR":
        return build_detectron2s(cfg, optimizer)
    last = cfg.SOLVER.MAX_ITER
    # A run that is shorter than its warm-up only rises; the cosine needs one iteration to be defined.
    rise = min(cfg.SOLVER.WARMUP_ITERS, last - 1) / last
    cycle = WarmupParamScheduler(
        CosineParamScheduler(1.0, 0.0), cfg.SOLVER.WARMUP_FACTOR, rise, "linear", rescale_interval=True
    )
    return LRMultiplier(optimizer, multiplier=cycle, max_iter=last)


def check_warmup(cfg: CfgNode) -> list[str]:
    """A warning if most of a run is warm-up: a schedule that falls is then near 0 when the rate has risen to it."""
    last, rise = cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS
    if last >= 2 * rise:
        return []
    return [
        f"the learning rate rises from {cfg.SOLVER.WARMUP_FACTOR:g} of SOLVER.BASE_LR over SOLVER.WARMUP_ITERS {rise} "
        f"iterations, and SOLVER.MAX_ITER is {last}: most of the run is warm-up, at a rate far below BASE_LR. "
        f"Set WARMUP_ITERS to about {max(last // 10, 1)}."
    ]
