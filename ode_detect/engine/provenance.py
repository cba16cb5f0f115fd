"""Where a number comes from: command, commit, day, machine."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ode_detect.report.results import commit, machine


def provenance(command: str) -> dict[str, Any]:
    """Fields of `ode_detect.report.results.Results` that say how a number was made; ``machine`` with ``threads``.

    Args:
        command: what the user wrote.
    """
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {**machine(), "threads": torch.get_num_threads()},
    }


def config_mark(cfg: CfgNode) -> str:
    """Of all that a result depends on; weights are marked by their values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def weights_mark(model: nn.Module) -> str:
    """Of the values of all weights and buffers."""
    mark = hashlib.sha256()
    for name, value in model.state_dict().items():
        mark.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        mark.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()
