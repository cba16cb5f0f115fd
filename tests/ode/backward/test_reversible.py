import pytest
import torch
from torch import nn

from ode_detect.ode import (
    BasicField,
    BottleneckField,
    ConcatConvField,
    FixedStep,
    ODEBlock,
    PiecewiseConstant,
    Reversible,
    in_pieces,
)
from ode_detect.ode.memory import bytes_kept
from ode_detect.ode.solvers import TABLEAUS

from ..known_solutions import Fading, GrowthInPieces, Logistic

every_method = pytest.mark.parametrize("method", TABLEAUS)


class Growing(GrowthInPieces):
    rates = (0.1, -0.3, 0.2)


def gradients(block, h):
    block.zero_grad()
    h = h.detach().clone().requires_grad_()
    out = block(h)
    out.square().sum().backward()
    # A piece that no step saw has no gradient.
    return [out.detach(), h.grad, *(p.grad.clone() for p in block.parameters() if p.grad is not None)]


def distance(a, b):
    # A bias before a normalisation has no gradient but rounding, of which no share means anything.
    least = 0.01 * max(float(y.double().norm()) for y in b)
    return max(float((x - y).double().norm() / max(y.double().norm(), least)) for x, y in zip(a, b, strict=True))


def by_hand(field, h, *, steps, duration, coupling):
    """The scheme of the paper, for Euler, as it is printed there."""
    y, z, size = h, h, duration / steps
    for index in range(steps):
        start, end = index * size, (index + 1) * size
        y = coupling * y + (1 - coupling) * z + size * field(start, z)
        z = z - (-size) * field(end - 1e-9, y)
    return y


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("coupling", [0.5, 0.99])
def test_the_scheme_by_hand(coupling, keep, smooth_conv):
    field = PiecewiseConstant([smooth_conv(2), smooth_conv(2)])
    block = ODEBlock(field=field, solver=FixedStep("euler", steps=4), gradient=Reversible(coupling=coupling, keep=keep))
    h = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    expected = by_hand(field, h, steps=4, duration=2.0, coupling=coupling)
    torch.testing.assert_close(block(h), expected, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        without = block.eval()(h)
    assert torch.equal(block.train()(h), without), "one scheme, with and without a gradient"


def test_one_step_is_the_methods_own(smooth_conv):
    h = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    for method in TABLEAUS:
        block = ODEBlock(field=smooth_conv(2), solver=FixedStep(method), gradient=Reversible())
        out, block.gradient = block(h), Reversible(keep=True)
        assert torch.equal(block(h), out)
        assert torch.equal(ODEBlock(field=block.field, solver=block.solver)(h), out)


@every_method
@pytest.mark.parametrize("make", [Logistic, Fading, Growing])
def test_the_order_is_that_of_the_method(make, method):
    """Jumps of the weights too are seen from within the step, forwards and backwards in time."""
    field = make()
    duration = getattr(field, "duration", 1.0)
    h = torch.linspace(0.2, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    errors = []
    with torch.no_grad():
        for steps in (24, 48):
            block = ODEBlock(field=field, solver=FixedStep(method, steps=steps), gradient=Reversible())
            errors.append(float((block(h) - field.exact(h, duration)).abs().max()))
    assert errors[1] < errors[0] / 2 ** (TABLEAUS[method].order - 0.3)


def flow(name, channels=16):
    if name == "bottleneck":
        return in_pieces("piecewise", 22, lambda: BottleneckField(channels=channels, bottleneck_channels=channels // 4))
    if name == "frozen":
        return in_pieces(
            "piecewise",
            22,
            lambda: BottleneckField(channels=channels, bottleneck_channels=channels // 4, norm="FrozenBN"),
        )
    return (BasicField if name == "basic" else ConcatConvField)(channels=channels)


@pytest.mark.parametrize("name", ["basic", "concat", "bottleneck", "frozen"])
@pytest.mark.parametrize("steps", [4, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradients_are_those_of_keeping_everything(dtype, tolerance, steps, name):
    field = flow(name)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.1)
    field.to(dtype)
    block = ODEBlock(field=field, solver=FixedStep("euler", steps=steps), gradient=Reversible(keep=True))
    h = torch.randn(2, 16, 7, 6, dtype=dtype)
    expected = gradients(block, h)
    block.gradient = Reversible()
    found = gradients(block, h)
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == dtype
    assert distance(found, expected) < tolerance


@every_method
@pytest.mark.parametrize("pieces", ["piecewise", "hat"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_over_methods_and_autocast(autocast, pieces, method, lively):
    """Autograd adds up gradients of weights that were cast once in bfloat16, ours are added up in float32."""
    field = lively(in_pieces(pieces, 3, lambda: BasicField(channels=4)))
    block = ODEBlock(field=field, solver=FixedStep(method, steps=6), gradient=Reversible(keep=True))
    h, results = torch.randn(2, 4, 5, 4), []
    for gradient in (Reversible(keep=True), Reversible()):
        block.gradient = gradient
        block.zero_grad()
        leaf = h.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = block(leaf)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, *(p.grad.clone() for p in block.parameters())])
    assert distance(results[1], results[0]) < (2e-2 if autocast else 1e-5)


def test_an_expanding_and_a_contracting_flow():
    """Run backwards, a flow that contracts blows rounding up; what is left is far below float32's."""

    class Decay(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor([-8.0, 8.0]).reshape(1, 2, 1, 1))

        def forward(self, t, h):
            return self.rate * h

    block = ODEBlock(field=Decay(), solver=FixedStep("heun", steps=64), gradient=Reversible(keep=True))
    h = torch.randn(1, 2, 3, 3)
    expected = gradients(block, h)
    block.gradient = Reversible()
    assert distance(gradients(block, h), expected) < 1e-5


def test_memory_does_not_grow_with_the_steps():
    field = BasicField(channels=8)
    h = torch.randn(1, 8, 6, 6, requires_grad=True)
    kept = []
    for steps in (4, 64):
        block = ODEBlock(field=field, solver=FixedStep("rk4", steps=steps), gradient=Reversible())
        kept.append(bytes_kept(lambda b=block: b(h), without=[*field.parameters(), h]))
    assert kept == [4 * h.nbytes, 4 * h.nbytes]


def test_evaluations_see_nearly_the_same_bits_forwards_and_backwards():
    """Else reconstruction could not work: layers may choose their arithmetic by whether a gradient is due."""
    seen = []

    class Watched(BasicField):
        def forward(self, t, h):
            out = super().forward(t, h)
            seen.append((t, h.detach().clone(), out.detach().clone()))
            return out

    field = Watched(channels=4, norm="FrozenBN")
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.2)
    block = ODEBlock(field=field, solver=FixedStep("midpoint", steps=8), gradient=Reversible())
    block(torch.randn(1, 4, 5, 5)).sum().backward()
    count = 2 * (2 * 8 - 1)
    forward, backward = seen[:count], seen[count:]
    # Increments are undone from the last to the first, the two stages of each in their order.
    undone = [stage for index in reversed(range(0, count, 2)) for stage in forward[index : index + 2]]
    for index, ((t, h, out), (t_again, h_again, out_again)) in enumerate(zip(undone, backward, strict=True)):
        assert t == t_again
        torch.testing.assert_close(h, h_again, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(out, out_again, rtol=1e-6, atol=1e-6)
        # The first sums of two float32 may lie in the middle between two, where the last bit of float64 decides.
        assert index >= count // 2 or (torch.equal(h, h_again) and torch.equal(out, out_again))
