"""Where a number comes from: command, commit, day, machine."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import torch

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
