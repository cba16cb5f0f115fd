"""Starting a tool: a user's mistake ends in a message, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ode_detect.detection.data import DatasetError
from ode_detect.ode import SolveError
from ode_detect.ode.names import UnknownNameError

from .checkpoint import CheckpointError
from .config import ConfigError
from .trainer import Interrupted

MISTAKES = (ConfigError, CheckpointError, DatasetError, SolveError, UnknownNameError)


def run_tool(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a tool.

    Args:
        main: the tool.
        arguments: its command line.

    Returns:
        Exit code: 0 done, 2 a mistake that the message explains, 130 stopped by the user.
    """
    try:
        main(arguments)
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(
            f"error: {error}\nThe last checkpoint is from before that. Lower SOLVER.BASE_LR, or set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True, and go on by --resume.",
            file=sys.stderr,
        )
        return 2
    except Interrupted as stop:
        print(f"{stop} Go on with the same command and --resume.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once; --resume goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0
