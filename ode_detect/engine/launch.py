"""Starting a tool: a user's mistake ends in a message, not in a traceback."""

from __future__ import annotations

import argparse
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ode_detect.threads import set_waiting

# The order in which `ode_detect.engine.train.fill` looks for weights.
WEIGHTS_HELP = "a checkpoint; otherwise MODEL.WEIGHTS if overridden, else the run in OUTPUT_DIR, else MODEL.WEIGHTS"
# What the words of a flag are, for `parse_anywhere`.
WHOLE_NUMBERS = "whole numbers"


def run_tool(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a tool.

    Args:
        main: the tool; it imports torch and Detectron2 itself, not the module that it stands in.
        arguments: its command line.

    Returns:
        Exit code: 0 done, 2 a mistake that the message explains, 130 stopped by the user; a tool that can go on says so
        in the `KeyboardInterrupt` that it raises.
    """
    set_waiting()  # before the first import of torch
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no UTF-8
            stream.reconfigure(errors="backslashreplace")
    # Detectron2 and fvcore use what torch will drop one day; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    # Which parameters a config leaves without a gradient is not known beforehand.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    # Its new name is not in every torch that we run on.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    import ode_detect.engine.tasks  # noqa: F401  registers networks, declares metrics
    from ode_detect.media.errors import DatasetError
    from ode_detect.ode import ConversionError, SolveError
    from ode_detect.ode.names import UnknownNameError
    from ode_detect.report.plots import MetricsError
    from ode_detect.report.results import ResultsError
    from ode_detect.task import ConfigError

    from .distributed import ProcessFailedError, another_is_gone, first_to_report
    from .weights import CheckpointError

    mistakes = (ConfigError, CheckpointError, ConversionError, DatasetError, SolveError, UnknownNameError)
    try:
        main(arguments)
    except (*mistakes, MetricsError, ResultsError) as error:
        # An error from a process that loads pictures brings its traceback in its text.
        return _fail(re.split(r"\n[\w.]*Error: ", str(error))[-1])
    except OSError as error:
        advice = "Check that the path exists and can be written, and that the disk is not full."
        return _fail(_cure(error) or f"{error}. {advice}")
    except FloatingPointError as error:
        return _fail(
            f"{error}\nA resumed run would come to the same end. Begin again in another OUTPUT_DIR, with a lower "
            "SOLVER.BASE_LR or with SOLVER.CLIP_GRADIENTS.ENABLED True; MODEL.WEIGHTS may name the last checkpoint."
        )
    except KeyboardInterrupt as stop:
        if first_to_report():
            print(str(stop) or "stopped.", file=sys.stderr)
        return 130
    except ProcessFailedError as failed:
        return failed.code
    except (MemoryError, RuntimeError) as error:
        if message := _cure(error):
            return _fail(message)
        if isinstance(error, MemoryError) or not another_is_gone(error):
            raise
        return _fail(
            "another process of the run has ended, and this one cannot go on without it; look for its message."
        )
    return 0


def _cure(error: Exception) -> str:
    """What to do where the memory did not suffice, or a process that loads pictures was ended; "" for other errors."""
    said = (str(error).strip().splitlines() or [""])[-1]
    # torch raises RuntimeErrors without a class of their own.
    if isinstance(error, MemoryError) or re.search(r"not enough memory|an(no|')t allocate memory|out of memory", said):
        return (
            f"the memory does not suffice ({said or 'no more to be had'}). Take fewer pictures at a time "
            "(SOLVER.IMS_PER_BATCH, TEST.BATCH, --batch), smaller ones (INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TEST), or fewer "
            "processes (DATALOADER.NUM_WORKERS). A training goes on from its last checkpoint by --resume."
        )
    if re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)):
        return (
            f"a process that loads pictures was ended by the system, most often for lack of memory ({said}). Set "
            "DATALOADER.NUM_WORKERS lower, 0 loads in the process itself. A training goes on by --resume."
        )
    return ""


def _fail(message: str) -> int:
    from .distributed import first_to_report

    if first_to_report():
        print(f"error: {message}", file=sys.stderr)
    return 2


def parse_anywhere(
    parser: argparse.ArgumentParser, arguments: list[str], *, lists: Mapping[str, str] = MappingProxyType({})
) -> argparse.Namespace:
    """Read a command line whose flags may stand anywhere among KEY VALUE pairs, and whose values may be below 0.

    Args:
        parser: its last positional argument is ``overrides``, any number of them.
        arguments: the command line.
        lists: flags that take one word or more -> what these are. Such a flag takes all words up to the next one;
            config keys among them, in capitals, go to ``overrides`` with what follows. `WHOLE_NUMBERS` become ints.
    """
    # argparse takes -1e-3 for a flag; a blank in front makes it a value.
    args = parser.parse_intermixed_args([f" {a}" if re.fullmatch(_BELOW_ZERO, a) else a for a in arguments])
    args.overrides = [value.strip() for value in args.overrides]
    for name, what in lists.items():
        words = getattr(args, name) or []
        end = next((i for i, word in enumerate(words) if re.fullmatch(_KEY, word)), len(words))
        if words and end == 0:
            parser.error(f"--{name} takes {what} before any config key")
        args.overrides += words[end:]
        if end < len(words):
            setattr(args, name, words[:end])
        if words and what == WHOLE_NUMBERS:
            try:
                setattr(args, name, [int(word) for word in words[:end]])
            except ValueError:
                parser.error(f"--{name} takes {what}, not {' '.join(words[:end])}")
    return args


_KEY = r"[A-Z][A-Z_]*(\.[A-Z0-9_]+)*"
_BELOW_ZERO = r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
