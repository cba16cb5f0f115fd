"""One command at a time writes into a folder: locks of the operating system, which end with the process."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from detectron2.utils import comm

from ode_detect.media.files import remove_partials
from ode_detect.task import ConfigError

from .distributed import from_main

logger = logging.getLogger("ode_detect.engine")

# In the folder. It stays there; what counts is the lock on it.
_NAME = ".lock"


class Lock:
    """A folder into which no other process writes, as long as this object and this process live.

    Args:
        file: the locked file.
    """

    def __init__(self, file: IO[str]) -> None:
        weakref.finalize(self, file.close)


# A process that has a folder may take it again; closing any of its handles of the file would end the lock.
_held: weakref.WeakValueDictionary[tuple[int, Path], Lock] = weakref.WeakValueDictionary()


def hold(folder: Path) -> Lock | None:
    """Take a folder for this command; called by all of its processes.

    What a killed command has left of a file that it was writing is removed.

    Args:
        folder: it is made.

    Returns:
        The lock, to be kept as long as something is written; None in other processes than the main one.

    Raises:
        ConfigError: another process has the folder; the message names it.
    """
    lock, problem = _take(folder) if comm.is_main_process() else (None, "")
    problem = from_main(lambda: problem)
    if problem:
        raise ConfigError(problem)
    return lock


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """`hold` a folder for the time of a context."""
    lock = hold(folder)
    yield
    del lock


def visible(folder: Path) -> list[str]:
    """The names of what is in a folder, without what is hidden."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def _take(folder: Path) -> tuple[Lock | None, str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / _NAME
    if known := _held.get((os.getpid(), path)):
        return known, ""
    file = path.open("a+", encoding="utf-8")
    try:
        _lock(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            holder = _holder(file)
            file.close()
            return None, (
                f"one command at a time writes into a folder, and {holder} is writing into {folder}. Wait for it, or "
                "stop it, or choose another folder by OUTPUT_DIR or --output."
            )
        logger.warning("%s cannot be locked (%s): see to it that no other command writes into it.", folder, error)
    else:
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        about = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": shlex.join(sys.argv)}
        file.write(json.dumps(about) + "\n")
        file.flush()
        remove_partials(folder)
        for name in _WRITTEN_WHOLE:
            remove_partials(folder / name, below=True)
    lock = _held[(os.getpid(), path)] = Lock(file)
    return lock, ""


# Folders in that of a command that are its own, too.
_WRITTEN_WHOLE = ("inference", "drawn", "frames")


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        about: Any = json.loads(file.read())
        return f"process {about['process']} on {about['host']}, since {about['since']} ({about['command']}),"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        # A byte behind the text, since what is locked here cannot be read either.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        # POSIX locks, which network drives hand on to their server, and which child processes do not inherit: those
        # that load pictures may outlive a killed training for a moment.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
