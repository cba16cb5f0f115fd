"""Starting a tool: a user's mistake ends in a message, not in a traceback."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Callable

# The order in which `ode_detect.engine.run.fill` looks for weights.
WEIGHTS_HELP = "a checkpoint; otherwise MODEL.WEIGHTS if overridden, else the run in OUTPUT_DIR, else MODEL.WEIGHTS"


def run_tool(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run a tool.

    Args:
        main: the tool; it imports Detectron2 itself, not the module that it stands in.
        arguments: its command line.

    Returns:
        Exit code: 0 done, 2 a mistake that the message explains, 130 stopped by the user; a tool that can go on says so
        in the `KeyboardInterrupt` that it raises.
    """
    # Detectron2 and fvcore use what torch will drop one day; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    from ode_detect.detection.data import DatasetError
    from ode_detect.ode import ConversionError, SolveError
    from ode_detect.ode.names import UnknownNameError
    from ode_detect.report.plots import MetricsError
    from ode_detect.report.results import ResultsError

    from .checkpoint import CheckpointError
    from .config import ConfigError

    mistakes = (ConfigError, CheckpointError, ConversionError, DatasetError, SolveError, UnknownNameError)
    try:
        main(arguments)
    except (*mistakes, MetricsError, ResultsError) as error:
        # An error from a process that loads pictures brings its traceback in its text.
        return _fail(re.split(r"\n[\w.]*Error: ", str(error))[-1])
    except OSError as error:
        return _fail(f"{error}. Check that the path exists and can be written, and that the disk is not full.")
    except FloatingPointError as error:
        return _fail(
            f"{error}\nA resumed run would come to the same end. Begin anew in another OUTPUT_DIR, with a lower "
            "SOLVER.BASE_LR or with SOLVER.CLIP_GRADIENTS.ENABLED True; MODEL.WEIGHTS may name the last checkpoint."
        )
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped.", file=sys.stderr)
        return 130
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
