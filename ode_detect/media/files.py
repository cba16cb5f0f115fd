"""Files that are written whole or not at all, and read as if absent where they cannot be read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("ode_detect.media")
# The name that `whole` writes under: of the file, and of the process.
_PARTIAL = re.compile(r"\..+\.\d+\.partial")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Write a file so that nobody ever finds half of it, not even after the power failed.

    Args:
        path: the file; its folder is made.

    Yields:
        Where to write. When the context ends, that file is on the disk and takes the place of ``path``; after an error,
        Ctrl-C included, ``path`` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        # Without this, some file systems give the name to the file before they write what is in it.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text (UTF-8) as `whole` does."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_partials(folder: Path, *, below: bool = False) -> None:
    """Remove what processes that were killed in `whole` have left; nobody else may be writing there.

    Args:
        folder: where to look.
        below: also in all folders in it.
    """
    for file in folder.rglob(".*.partial") if below else folder.glob(".*.partial"):
        if _PARTIAL.fullmatch(file.name):
            file.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that we wrote earlier.

    Returns:
        The object; None if there is no file, or if it is broken, which is logged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        say_unreadable(path, error)
        return None
    if not isinstance(content, dict):
        say_unreadable(path, "it holds no object")
        return None
    return content


def say_unreadable(path: Path, why: object) -> None:
    """Log that a file of ours is broken and counts as absent."""
    logger.warning("%s cannot be read (%s); going on as if it were not there.", path, str(why) or type(why).__name__)


def _sync_folder(folder: Path) -> None:
    # Windows opens no folders, and some network drives do not sync them.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
