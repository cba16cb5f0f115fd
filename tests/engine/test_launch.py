import pytest

from ode_detect.detection.data import DatasetError
from ode_detect.engine.checkpoint import CheckpointError
from ode_detect.engine.config import ConfigError
from ode_detect.engine.launch import run_tool
from ode_detect.engine.trainer import Interrupted
from ode_detect.ode import ConversionError, TooManyEvaluationsError
from ode_detect.ode.names import UnknownNameError


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
        (Interrupted("stopped after iteration 3"), 130, "--resume"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_what_goes_wrong_is_told_and_coded(error: BaseException, code: int, said: str, capsys) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert run_tool(main, []) == code
    assert said in capsys.readouterr().err


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    def main(arguments: list[str]) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_tool(main, [])


def test_what_goes_well_ends_with_0() -> None:
    seen: list[str] = []
    assert run_tool(seen.extend, ["--flag"]) == 0
    assert seen == ["--flag"]
