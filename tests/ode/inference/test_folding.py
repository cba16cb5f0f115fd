import copy

import torch
from torch import nn

from ode_detect.ode import BasicField, FrozenBatchNorm2d, HatFunctions
from ode_detect.ode.inference.folding import fold_norms, is_constant

from .networks import Residual


def test_folding_is_exact_in_float64(with_statistics):
    model, x = with_statistics(Residual()).double(), torch.randn(2, 8, 9, 7, dtype=torch.float64)
    folded = copy.deepcopy(model)
    result = fold_norms(folded)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert result.folded == ("bn1", "bn2")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_what_is_folded_is_where_a_convolution_holds_it_or_is_right_before_it(with_statistics):
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), BasicField(channels=8, norm="FrozenBN")
    )
    result = fold_norms(with_statistics(model))
    assert result.folded == ("1", "4.conv1.norm", "4.conv2.norm")
    assert result.kept == {"3": "no convolution is declared right before it"}
    assert isinstance(model[1], nn.Identity)
    assert isinstance(model[3], nn.BatchNorm2d)


def test_hat_functions_are_left_alone_with_the_reason(with_statistics):
    hats = with_statistics(HatFunctions([BasicField(channels=8, norm="FrozenBN") for _ in range(2)]))
    before = {name: tensor.clone() for name, tensor in hats.state_dict().items()}
    result = fold_norms(nn.Sequential(hats))
    assert result.folded == ()
    assert sorted(result.kept) == [f"0.knots.{k}.conv{n}.norm" for k in (0, 1) for n in (1, 2)]
    assert all("blend" in reason for reason in result.kept.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in hats.state_dict().items())


def test_which_layers_normalise_by_constants():
    assert is_constant(nn.BatchNorm2d(3))
    assert is_constant(FrozenBatchNorm2d(3))
    assert not is_constant(nn.BatchNorm2d(3, track_running_stats=False))
    assert not is_constant(nn.InstanceNorm2d(3, track_running_stats=True))
    assert not is_constant(nn.GroupNorm(1, 3))
    assert not is_constant(None)
