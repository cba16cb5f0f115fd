import pytest
import torch
from torch import nn

from ode_detect.ode.observation import calls_seen


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
