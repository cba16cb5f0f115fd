"""What the folder of a run says of it."""

import json
from pathlib import Path

import pytest

from ode_detect.engine.config import load_config
from ode_detect.engine.records import begun_config, changes_to, finished_results, in_words, write_records

from ..conftest import QUICKSTART


@pytest.mark.parametrize("left", [0, 40, 3000])
def test_a_config_that_was_cut_counts_as_absent(left: int, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    cfg = load_config(QUICKSTART)
    assert begun_config(tmp_path) is None
    write_records(cfg, tmp_path, "made")
    assert begun_config(tmp_path) is not None
    file = tmp_path / "config.yaml"
    file.write_bytes(file.read_bytes()[:left])
    assert not said.records
    assert begun_config(tmp_path) is None
    assert f"{file} cannot be read" in said.text


def test_a_resumed_run_keeps_its_first_words_and_adds_what_changed(tmp_path: Path) -> None:
    write_records(load_config(QUICKSTART), tmp_path, "first")
    cfg = load_config(QUICKSTART, ["SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", "elsewhere"])
    begun = begun_config(tmp_path)
    assert begun is not None
    changes = changes_to(cfg, begun, resumed=True)
    assert in_words(changes)[-1] == "SOLVER.BASE_LR: 0.001, now 0.5"
    write_records(cfg, tmp_path, "second", begun=begun, resumed=True, changes=changes)
    after = json.loads((tmp_path / "environment.json").read_text())
    assert after["command"] == "first"
    assert after["changes"] == {"SOLVER.BASE_LR": [0.001, 0.5]}
    assert begun_config(tmp_path) == begun


def test_weights_to_start_with_are_those_of_the_start(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    write_records(load_config(QUICKSTART), tmp_path, "made")
    cfg, begun = load_config(QUICKSTART, ["MODEL.WEIGHTS", "other.pth"]), begun_config(tmp_path)
    assert begun is not None
    assert not changes_to(cfg, begun, resumed=True)
    assert cfg.MODEL.WEIGHTS == begun.MODEL.WEIGHTS == ""
    assert "'other.pth' is not used" in said.text


def test_results_that_are_broken_are_none(tmp_path: Path) -> None:
    assert finished_results(tmp_path) is None
    (tmp_path / "results.json").write_text('{"what": "cut')
    assert finished_results(tmp_path) is None
