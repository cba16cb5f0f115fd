import datetime
import json
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from ode_detect.engine.provenance import commit, machine, provenance
from ode_detect.report.results import Results


def test_it_fills_the_fields_of_results() -> None:
    about = provenance("a command")
    assert about.keys() <= {field.name for field in fields(Results)}
    assert about["command"] == "a command"
    assert about["commit"] == commit()
    assert about["machine"] == {**machine(), "threads": torch.get_num_threads()}
    age = datetime.datetime.now(datetime.timezone.utc).date() - datetime.date.fromisoformat(about["date"])
    assert age <= datetime.timedelta(days=1)


def test_machine_says_what_it_is() -> None:
    described = machine()
    assert described["cpu"]
    assert described["cores"] >= 1
    json.dumps(described)


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=none"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_commit_tells_a_changed_work_tree(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
    _git(tmp_path, "init")
    (tmp_path / "results").mkdir()
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "results" / "r.json").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    clean = commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "results" / "r.json").write_text("2")
    assert commit(tmp_path) == clean
    assert commit(tmp_path / "results") == clean
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_commit_without_git_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == "unknown"
