import json
import subprocess
import sys
from pathlib import Path

import pytest

from ode_detect.studies import process_memory as memory
from ode_detect.studies.process_memory import growth

MIB = 2**20
MEASURED = """
import json
import torch
from ode_detect.studies.process_memory import growth

def one_after_the_other():
    for _ in range(4):
        torch.ones(2**24)

def together():
    kept, _ = [torch.ones(2**24) for _ in range(2)]
    return kept

growth(together)
found = [growth(one_after_the_other), growth(together)]
print(json.dumps([[one.peak, one.held] for one in found]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")
def test_growth_is_what_was_held_at_once_and_afterwards() -> None:
    # In a process of its own: one that has run other tests has holes in its heap, where such blocks find room or not.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEASURED], capture_output=True, text=True, check=True)
    (peak, held), (peak_together, held_together) = json.loads(done.stdout)
    # Memory that was freed before counts again.
    assert peak == pytest.approx(64 * MIB, rel=0.1)
    assert held < 4 * MIB
    assert peak_together == pytest.approx(128 * MIB, rel=0.1)
    assert held_together == pytest.approx(64 * MIB, rel=0.1)


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert growth(lambda: None) is None
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    (tmp_path / "status").write_text("Name: python\n")
    assert growth(lambda: None) is None
