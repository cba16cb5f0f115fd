"""Memory as the operating system sees it: a check of the bytes kept that does not rest on autograd's word."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PROCESS = Path("/proc/self")
# mallopt's names for: the free memory above which the heap shrinks, the size from which a block is mapped on its own.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Growth:
    """By how much this process grew, in bytes, exact to some hundred KiB.

    Attributes:
        held: afterwards, while the result was there.
        peak: at most, meanwhile.
    """

    held: int
    peak: int


def growth(run: Callable[[], object]) -> Growth | None:
    """Run something and see the process grow; None where the system does not say (Linux does).

    What was freed before is given back to the system first, and the system's mark of the highest memory is reset.
    """
    gc.collect()
    _give_back()
    try:
        (_PROCESS / "clear_refs").write_text("5")
        before = _status("VmRSS")
        result = run()
        peak = _status("VmHWM") - before
        _give_back()
        held = _status("VmRSS") - before
    except OSError:
        return None
    del result
    return Growth(held=max(held, 0), peak=max(peak, 0))


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, as the allocators of servers do, for the rest of this process.

    Otherwise large tensors come fresh from the system each time, or not, by what was freed before them: on a virtual
    machine that alone makes one of two equal sides slower by a tenth. Does nothing where there is no mallopt.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 2**30)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _give_back() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {name} in {_PROCESS / 'status'}")
    return 1024 * int(found[1])
