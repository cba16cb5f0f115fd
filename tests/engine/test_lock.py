"""One command at a time writes into a folder."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ode_detect.engine import lock as locks
from ode_detect.engine.lock import alone_in, hold, visible
from ode_detect.task import ConfigError

HOLDER = """
import sys, time
from pathlib import Path
from ode_detect.engine.lock import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(200)
"""


def test_another_process_is_named_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = rf"process {other.pid} on {socket.gethostname()}, since \d{{4}}-.* is writing into {tmp_path}\."
        with pytest.raises(ConfigError, match=message):
            hold(tmp_path)
        (tmp_path / ".a.json.1.partial").touch()
        other.send_signal(signal.SIGKILL)
        other.wait(20)
        assert hold(tmp_path) is not None
    assert not (tmp_path / ".a.json.1.partial").exists()


def test_a_process_may_take_its_folder_again_and_gives_it_back_when_it_is_done(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER.replace("time.sleep(200)", ""), str(tmp_path)]
    first = hold(tmp_path)
    assert hold(tmp_path / ".." / tmp_path.name) is first
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert f"process {os.getpid()}" in refused.stderr
    del first
    with alone_in(tmp_path):
        pass
    assert subprocess.run(command, capture_output=True, text=True, check=False, timeout=100).stdout == "held\n"
    (tmp_path / "a.txt").touch()
    assert visible(tmp_path) == ["a.txt"]


def test_a_drive_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def cannot(file: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", cannot)
    assert hold(tmp_path) is not None
    assert "cannot be locked" in said.text
