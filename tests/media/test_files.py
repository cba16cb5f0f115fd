import os
from pathlib import Path

import pytest

from ode_detect.media.files import read_object, remove_partials, whole, write_text


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # one file system: replacing is one act
        partial.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with whole(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "a.txt", []

    def sync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    write_text(path, "ä")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert path.read_bytes() == "ä".encode()


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\x00\x00", b"[1]", b"[" * 100_000])
def test_a_broken_object_counts_as_absent_and_is_said(
    content: bytes, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    assert read_object(path) is None
    assert not said.records
    path.write_bytes(content)
    assert read_object(path) is None
    assert f"{path} cannot be read" in said.text
    write_text(path, '{"a": 1}')
    assert read_object(path) == {"a": 1}


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    others = {"predictions.partial.jsonl", "a.partial", ".a.partial", ".a.12.partial.txt"}
    for name in (*others, ".a.json.12.partial", "below/.b.13.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*others, "below"}
    assert (tmp_path / "below" / ".b.13.partial").exists()
    remove_partials(tmp_path, below=True)
    assert not list((tmp_path / "below").iterdir())
