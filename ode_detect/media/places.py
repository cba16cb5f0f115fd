"""Where data sets are."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import DatasetError


def datasets_root() -> Path:
    """Where data sets are: ``$DETECTRON2_DATASETS``, or ``./datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def refuse_as_path(name: str) -> None:
    """Refuse the name of a data set where files are to be called by it and it would lead elsewhere.

    Raises:
        DatasetError: it is empty, ".", "..", or holds a slash or a character that cannot be printed.
    """
    if name in ("", ".", "..") or len(name) > 200 or any(c in ("/", os.sep) or not c.isprintable() for c in name):
        raise DatasetError(
            f"files are called by the NAME of a data set, so it has up to 200 printable letters and no slash, and it "
            f"is {name!r:.120}; write my_train in DATASETS.CUSTOM, TRAIN and TEST."
        )
