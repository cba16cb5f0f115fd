"""Which runs may be compared, and training what is missing."""

import json
import sys
from pathlib import Path

import pytest

from ode_detect.engine.config import load_config
from ode_detect.studies.compare.runs import differing_keys, plan
from ode_detect.studies.trainings import Training, check_runs, train_missing
from ode_detect.task import ConfigError

from ...conftest import QUICKSTART


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


def test_runs_lie_in_a_folder_for_each_seed_of_each_config(pair: list[str], tmp_path: Path) -> None:
    found = plan(pair, [2], ["SOLVER.MAX_ITER", "3"])
    assert [(one.name, one.seed, str(one.folder.relative_to(tmp_path))) for one in found] == [
        ("ode", 0, "ode/seed_0"),
        ("twin", 0, "twin/seed_0"),
        ("ode", 1, "ode/seed_1"),
        ("twin", 1, "twin/seed_1"),
    ]
    cfg = found[2].config()
    assert cfg.SEED == 1
    assert cfg.SOLVER.MAX_ITER == 3
    assert str(tmp_path / "ode" / "seed_1") == cfg.OUTPUT_DIR
    shared = plan(pair, [1], ["OUTPUT_DIR", str(tmp_path / "all")])
    assert [one.folder for one in shared] == [tmp_path / "all" / name / "seed_0" for name in ("ode", "twin")]
    assert [(one.name, one.seed) for one in plan(pair, [2, 1], [])] == [("ode", 0), ("twin", 0), ("ode", 1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["TASK: other"], "TASK is detection"),
        (["DATASETS: {TEST: [else]}"], "DATASETS.TEST is"),
        (["DATASETS: {CUSTOM: [{NAME: trees_test, IMAGES: a, ANNOTATIONS: b}]}"], "in DATASETS.CUSTOM is"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([config(tmp_path, "a"), config(tmp_path, "b", *lines)], [1], [])


def test_nonsense_is_refused(pair: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given 2 times"):
        plan([pair[0], pair[0]], [1], [])
    with pytest.raises(ConfigError, match="two configs or more"):
        plan(pair[:1], [1], [])
    for seeds in ([0], [2, 0], [1, 2, 3], []):
        with pytest.raises(ConfigError, match="one seed or more"):
            plan(pair, seeds, [])
    with pytest.raises(ConfigError, match="by --seeds"):
        plan(pair, [1], ["SEED", "4"])
    same = tmp_path / "same.yaml"
    same.write_text(Path(pair[0]).read_text())
    with pytest.raises(ConfigError, match="folder of its own"):
        plan([pair[0], str(same)], [1], [])


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


def test_the_keys_that_differ_are_listed(pair: list[str]) -> None:
    ode, twin = (load_config(path, ["SEED", seed]) for path, seed in zip(pair, "12", strict=True))
    assert differing_keys({"ode": ode, "twin": twin}) == {"MODEL.ODE.ROLE": ("ode", "twin")}
