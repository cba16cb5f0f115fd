"""Which runs are those of their configs, and training what is missing."""

import json
import sys
from pathlib import Path

import pytest

from ode_detect.studies.compare.runs import plan
from ode_detect.studies.trainings import Training, check_runs, train_missing
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART


def config(folder: Path, name: str, *lines: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([f"_BASE_: {QUICKSTART}", f"OUTPUT_DIR: {folder / name}", *lines]) + "\n")
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [config(tmp_path, "ode"), config(tmp_path, "twin", "MODEL: {ODE: {ROLE: twin}}")]


def finish(one: Training, **changed: object) -> None:
    """What a finished run leaves, as far as it is looked at."""
    one.folder.mkdir(parents=True)
    cfg = one.config()
    for key, value in changed.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    (one.folder / "config.yaml").write_text(cfg.dump())
    (one.folder / "metrics.json").write_text("")
    (one.folder / "results.json").write_text(json.dumps({}))


def test_without_training_runs_must_be_finished(pair: list[str]) -> None:
    ode, twin = plan(pair, [1], ["SOLVER.MAX_ITER", "3"])
    finish(ode)
    with pytest.raises(ConfigError, match=r"twin/seed_0 \(missing\): python tools/train_net.py --config-file") as told:
        check_runs([ode, twin], training=False)
    assert "SOLVER.MAX_ITER 3 SEED 0 OUTPUT_DIR" in str(told.value)
    check_runs([ode, twin], training=True)
    finish(twin)
    (twin.folder / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"\(unfinished\): .* --resume"):
        check_runs([ode, twin], training=False)


def test_a_run_of_another_config_is_refused(pair: list[str]) -> None:
    ode, _ = plan(pair, [1], [])
    finish(ode, SOLVER__MAX_ITER=7, TEST__EVAL_PERIOD=3)
    for training in (True, False):
        with pytest.raises(ConfigError, match=r"SOLVER.MAX_ITER: 7 in the run, 500 in the config") as told:
            check_runs([ode], training=training)
    assert "EVAL_PERIOD" not in str(told.value)


def test_a_key_that_came_later_stands_for_its_default(pair: list[str]) -> None:
    ode, _ = plan(pair, [1], [])
    finish(ode)
    file = ode.folder / "config.yaml"
    lines = [line for line in file.read_text().splitlines() if "MIN_VISIBLE" not in line and "DURATION" not in line]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"MIN_VISIBLE: 0.0 in the run, 0.4 in the config") as told:
        check_runs([ode], training=False)
    assert "DURATION" not in str(told.value)


# Stands for tools/train_net.py: writes what a run leaves, or ends as it is told.
TRAIN = """
import json, sys, pathlib
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("OUTPUT_DIR") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.json").write_text("")
if "--resume" not in words and folder.parent.name == "{stops}":
    print("first line\\nlast line", file=sys.stderr)
    sys.exit({code})
(folder / "results.json").write_text(json.dumps({{"words": words}}))
"""


def test_what_is_missing_is_trained_one_after_another_and_a_stop_goes_on(
    pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trainings = plan(pair, [1], [])
    tool = [sys.executable, "-c", TRAIN.format(stops="twin", code=130)]
    with pytest.raises(KeyboardInterrupt, match="same command goes on"):
        train_missing(trainings, tool)
    assert [one.state for one in trainings] == ["finished", "unfinished"]
    # How to go on is told by the comparison and not by the training, which has another command.
    assert capsys.readouterr().err == "first line\n"
    train_missing(trainings, tool)
    assert [one.state for one in trainings] == ["finished", "finished"]
    assert "--resume" not in (trainings[0].folder / "results.json").read_text()
    assert "--resume" in (trainings[1].folder / "results.json").read_text()


def test_a_training_that_fails_is_told(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="ode with seed 0 ended with exit code 2"):
        train_missing(plan(pair, [1], []), [sys.executable, "-c", TRAIN.format(stops="ode", code=2)])
    assert capsys.readouterr().err == "first line\nlast line\n"
