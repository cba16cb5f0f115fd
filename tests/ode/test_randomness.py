import pytest
import torch
from torch import nn
from torchvision.ops import DropBlock2d, StochasticDepth

from ode_detect.ode import BasicField, HatFunctions, ODEBlock
from ode_detect.ode.randomness import draws_masks, may_draw, random_layers


def drop_path(share):
    return pytest.importorskip("timm").layers.DropPath(share)


def drop_block(share):
    return pytest.importorskip("timm").layers.DropBlock2d(share)


RANDOM = {
    "Dropout": lambda share: nn.Dropout(share),
    "Dropout2d": lambda share: nn.Dropout2d(share),
    "AlphaDropout": lambda share: nn.AlphaDropout(share),
    "StochasticDepth": lambda share: StochasticDepth(share, "row"),
    "torchvision's DropBlock": lambda share: DropBlock2d(share, 3),
    "DropPath": drop_path,
    "timm's DropBlock": drop_block,
    "attention": lambda share: nn.MultiheadAttention(4, 1, dropout=share),
    "RReLU": lambda share: nn.RReLU(0.2, 0.2 + share),
}


@pytest.mark.parametrize("name", RANDOM)
def test_layers_that_draw_are_known(name):
    layer = RANDOM[name](0.25)
    network = nn.Sequential(nn.Conv2d(2, 2, 1), layer)
    assert [(where, share) for where, _, share in random_layers(network)] == [("1", pytest.approx(0.25))]
    assert draws_masks(network)
    assert may_draw(network)
    assert not draws_masks(network.eval())
    assert not draws_masks(nn.Sequential(RANDOM[name](0.0)))


@pytest.mark.parametrize("name", RANDOM)
def test_a_field_with_such_a_layer_is_refused(name):
    kind = type(RANDOM[name](0.25)).__name__
    with pytest.raises(ValueError, match=f"{kind} at '0' draws a new mask at each evaluation"):
        ODEBlock(field=nn.Sequential(RANDOM[name](0.25)))


def test_only_layers_of_torch_and_our_fields_are_known_not_to_draw():
    class Field(nn.Module):
        def forward(self, t, h):
            return nn.functional.dropout(h, 0.5)

    assert not may_draw(HatFunctions([BasicField(channels=4) for _ in range(2)]))
    assert not may_draw(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    assert may_draw(nn.Sequential(Field()))


def test_a_layer_whose_share_is_no_number_draws_nothing():
    layer = nn.Conv2d(2, 2, 1)
    layer.drop_prob = None
    layer.p = torch.ones(2)
    assert not draws_masks(layer)
