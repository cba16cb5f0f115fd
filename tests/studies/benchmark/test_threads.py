"""The processes of the section: each with its setting; the busy one runs only where it is asked for."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ode_detect.studies.benchmark import threads
from ode_detect.studies.benchmark.threads import BUSY_AIM, DEFAULT, ONE, OURS, QUIET_AIM, WAYS
from ode_detect.studies.timing import Case
from ode_detect.threads import SETTING, VARIABLES

SIDES = [f"{way}, {load}" for way in WAYS for load in ("quiet", "busy")]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The processes that are started."""
    processes: list[subprocess.Popen[str]] = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)
            processes.append(self)

    monkeypatch.setattr(threads.subprocess, "Popen", Popen)
    return processes


@pytest.fixture
def each(started: list[subprocess.Popen[str]]) -> Iterator[Iterator[Case]]:
    cases = threads.cases(quick=True)
    yield cases
    cases.close()


def test_each_way_is_alone_and_with_a_busy_process_and_all_processes_end(
    each: Iterator[Case], started: list[subprocess.Popen[str]]
) -> None:
    case = next(each)
    assert case.name == "detector of the quickstart, 1 iterations"
    assert [*case.sides] == SIDES
    aims = {(ratio.ours, ratio.other): ratio.aim for ratio in case.ratios if ratio.aim}
    quiet = f"{OURS}, quiet"
    assert aims == {(quiet, f"{DEFAULT}, quiet"): QUIET_AIM, (f"{OURS}, busy", quiet): BUSY_AIM}
    assert len(started) == 1 + len(WAYS)
    each.close()
    assert all(process.poll() is not None for process in started)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_the_busy_process_runs_while_it_is_asked_for_and_sleeps_otherwise() -> None:
    def state() -> str:
        return Path(f"/proc/{busy.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def sleeps() -> bool:
        os.waitid(os.P_PID, busy.pid, os.WSTOPPED | os.WNOWAIT)
        return state() == "T"

    with threads._paused(threads._BUSY) as busy:
        assert sleeps()
        seen: list[str] = []
        threads._beside(busy, lambda: seen.append(state()))
        assert seen != ["T"]
        assert sleeps()


@pytest.mark.parametrize("way", [DEFAULT, OURS, ONE])
def test_a_process_has_the_setting_of_its_way_whatever_ours_has(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    started: list[dict[str, str]] = []

    class StoppedError(Exception):
        pass

    def start(command: list[str], *, env: dict[str, str], **more: object) -> None:
        started.append(env)
        raise StoppedError

    monkeypatch.setattr(threads.subprocess, "Popen", start)
    with pytest.raises(StoppedError), threads._asked("a config", WAYS[way], quick=True):
        pass
    (environment,) = started
    assert {name: environment[name] for name in VARIABLES if name in environment} == (SETTING if way == OURS else {})
    assert environment["OMP_NUM_THREADS"] == ("1" if way == ONE else "3")


def test_a_process_that_fails_is_an_error_that_names_its_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        threads._asked("configs/none.yaml", {}, quick=True) as ask,
        pytest.raises(RuntimeError, match=r"trains configs/none\.yaml ended with exit code 1"),
    ):
        ask(1)
    assert "configs/none.yaml" in capfd.readouterr().err


def test_the_module_computes_what_it_is_asked_for() -> None:
    command = [*threads.SERVER, "configs/classification/digits_quickstart.yaml", "--quick"]
    done = subprocess.run(command, cwd=threads.ROOT, input="1\n2\n", capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\ndone\n", "")
