import pytest
import torch
from torch import nn

from ode_detect.ode.observation import calls_seen, hooked, in_evaluation


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


def test_each_call_is_seen_until_the_context_ends() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    with calls_seen(model[1]) as calls:
        model(torch.tensor([[-1.0]]))
        model(torch.tensor([[2.0]]))
    model(torch.tensor([[3.0]]))
    assert [(inputs[0].item(), output.item()) for inputs, output in calls] == [(-1.0, 0.0), (2.0, 2.0)]


def test_nothing_is_left_behind_after_an_error() -> None:
    model = nn.ReLU()

    def fail() -> None:
        with calls_seen(model):
            model("no tensor")

    with pytest.raises(TypeError):
        fail()
    assert not model._forward_hooks
