"""Batch and learning rate: what Detectron2 scales by the number of processes, and what the linear rule would say."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from ode_detect.task import ConfigError

_SCALED = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")


def check_batch(cfg: CfgNode, world: int) -> None:
    """Check that processes can share the batch.

    Raises:
        ConfigError: they cannot share it equally, or ``REFERENCE_WORLD_SIZE`` processes could not.
    """
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and batch % reference):
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE processes share SOLVER.IMS_PER_BATCH pictures equally, and {reference} "
            f"cannot share {batch}; give the number of processes that the batch was chosen for, or 0."
        )
    if not reference and batch % world:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is the batch over all processes, and {batch} pictures cannot be shared equally by "
            f"{world}; set it to a multiple of {world}."
        )


def scaled_to_processes(cfg: CfgNode, world: int) -> tuple[CfgNode, list[str]]:
    """Scale as Detectron2 does where ``SOLVER.REFERENCE_WORLD_SIZE`` is set and is not the number of processes.

    Args:
        cfg: the config, not frozen.
        world: number of processes, over all machines.

    Returns:
        The config with the same batch for each process, the learning rate times as high and the schedule as many times
        shorter as there are more processes; and a line that says so.

    Raises:
        ConfigError: the batch cannot be shared.
    """
    check_batch(cfg, world)
    if cfg.SOLVER.REFERENCE_WORLD_SIZE in (0, world):
        return cfg, []
    before, cfg = cfg, DefaultTrainer.auto_scale_workers(cfg, world)
    changed = [
        f"SOLVER.{key} {_short(before.SOLVER[key])} -> {_short(cfg.SOLVER[key])}"
        for key in ("IMS_PER_BATCH", *_SCALED)
        if before.SOLVER[key] != cfg.SOLVER[key]
    ]
    reference = before.SOLVER.REFERENCE_WORLD_SIZE
    return cfg, [f"the config is for {reference} processes and this run has {world}, so: {', '.join(changed)}"]


def linear_rule(cfg: CfgNode, reference: CfgNode, name: str) -> list[str]:
    """What the linear scaling rule (Goyal et al. 2017) says to a batch that is not that of the config file.

    Args:
        cfg: as it is trained.
        reference: the config file without the command line.
        name: of the file.

    Returns:
        A line, if the batches differ and the rule would give other values than ``cfg`` has. Nothing is changed.
    """
    solver, batch = reference.SOLVER, cfg.SOLVER.IMS_PER_BATCH
    scale = batch / solver.IMS_PER_BATCH
    rule = {
        "BASE_LR": solver.BASE_LR * scale,
        "MAX_ITER": round(solver.MAX_ITER / scale),
        "STEPS": tuple(round(step / scale) for step in solver.STEPS),
        "WARMUP_ITERS": round(solver.WARMUP_ITERS / scale),
    }
    keys = ["BASE_LR", "MAX_ITER", *(["STEPS"] if "MultiStep" in cfg.SOLVER.LR_SCHEDULER_NAME else []), "WARMUP_ITERS"]
    if scale == 1 or all(_short(rule[key]) == _short(cfg.SOLVER[key]) for key in keys):
        return []
    would = ", ".join(f"SOLVER.{key} {_short(rule[key])} (here {_short(cfg.SOLVER[key])})" for key in keys)
    return [
        f"SOLVER.IMS_PER_BATCH is {batch} and {name} was made for {solver.IMS_PER_BATCH}. For the same number of "
        f"pictures, the linear scaling rule (for SGD) says {would}. Nothing was changed."
    ]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
