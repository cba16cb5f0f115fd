import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ode_detect.ode import BottleneckField, ODEBlock
from ode_detect.ode.conversion.residual import ResidualBranch
from ode_detect.ode.inference import packing
from ode_detect.ode.inference.optimize import optimize_for_inference
from ode_detect.ode.inference.packing import PackedConv2d, can_pack

from .networks import Residual, flow

needs_onednn = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN operators")


@needs_onednn
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1, "bias": False},
        {"kernel_size": 3, "stride": 2, "padding": (0, 2)},
        {"kernel_size": (1, 5), "dilation": 2, "groups": 4},
    ],
    ids=str,
)
def test_a_packed_convolution_is_the_convolution(arguments, dtype, relu):
    conv = nn.Conv2d(8, 12, **arguments).to(dtype)
    x = torch.randn(2, 8, 11, 13, dtype=dtype)
    packed = PackedConv2d(conv, relu=relu)
    with torch.no_grad():
        expected = F.relu(conv(x)) if relu else conv(x)
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(packed(x.to(memory_format=layout)), expected)
        torch.testing.assert_close(copy.deepcopy(packed)(x), expected)


@needs_onednn
def test_relu_goes_into_the_convolutions_of_a_field(with_statistics):
    in_bfloat16 = {"precision": "bfloat16", "tolerance": 0.05}
    bottleneck = with_statistics(flow(field=BottleneckField))
    fast, _ = optimize_for_inference(bottleneck, torch.randn(1, 8, 6, 6), **in_bfloat16)
    assert [layer.relu for layer in fast.field.pieces[0].layers] == [True, True, False]
    branch = ODEBlock(field=ResidualBranch(Residual().eval()), allow_stateful_field=True)
    fast, _ = optimize_for_inference(with_statistics(branch), torch.randn(1, 8, 6, 6), **in_bfloat16)
    assert [layer.relu for layer in fast.field.layers] == [True, False]


@needs_onednn
@pytest.mark.parametrize("size", [1.0, 2.0, 0.5])
def test_a_step_in_one_go_is_the_step(size, with_statistics):
    model, h = with_statistics(flow()), torch.randn(2, 8, 6, 7).to(memory_format=torch.channels_last)
    fast, _ = optimize_for_inference(model, h, precision="bfloat16", tolerance=0.03)
    piece = copy.deepcopy(fast.field.pieces[0])
    assert piece.can_step(size)
    assert not piece.can_step(3.0)
    with torch.no_grad():
        expected = torch.relu(h + size * model.field.pieces[0](0.0, h))
        given = piece.step(size, h := h.bfloat16())
    assert given is h
    assert (given.float() - expected).norm() < 0.02 * expected.norm()


def test_packing_needs_the_operators(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packing.can_pack()
