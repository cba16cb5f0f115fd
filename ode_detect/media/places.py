"""Where data sets are."""

from __future__ import annotations

import os
from pathlib import Path


def datasets_root() -> Path:
    """Where data sets are: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
