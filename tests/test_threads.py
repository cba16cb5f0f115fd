"""How threads wait is set in each command before torch is imported, unless the user has set it."""

import os
import subprocess
import sys

import pytest

from ode_detect.threads import SETTING, VARIABLES, describe_waiting, set_waiting

from .conftest import ROOT

TOOLS = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
# Runs a tool with the command line that follows up to the first import of torch, and prints how threads wait then.
SPY = f"""
import os, runpy, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print({{name: os.environ.get(name) for name in {VARIABLES}}}, flush=True)
            os._exit(3)
sys.meta_path.insert(0, Spy())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def at_first_import_of_torch(*command: str, **environment: str) -> str:
    """What the spy printed; "" if the command ended without torch."""
    done = subprocess.run(
        [sys.executable, "-c", SPY, *command], cwd=ROOT, env=without(**environment), capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 3 else ""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back to what it was
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("tool", TOOLS)
def test_each_command_sets_it_before_torch_is_imported_or_imports_no_torch(tool: str) -> None:
    seen = at_first_import_of_torch(f"tools/{tool}", "--help")
    alone = ("install_detectron2.py", "merge_results.py", "update_readme.py")
    assert seen == ("" if tool in alone else str({**dict.fromkeys(VARIABLES), **SETTING}))


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_the_user_has_set_is_left_as_it_is(name: str, value: str) -> None:
    seen = at_first_import_of_torch("tools/certify.py", "--help", **{name: value})
    assert seen == str({**dict.fromkeys(VARIABLES), name: value})


def test_a_process_that_a_command_starts_inherits_it(environment: pytest.MonkeyPatch) -> None:
    set_waiting()
    child = [sys.executable, "-c", "import os; print(os.environ['GOMP_SPINCOUNT'])"]
    assert subprocess.check_output(child, text=True).strip() == SETTING["GOMP_SPINCOUNT"]


def test_the_library_changes_no_environment() -> None:
    program = f"import os, ode_detect.engine.train; print([name for name in {VARIABLES} if name in os.environ])"
    done = subprocess.check_output([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, env=without(), text=True)
    assert done == "[]\n"


def test_the_setting_and_who_made_it_are_in_words(environment: pytest.MonkeyPatch) -> None:
    assert describe_waiting() == "GOMP_SPINCOUNT=4000 (set by the commands of tools/)"
    environment.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert describe_waiting() == "OMP_WAIT_POLICY=PASSIVE (of your environment)"
