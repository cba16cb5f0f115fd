from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.config import load_config
from ode_detect.engine.launch import run_tool
from ode_detect.report.results import Results
from ode_detect.studies.dial import dial as dials

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
Overrides = Callable[..., list[str]]


def test_keys_may_stand_anywhere(tool: ModuleType) -> None:
    flags = ["--config-file", "c.yaml", "--steps", "1", "2", "SEED", "3", "--flow", "res3", "MODEL.ODE.RTOL", "0.1"]
    args = tool.parse([*flags, "--max-loss", "0.01", "--methods", "euler", "TASK", "detection"])
    assert (args.steps, args.methods, args.flow, args.max_loss) == ([1, 2], ["euler"], ["res3"], 0.01)
    pairs = dict(zip(args.overrides[::2], args.overrides[1::2], strict=True))
    assert pairs == {"SEED": "3", "MODEL.ODE.RTOL": "0.1", "TASK": "detection"}
    assert tool.parse(["SEED", "1", "--config-file", "c.yaml"]).steps == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "many"],
        ["--budget-ms", "1", "--max-loss", "1"],
        ["--methods", "SEED", "1"],
        ["--steps", "SEED", "1"],
        ["--flow", "MODEL.DEVICE", "cpu"],
    ],
)
def test_flags_that_make_no_sense_are_refused(tool: ModuleType, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.parse(["--config-file", "c.yaml", *flags])
    assert stop.value.code == 2


def stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_one_command_sweeps_and_chooses(
    tool: ModuleType,
    squares_run: Overrides,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dials, "PICTURES", 2)
    small = ["INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "30", "SOLVER.MAX_ITER", "2"]
    overrides = squares_run("run", "SOLVER.DIAL.STATISTICS_BATCHES", "1", "TEST.EVAL_PERIOD", "0", *small)
    run = runs.open_training(load_config(QUICKSTART, overrides), command="x", config_file=str(QUICKSTART), resume=False)
    train.train(run, resume=False)
    arguments = ["--config-file", str(QUICKSTART), "--steps", "1", "--methods", "euler", *overrides]
    assert run_tool(tool.main, [*arguments, "--budget-ms", "100000"]) == 0
    folder = tmp_path / "run" / "dial"
    printed = capsys.readouterr().out
    assert "euler_1" in printed
    assert f"--eval-only --config-file {folder / 'config.yaml'}" in printed
    assert len(Results.read(folder / "dial.json").rows) >= 2
    assert run_tool(tool.main, [*arguments, "--budget-ms", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
    assert run_tool(tool.main, [*arguments, "--flow", "res7"]) == 2
    assert "unknown flow 'res7'" in capsys.readouterr().err
    monkeypatch.setattr(dials.Dial, "evaluate", stop)
    assert run_tool(tool.main, arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
