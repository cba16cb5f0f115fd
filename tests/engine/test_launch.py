import argparse
import errno
import io
import os
import signal

import pytest
import torch
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset

from ode_detect.detection.data.datasets import DatasetError
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.launch import parse_anywhere, run_tool
from ode_detect.engine.weights import CheckpointError
from ode_detect.ode import ConversionError, TooManyEvaluationsError
from ode_detect.ode.names import UnknownNameError
from ode_detect.report.plots import MetricsError
from ode_detect.report.results import ResultsError
from ode_detect.task import ConfigError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("look here"), 2, "error: look here"),
        (CheckpointError("look here"), 2, "error: look here"),
        (ConversionError("look here"), 2, "error: look here"),
        (DatasetError("look here"), 2, "error: look here"),
        (UnknownNameError("look here"), 2, "error: look here"),
        (TooManyEvaluationsError(block="b", time=0.5, step="s", evaluations=9), 2, "after 9 evaluations"),
        (FloatingPointError("Loss became infinite"), 2, "Begin again"),
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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9.09 TiB for an array"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes."),
    ],
)
def test_memory_that_does_not_suffice_is_no_traceback(error: Exception, capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert run_tool(main, []) == 2
    assert "the memory does not suffice" in capsys.readouterr().err


def test_what_torch_says_of_memory_is_known(capsys) -> None:
    assert run_tool(lambda arguments: print(torch.empty(2**55)), []) == 2
    assert "IMS_PER_BATCH" in capsys.readouterr().err


class Ended(Dataset[int]):
    """Pictures in whose loading the process is killed, as the system does where memory runs out."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_process_that_loads_pictures_and_was_killed_is_no_traceback(capsys) -> None:
    assert run_tool(lambda arguments: print(list(DataLoader(Ended(), num_workers=1))), []) == 2
    assert "DATALOADER.NUM_WORKERS" in capsys.readouterr().err


def test_a_process_that_lost_another_says_so(capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise dist.DistNetworkError("broken pipe")

    assert run_tool(main, []) == 2
    assert "another process of the run has ended" in capsys.readouterr().err


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


def test_a_name_that_is_no_utf_8_can_be_printed(monkeypatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", out)
    assert run_tool(lambda _: print("caf\udce9"), []) == 0
    out.flush()
    assert out.buffer.getvalue() == b"caf\\udce9\n"
