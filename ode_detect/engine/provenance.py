"""Where a number comes from: command, commit, day, machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ode_detect.report.results import commit, machine

from .config import ConfigError


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


def marks(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What numbers that are kept in a folder depend on: config, weights and commit."""
    return {"config": _config_mark(cfg), "weights": _weights_mark(model), "commit": commit()}


def check_marks(folder: Path, what: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder whose numbers depend on something else than those that would join them.

    Args:
        folder: where they are kept.
        what: they are of: "dial".
        kept: the `marks` in the folder.
        now: those of this command.

    Raises:
        ConfigError: the marks differ; the message names them.
    """
    changed = [name for name, mark in now.items() if kept.get(name) != mark]
    if changed:
        raise ConfigError(
            f"{folder} holds the {what} of another {' and of another '.join(changed)}, whose numbers would be mixed "
            "with these. Give another --output, or delete that folder."
        )


def _config_mark(cfg: CfgNode) -> str:
    """Of all that a result depends on; weights are marked by their values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _weights_mark(model: nn.Module) -> str:
    """Of the values of all weights and buffers."""
    mark = hashlib.sha256()
    for name, value in model.state_dict().items():
        mark.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        mark.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()
