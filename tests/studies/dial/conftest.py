"""The dial of the quickstart network, trained for a moment on eight small pictures."""

from pathlib import Path

import pytest

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.config import load_config
from ode_detect.report.results import Results
from ode_detect.studies.dial import dial as dials
from ode_detect.studies.dial.budget import turn

from .quickstart_dial import QUICKSTART, STEPS, open_dial


@pytest.fixture(autouse=True)
def two_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of two pictures are enough where nothing is made of them."""
    monkeypatch.setattr(dials, "PICTURES", 2)


@pytest.fixture(scope="package")
def trained(whole_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a run whose folder holds a checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = [*whole_run, "OUTPUT_DIR", str(folder), "SOLVER.DIAL.STATISTICS_BATCHES", "2", "TEST.EVAL_PERIOD", "0"]
    # Small and few, since a network that knows nothing finds something everywhere.
    overrides += ["INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TEST", "30", "SOLVER.MAX_ITER", "4"]
    run = runs.open_training(
        load_config(QUICKSTART, overrides), command="train", config_file=str(QUICKSTART), resume=False
    )
    train.train(run, resume=False)
    return overrides


@pytest.fixture(scope="package")
def swept(trained: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("dial") / "swept"
    results, choice = turn(open_dial(trained, folder), **STEPS)
    assert choice is None
    return folder, results
