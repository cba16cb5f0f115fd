import sys
from pathlib import Path

import pytest
import torch

from ode_detect.engine.benchmark import memory
from ode_detect.engine.benchmark.memory import Growth, growth

MIB = 2**20


def _growth(run) -> Growth:
    grown = growth(run)
    assert grown is not None
    return grown


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of a process")
def test_growth_is_what_was_held_at_once_and_afterwards() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            torch.ones(16 * MIB)

    def together() -> torch.Tensor:
        kept, _ = [torch.ones(16 * MIB) for _ in range(2)]
        return kept

    growth(together)
    import gc, weakref
    t = torch.ones(16 * MIB); w = weakref.ref(t); 
    rs = [type(r) for r in gc.get_referrers(t)]
    del t
    first = _growth(one_after_the_other); held = _growth(one_after_the_other).held
    def single(): torch.ones(16*MIB)
    s1 = _growth(single)
    def two():
        torch.ones(16*MIB); torch.ones(16*MIB)
    s2 = _growth(two)
    maps = [l for l in open('/proc/self/smaps_rollup')][:4]
    import resource
    n = sum(1 for _ in open('/proc/self/maps'))
    info = (first, held, s1, s2, w() is None, rs, torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack(), sys.getprofile(), sys.gettrace(), n, maps, {k: v for k, v in __import__('os').environ.items() if 'MALLOC' in k or 'PRELOAD' in k})
    open('/tmp/memdiag.txt', 'a').write(repr(info) + chr(10))
    # Memory that was freed before counts again.
    assert _growth(one_after_the_other).peak == pytest.approx(64 * MIB, rel=0.1)
    assert _growth(one_after_the_other).held < 4 * MIB
    assert _growth(together).peak == pytest.approx(128 * MIB, rel=0.1)
    assert _growth(together).held == pytest.approx(64 * MIB, rel=0.1)


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert growth(lambda: None) is None
    monkeypatch.setattr(memory, "_PROCESS", tmp_path)
    (tmp_path / "status").write_text("Name: python\n")
    assert growth(lambda: None) is None
