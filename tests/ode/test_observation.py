import pytest
from torch import nn

from ode_detect.ode.observation import hooked, in_evaluation


def fail():
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("body", [lambda: None, fail])
def test_modes_are_restored_one_by_one(body):
    network = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.ReLU())).train()
    network[1][0].eval()
    modes = [module.training for module in network.modules()]
    try:
        with in_evaluation(network):
            assert not any(module.training for module in network.modules())
            body()
    except RuntimeError:
        pass
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("body", [lambda: None, fail])
def test_a_hook_is_gone_when_the_context_ends(body):
    module, seen = nn.Identity(), []
    try:
        with hooked(module, lambda module, inputs, out: seen.append((inputs, out))):
            module(1)
            body()
    except RuntimeError:
        pass
    module(2)
    assert seen == [((1,), 1)]
