import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ode_detect.ode import (
    BasicField,
    BottleneckField,
    ConcatConvField,
    FixedStep,
    FrozenBatchNorm2d,
    ODEBlock,
    PreactField,
    in_pieces,
)
from ode_detect.ode.fields import ACTIVATIONS, FIELDS, NORMS, make_norm
from ode_detect.ode.pieces import PIECES

every_field = pytest.mark.parametrize("name", FIELDS)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


@every_field
@every_norm
@every_activation
def test_contract(name, norm, activation, lively):
    field = lively(FIELDS[name](channels=8, norm=norm, activation=activation)).to(memory_format=torch.channels_last)
    for size in [(1, 8, 1, 7), (2, 8, 5, 3)]:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            h = torch.randn(size).contiguous(memory_format=memory_format)
            out = field(0.5, h)
            assert (out.shape, out.dtype, out.device) == (h.shape, h.dtype, h.device)
            assert torch.isfinite(out).all()


@every_field
def test_dilation_spreads_the_3x3_convolutions_and_keeps_the_shape(name, lively):
    torch.manual_seed(0)
    plain, dilated = (lively(FIELDS[name](channels=4, norm="none", dilation=d)) for d in (1, 2))
    dilated.load_state_dict(plain.state_dict())
    h = torch.randn(1, 4, 12, 10)
    out = dilated(0.5, h)
    assert out.shape == h.shape
    # A convolution dilated by 2 is a plain one on each of the four pictures of every second row and column; so is
    # all that goes pixel by pixel.
    for row in (0, 1):
        for column in (0, 1):
            part = plain(0.5, h[:, :, row::2, column::2])
            assert torch.allclose(out[:, :, row::2, column::2], part, atol=1e-6)
    assert not torch.allclose(out, plain(0.5, h), atol=1e-3)


@every_field
@every_norm
def test_the_memory_format_of_a_picture_is_kept(name, norm, lively):
    field = lively(FIELDS[name](channels=8, norm=norm)).to(memory_format=torch.channels_last)
    h = torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last)
    assert field(0.5, h).is_contiguous(memory_format=torch.channels_last)


@every_field
@every_norm
def test_float_time_and_tensor_time_agree(name, norm, lively):
    field, h = lively(FIELDS[name](channels=4, norm=norm)), torch.randn(2, 4, 5, 5)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(field(0.625, h), field(torch.tensor(0.625, dtype=dtype), h))


@every_field
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(name, dtype, lively):
    field, h = lively(FIELDS[name](channels=4)).to(dtype), torch.randn(2, 4, 5, 5, dtype=dtype)
    assert field(0.5, h).dtype == dtype


@every_field
@every_norm
@pytest.mark.parametrize("pieces", PIECES)
def test_a_new_flow_is_the_identity_and_yet_learns(name, norm, pieces):
    field = in_pieces(pieces, 1 if pieces == "constant" else 2, lambda: FIELDS[name](channels=4, norm=norm))
    block = ODEBlock(field=field, solver=FixedStep("euler", steps=1 if pieces == "constant" else 2))
    x, target = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = F.mse_loss(block(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert not torch.equal(block(x), x)
    assert losses[1] < losses[0]
    # The layers before the zero one have begun to learn, too.
    assert any(float(p.grad.abs().max()) > 0 for n, p in field.named_parameters() if "conv1.weight" in n)


@every_activation
def test_activations_are_torchs(activation):
    h = torch.randn(50)
    assert torch.equal(ACTIVATIONS[activation](h), getattr(torch.nn.functional, activation)(h))


def norm_of(kind, conv, h):
    """The normalisation, written again."""
    if kind == "none":
        return h
    if kind == "FrozenBN":
        b = [
            v.reshape(1, -1, 1, 1)
            for v in (conv.norm.running_mean, conv.norm.running_var, conv.norm.weight, conv.norm.bias)
        ]
        return (h - b[0]) / torch.sqrt(b[1] + 1e-5) * b[2] + b[3]
    groups = 1 if kind == "LN" else math.gcd(32, h.shape[1])
    rows = h.reshape(len(h), groups, -1)
    rows = (rows - rows.mean(2, keepdim=True)) / torch.sqrt(rows.var(2, keepdim=True, correction=0) + 1e-5)
    return rows.reshape_as(h) * conv.norm.weight.reshape(1, -1, 1, 1) + conv.norm.bias.reshape(1, -1, 1, 1)


def conv_of(kind, conv, h, groups=1):
    return norm_of(kind, conv, F.conv2d(h, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2, groups=groups))


def frozen_at_random(module):
    for layer in module.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            for buffer in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(buffer)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module


@every_norm
def test_basic_field_is_a_residual_branch(norm, lively):
    field = frozen_at_random(lively(BasicField(channels=8, norm=norm))).double()
    h = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    expected = conv_of(norm, field.conv2, torch.relu(conv_of(norm, field.conv1, h)))
    torch.testing.assert_close(field(0.3, h), expected)
    assert torch.equal(field(0.3, h), field(0.9, h))


@every_norm
def test_bottleneck_field_is_a_residual_branch(norm, lively):
    field = frozen_at_random(lively(BottleneckField(channels=16, bottleneck_channels=8, groups=2, norm=norm))).double()
    h = torch.randn(2, 16, 5, 4, dtype=torch.float64)
    inner = torch.relu(conv_of(norm, field.conv1, h))
    inner = torch.relu(conv_of(norm, field.conv2, inner, groups=2))
    torch.testing.assert_close(field(0.3, h), conv_of(norm, field.conv3, inner))


@every_norm
def test_concat_field_sees_time_as_a_channel(norm, lively):
    field = frozen_at_random(lively(ConcatConvField(channels=8, norm=norm))).double()
    h = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    time = torch.full((2, 1, 5, 4), 0.7, dtype=torch.float64)
    inner = conv_of(norm, field.conv1, torch.cat([time, torch.relu(norm_of(norm, field, h))], 1))
    expected = conv_of(norm, field.conv2, torch.cat([time, torch.relu(inner)], 1))
    torch.testing.assert_close(field(0.7, h), expected)
    assert not torch.equal(field(0.7, h), field(0.2, h))


@every_norm
def test_preact_field_is_the_branch_of_a_preactivated_block(norm, lively):
    field = frozen_at_random(lively(PreactField(channels=8, norm=norm))).double()
    h = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    inner = torch.relu(conv_of(norm, field.conv1, torch.relu(norm_of(norm, field, h))))
    torch.testing.assert_close(field(0.3, h), conv_of("none", field.conv2, inner))
    assert torch.equal(field(0.3, h), field(0.9, h))
    assert (field.conv2.bias is not None) == (norm == "none")


def test_the_concat_field_is_that_of_the_paper():
    # 75,392 parameters of the field of torchdiffeq's MNIST network: two convolutions of 65 channels to 64 with
    # biases, three normalisations.
    assert sum(p.numel() for p in ConcatConvField(channels=64).parameters()) == 2 * (65 * 64 * 9 + 64) + 3 * 128


@pytest.mark.parametrize(("channels", "width"), [(64, 16), (4, 1), (2, 1)])
def test_the_bottleneck_is_a_quarter(channels, width):
    assert BottleneckField(channels=channels).conv2.out_channels == width


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (256, 32), (48, 16), (6, 2), (7, 1)])
def test_groups_of_group_norm(channels, groups):
    assert make_norm("GN", channels).num_groups == groups


@every_field
def test_a_norm_of_ones_own(name):
    field = FIELDS[name](channels=4, norm=lambda channels: nn.InstanceNorm2d(channels, affine=True))
    assert isinstance(field.conv1.norm, nn.InstanceNorm2d)
    assert not field(0.0, torch.randn(2, 4, 5, 5)).any()


@every_field
def test_unknown_names(name):
    with pytest.raises(ValueError, match=r"unknown norm 'gn'.*Did you mean 'GN'"):
        FIELDS[name](channels=4, norm="gn")
    with pytest.raises(ValueError, match=r"unknown activation 'rely'.*Did you mean 'relu'"):
        FIELDS[name](channels=4, activation="rely")


@every_field
def test_gradients(name, lively):
    field = lively(FIELDS[name](channels=2, norm="LN", activation="softplus")).double()
    h = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, *_: field(0.5, h), (h, *field.parameters()), fast_mode=True)


def test_a_new_frozen_norm_is_the_identity():
    h = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(FrozenBatchNorm2d(8)(h), h)


def test_a_frozen_norm_has_no_parameters_and_gives_exact_gradients():
    norm = frozen_at_random(FrozenBatchNorm2d(3)).double()
    assert not list(norm.parameters())
    h = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (h,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_frozen_norm_is_detectron2s_bit_for_bit(grad, dtype):
    layers = pytest.importorskip("detectron2.layers")
    ours, theirs = frozen_at_random(FrozenBatchNorm2d(6)), layers.FrozenBatchNorm2d(6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 6, 7, 5, dtype=dtype)
    inputs = [x.clone().requires_grad_(grad) for _ in range(2)]
    outs = [layer(i) for layer, i in zip((ours, theirs), inputs, strict=True)]
    assert torch.equal(*outs)
    if grad:
        for out in outs:
            out.sum().backward()
        assert torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("norm", ["GN", "FrozenBN"])
@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_a_detectron2_block_loads_and_gives_the_same_bits(name, norm, lively):
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet")
    theirs = (
        resnet.BasicBlock(64, 64, norm=norm)
        if name == "basic"
        else resnet.BottleneckBlock(64, 64, bottleneck_channels=32, norm=norm)
    )
    field = FIELDS[name](channels=64, norm=norm, **({} if name == "basic" else {"bottleneck_channels": 32}))
    field.load_state_dict(frozen_at_random(lively(theirs, std=0.05)).state_dict(), strict=True)
    # Random frozen buffers of Detectron2's own class.
    for buffer_name, buffer in theirs.named_buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
        field.get_buffer(buffer_name).copy_(buffer)
    block = ODEBlock(field=field, solver=FixedStep("euler", projection="relu"))
    for x in (torch.randn(1, 64, 6, 5), torch.randn(1, 64, 6, 5, requires_grad=True)):
        assert torch.equal(block(x), theirs(x))
