from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ode_detect.engine import train
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("flags", "stop", "said"),
    [
        ([], KeyboardInterrupt(), "stopped at once; --resume goes on from the last checkpoint.\n"),
        ([], Interrupted("all is saved. Go on with --resume."), "all is saved. Go on with --resume.\n"),
        (["--eval-only"], KeyboardInterrupt(), "stopped.\n"),
    ],
)
def test_only_a_training_that_was_stopped_can_be_resumed(
    flags: list[str],
    stop: KeyboardInterrupt,
    said: str,
    tool: ModuleType,
    squares_run: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*arguments: object, **more: object) -> None:
        raise stop

    monkeypatch.setattr(train, "train", stopped)
    monkeypatch.setattr(train, "evaluate_only", stopped)
    assert run_tool(tool.main, ["--config-file", QUICKSTART, *flags, *squares_run("run")]) == 130
    assert capsys.readouterr().err.endswith(said)
