"""tools/train_net.py as a user calls it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Overrides = Callable[..., list[str]]


def train_net(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/train_net.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_flags_may_stand_anywhere_and_the_end_says_where_to_look(squares_run: Overrides, tmp_path: Path) -> None:
    overrides = squares_run("run", "SOLVER.MAX_ITER", "2")
    done = train_net(*overrides[:4], "--config-file", "configs/quickstart.yaml", *overrides[4:], "--resume")
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout
    assert str(tmp_path / "run") in done.stdout
    again = train_net("--eval-only", *overrides, "--config-file", "configs/quickstart.yaml")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "configs/none.yaml"], "there is no config file"),
        (
            ["--config-file", "configs/detection/bccd_twin.yaml"],
            "bccd.yaml now: give that file and MODEL.ODE.ROLE twin.",
        ),
        (["--config-file", "configs/quickstart.yaml", "MODEL.ODE.METHDO", "rk4"], "did you mean MODEL.ODE.METHOD?"),
        (["--config-file", "configs/faster_rcnn_ode.yaml"], "instances_val2017.json"),
    ],
)
def test_a_mistake_ends_in_one_message_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    environment = {"DETECTRON2_DATASETS": str(tmp_path)} if "faster" in arguments[1] else {}
    failed = train_net(*arguments, "OUTPUT_DIR", str(tmp_path / "run"), **environment)
    assert failed.returncode == 2, failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.ODE.METHOD", "rk5"], "unknown"),
        (["MODEL.ODE.METHOD", "dopri5", "MODEL.ODE.PROJECTION", "relu"], "Set PROJECTION to 'none'"),
        (["MODEL.BACKBONE.NAME", "nowhere"], "nowhere"),
        (["MODEL.DEVICE", "cuda:77"], "GPU"),
        (["--eval-only", "MODEL.WEIGHTS", "none.pth"], "no checkpoint"),
        (["--eval-only"], "there are no weights"),
    ],
)
def test_a_network_that_cannot_be_built_or_filled_says_why(
    arguments: list[str], message: str, squares_run: Overrides
) -> None:
    failed = train_net("--config-file", "configs/quickstart.yaml", *squares_run("run"), *arguments)
    assert failed.returncode == 2, failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
