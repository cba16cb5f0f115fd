import argparse
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

from ode_detect.detection.data import DatasetError
from ode_detect.engine.config import ConfigError
from ode_detect.engine.launch import parse_anywhere, run_tool
from ode_detect.engine.trainer import Interrupted
from ode_detect.engine.weights import CheckpointError
from ode_detect.ode import ConversionError, TooManyEvaluationsError
from ode_detect.ode.names import UnknownNameError
from ode_detect.report.plots import MetricsError
from ode_detect.report.results import ResultsError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("look here"), 2, "error: look here"),
        (CheckpointError("look here"), 2, "error: look here"),
        (ConversionError("look here"), 2, "error: look here"),
        (DatasetError("look here"), 2, "error: look here"),
        (UnknownNameError("look here"), 2, "error: look here"),
        (TooManyEvaluationsError(block="b", time=0.5, step="s", evaluations=9), 2, "after 9 evaluations"),
        (FloatingPointError("Loss became infinite"), 2, "Begin anew"),
        (MemoryError(), 2, "error: the memory does not suffice. Take fewer"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "suffice (Unable to allocate 9 TiB). Take"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 2, "the memory does not suffice ([Errno 12]"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "the memory does not suffice (CUDA out of memory."),
        (MetricsError("look here"), 2, "error: look here"),
        (ResultsError("look here"), 2, "error: look here"),
        (Interrupted("stopped after iteration 3. Go on"), 130, "stopped after iteration 3. Go on\n"),
        (KeyboardInterrupt("the same command goes on"), 130, "the same command goes on\n"),
    ],
)
def test_what_goes_wrong_is_told_and_coded(error: BaseException, code: int, said: str, capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert run_tool(main, []) == code
    assert said in capsys.readouterr().err


def test_what_cannot_go_on_does_not_say_so(capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    assert run_tool(main, []) == 130
    assert capsys.readouterr().err == "stopped.\n"


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("bug"), RuntimeError("gloo/transport, alone")])
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    with pytest.raises(type(error)):
        run_tool(main, [])


def test_a_process_that_lost_another_says_so(capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise dist.DistNetworkError("broken pipe")

    assert run_tool(main, []) == 2
    assert "another process of the run has ended" in capsys.readouterr().err


class Killed(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_process_that_loads_pictures_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda arguments: list(DataLoader(Killed(), num_workers=1)), []) == 2
    assert "error: a process that loads pictures has ended (DataLoader worker" in capsys.readouterr().err


def test_what_torch_cannot_allocate_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(lambda arguments: torch.empty(1 << 60), []) == 2
    assert "error: the memory does not suffice (" in capsys.readouterr().err


def test_names_that_are_no_text_are_printed_all_the_same() -> None:
    code = "from ode_detect.engine.launch import run_tool; run_tool(lambda a: print('caf\\udce9'), [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "caf\\udce9\n"), done.stderr


@pytest.mark.parametrize("number", ["-1", "-1e-3", "-.5", "-2.5E+3"])
def test_flags_stand_anywhere_and_a_value_may_be_below_zero(number: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--rank", type=int)
    parser.add_argument("overrides", nargs="*")
    args = parse_anywhere(parser, ["A.B", number, "--flag", "--rank", "-1", "C", number])
    assert (args.overrides, args.flag, args.rank) == (["A.B", number, "C", number], True, -1)


def test_what_goes_well_ends_with_0() -> None:
    seen: list[str] = []
    assert run_tool(seen.extend, ["--flag"]) == 0
    assert seen == ["--flag"]
