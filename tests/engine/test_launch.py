import pytest

from ode_detect.detection.data import DatasetError
from ode_detect.engine.checkpoint import CheckpointError
from ode_detect.engine.config import ConfigError
from ode_detect.engine.launch import run_tool
from ode_detect.engine.trainer import Interrupted
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


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def main(arguments: list[str]) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_tool(main, [])


def test_what_goes_well_ends_with_0() -> None:
    seen: list[str] = []
    assert run_tool(seen.extend, ["--flag"]) == 0
    assert seen == ["--flag"]
