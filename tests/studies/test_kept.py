"""What a study measured is measured once, and never joined to what depends on something else."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ode_detect.engine.config import load_config
from ode_detect.studies import kept
from ode_detect.studies.kept import Kept, KeptRows, check_marks, marks
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART


def network(value: float = 0.0) -> nn.Module:
    model = nn.BatchNorm1d(2)
    nn.init.constant_(model.weight, value)
    return model


def rows(folder: Path, command: str = "first", value: float = 0.0, **wanted: Any) -> KeptRows:
    cfg = load_config(QUICKSTART)
    run = SimpleNamespace(cfg=cfg, command=command, config_file="a.yaml", task=SimpleNamespace(score="AP"))
    return KeptRows(folder, "projection", run, network(value), wanted)


def test_config_weights_and_commit_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "commit", lambda: "abc")
    cfg = load_config(QUICKSTART)
    first = marks(cfg, network())
    assert first["commit"] == "abc"
    # Where the weights lie and where the results go does not change a number.
    assert marks(load_config(QUICKSTART, ["OUTPUT_DIR", "x", "MODEL.WEIGHTS", "y"]), network()) == first
    assert marks(load_config(QUICKSTART, ["SEED", "5"]), network())["config"] != first["config"]
    assert marks(cfg, network(1.0))["weights"] != first["weights"]
    # Statistics count as the weights do.
    shifted = network()
    shifted.running_mean = torch.ones(2)
    assert marks(cfg, shifted)["weights"] != first["weights"]


def test_what_depends_on_something_else_is_named(tmp_path: Path) -> None:
    check_marks(tmp_path, "dial", {"config": 1, "weights": 2, "old": 3}, {"config": 1, "weights": 2})
    with pytest.raises(ConfigError, match=r"the dial of another config and of another weights, .* another --output"):
        check_marks(tmp_path, "dial", {"config": 1}, {"config": 2, "weights": 2})


def test_a_file_keeps_content_marks_and_every_command_once(tmp_path: Path) -> None:
    for command in ("first", "second", "first"):
        file = Kept(tmp_path / "kept.json")
        file.check("dial", {"commit": "abc"}, command)
        file.write(settings={command: 1})
    assert json.loads((tmp_path / "kept.json").read_text()) == {
        "marks": {"commit": "abc"},
        "commands": ["first", "second"],
        "settings": {"first": 1},
    }
    with pytest.raises(ConfigError, match="another commit"):
        Kept(tmp_path / "kept.json").check("dial", {"commit": "abd"}, "third")


def test_a_broken_file_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text('{"marks": {')
    file = Kept(tmp_path / "kept.json")
    assert file.content == {}
    file.check("dial", {"commit": "abc"}, "first")
    assert file.commands == ["first"]


def test_rows_are_measured_once(tmp_path: Path) -> None:
    def again() -> tuple[dict[str, float], dict[str, float]]:
        raise AssertionError("measured again")

    first = rows(tmp_path / "a", iterations=3)
    first.add("pieces_2", lambda: ({"AP": 0.5}, {"parameters": 7}))
    del first  # and its lock
    second = rows(tmp_path / "a", "second", iterations=3)
    assert second.has(["pieces_2"])
    assert not second.has(["pieces_2", "pieces_1"])
    second.add("pieces_2", again)
    assert second.rows["pieces_2"].metrics == {"AP": 0.5}
    assert second.rows["pieces_2"].config == "a.yaml"
    assert second.commands == ["first", "second"]
    with pytest.raises(AssertionError, match="again"):
        second.add("pieces_1", again)


def test_rows_of_other_weights_or_another_request_are_refused(tmp_path: Path) -> None:
    rows(tmp_path / "a", iterations=3).add("pieces_2", lambda: ({}, {}))
    with pytest.raises(ConfigError, match="another iterations"):
        rows(tmp_path / "a", iterations=4)
    with pytest.raises(ConfigError, match="another weights"):
        rows(tmp_path / "a", value=1.0, iterations=3)
