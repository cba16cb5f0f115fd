"""Where a number comes from: command, commit, day, machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


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


def machine() -> dict[str, Any]:
    """Describe this machine: ``cpu`` (model), ``cores`` (usable by this process), ``python``, ``torch`` if there."""
    described: dict[str, Any] = {"cpu": _cpu_model(), "cores": cores(), "python": platform.python_version()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        described["torch"] = importlib.metadata.version("torch")
    return described


def commit(root: str | Path | None = None) -> str:
    """Name the commit of a work tree.

    Args:
        root: A folder of the work tree; None takes the one that this package lies in, if it is part of one.

    Returns:
        The hash, with ``-dirty`` if a tracked file outside ``results/`` differs from it (results are what a run writes,
        so they say nothing about what ran), or ``unknown`` without git.
    """
    folder = Path(__file__).parent if root is None else Path(root)
    tracked = root is not None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
    head = _git(folder, "rev-parse", "--verify", "HEAD") if tracked else None
    if not head:
        return "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return f"{head[:12]}-dirty" if changed else head[:12]


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1
