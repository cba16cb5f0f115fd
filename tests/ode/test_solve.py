import copy

import pytest
import torch
from torch import nn

from ode_detect.ode import (
    Adaptive,
    Adjoint,
    Auto,
    Backprop,
    Checkpoint,
    FixedStep,
    ODEBlock,
    Reversible,
    adaptive_methods,
    in_pieces,
    record_solves,
)
from ode_detect.ode.gradients import Gradient
from ode_detect.ode.memory import bytes_kept
from ode_detect.ode.pieces import PIECES
from ode_detect.ode.solvers import TABLEAUS

EXACT = [Backprop(), Checkpoint(), Checkpoint(every=3), Checkpoint(states=2), Reversible()]


RECOMPUTED = [Checkpoint(), Checkpoint(every=2), Checkpoint(every=5), Checkpoint(states=1), Checkpoint(states=3)]


METHODS = [m for m in adaptive_methods() if m != "scipy_solver"]


every_method = pytest.mark.parametrize("method", TABLEAUS)


every_kind = pytest.mark.parametrize("pieces", PIECES)


@pytest.fixture
def build(smooth_conv):
    def make(solver, gradient, pieces="constant", dtype=torch.float64):
        field = in_pieces(pieces, 1 if pieces == "constant" else 2, lambda: smooth_conv(2, dtype))
        return ODEBlock(field=field, solver=solver, gradient=gradient)

    return make


def state(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 2, 3, 2, dtype=dtype, generator=generator).requires_grad_()


def check(block, **tolerances):
    """Analytic against numerical gradients, by the input and by every parameter."""
    return torch.autograd.gradcheck(
        lambda h, *_: block(h), (state(), *block.parameters()), fast_mode=True, check_undefined_grad=False, **tolerances
    )


def gradients(block, h):
    block.zero_grad()
    h = h.detach().clone().requires_grad_()
    out = block(h)
    out.square().sum().backward()
    return [out.detach(), h.grad, *(p.grad.clone() for p in block.parameters())]


def distance(a, b):
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


@every_method
@every_kind
@pytest.mark.parametrize("gradient", EXACT, ids=str)
def test_fixed_steps_are_differentiated_exactly(gradient, pieces, method, build):
    assert check(build(FixedStep(method, steps=4), gradient, pieces))


@pytest.mark.parametrize("gradient", EXACT[:-1], ids=str)
def test_a_projected_solve_is_differentiated_exactly(gradient, build):
    assert check(build(FixedStep("euler", steps=2, projection="relu"), gradient))


@pytest.mark.parametrize(("gradient", "pieces"), [("checkpoint", "constant"), *(("backprop", kind) for kind in PIECES)])
def test_an_adaptive_solve_is_differentiated_exactly(gradient, pieces, build):
    # Tight, since differences of the solve also see the step sizes change, which no gradient follows.
    solver = Adaptive("dopri5", rtol=1e-6, atol=1e-6)
    assert check(build(solver, gradient, pieces), atol=1e-4)


@pytest.mark.parametrize(("seminorm", "pieces"), [*((True, kind) for kind in PIECES), (False, "constant")])
def test_the_adjoint_with_tight_tolerances(seminorm, pieces, build):
    block = build(Adaptive("dopri5", rtol=1e-6, atol=1e-7), Adjoint(seminorm=seminorm), pieces)
    assert check(block, atol=1e-4)


@every_kind
def test_the_adjoint_with_many_steps(pieces, build):
    assert check(build(FixedStep("rk4", steps=8), "adjoint", pieces), atol=1e-3)


@every_method
def test_the_adjoint_of_fixed_steps_tends_to_backpropagation(method, build):
    block, h = build(FixedStep(method), "adjoint"), state()
    far = []
    for steps in (2, 8, 32):
        block.solver = FixedStep(method, steps=steps)
        block.gradient = Adjoint()
        adjoint = gradients(block, h)
        block.gradient = Backprop()
        far.append(distance(adjoint, gradients(block, h)))
    rate = 4 ** (TABLEAUS[method].order - 0.5)
    assert far[1] < far[0] / rate
    assert far[2] < max(far[1] / rate, 1e-12)


@every_method
@every_kind
@pytest.mark.parametrize("projection", ["none", "relu"])
@pytest.mark.parametrize("gradient", RECOMPUTED, ids=str)
def test_checkpoint_is_backpropagation_bit_for_bit(gradient, projection, pieces, method, build):
    block, h = (
        build(FixedStep(method, steps=5, projection=projection), "backprop", pieces, torch.float32),
        state(torch.float32),
    )
    expected = gradients(block, h)
    block.gradient = gradient
    found = gradients(block, h)
    assert torch.equal(found[0], expected[0])
    if gradient.states is None or method == "euler":
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    else:  # Sums over the stages of a step are rounded in another order.
        assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_of_an_adaptive_solve_is_backpropagation(method, build):
    block, h = build(Adaptive(method, steps=8), "backprop", "piecewise", torch.float32), state(torch.float32)
    expected = gradients(block, h)
    block.gradient = Checkpoint()
    assert distance(gradients(block, h), expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_adjoint_of_torchdiffeq_is_near_backpropagation(method, build):
    solver = Adaptive(method, rtol=1e-4, atol=1e-5, steps=48, max_evaluations=10_000)
    block, h = build(solver, "backprop", "piecewise"), state()
    expected = gradients(block, h)
    block.gradient = Adjoint()
    assert distance(gradients(block, h), expected) < (0.05 if method in ("euler", "fehlberg2") else 5e-3)


def test_the_seminorm_costs_no_more(build):
    block, h = build(Adaptive("dopri5", rtol=1e-6, atol=1e-6), "backprop"), state()
    spent = []
    for seminorm in (True, False):
        block.gradient = Adjoint(seminorm=seminorm)
        with record_solves(block) as record:
            gradients(block, h)
        spent.append(record.total.backward_evaluations)
    assert 0 < spent[0] < spent[1]


def test_the_adjoint_has_tolerances_of_its_own(build):
    block, h = build(Adaptive("dopri5"), "backprop"), state()
    spent = []
    for tolerance in (None, 1e-8):
        block.gradient = Adjoint(rtol=tolerance, atol=tolerance)
        with record_solves(block) as record:
            gradients(block, h)
        spent.append((record.total.forward_evaluations, record.total.backward_evaluations))
    assert spent[0][0] == spent[1][0]
    assert spent[0][1] < spent[1][1]


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        *((FixedStep("rk4", steps=4), gradient) for gradient in [*EXACT, Reversible(keep=True), Adjoint(), Auto(9999)]),
        *((Adaptive(), gradient) for gradient in (Backprop(), Checkpoint(), Adjoint())),
    ],
    ids=str,
)
def test_weights_that_are_frozen_get_no_gradient(solver, gradient, build):
    block = build(solver, gradient, "piecewise")
    first, second = block.field.pieces
    first.requires_grad_(False)
    h = state()
    block(h).sum().backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None and p.grad.any() for p in second.parameters())
    assert h.grad.any()


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        *((FixedStep("rk4", steps=4), gradient) for gradient in [*EXACT, Reversible(keep=True), Adjoint(), Auto(9999)]),
        *((Adaptive(), gradient) for gradient in (Backprop(), Checkpoint(), Adjoint())),
    ],
    ids=str,
)
def test_an_input_without_gradient(solver, gradient, build):
    block = build(solver, gradient)
    block(state().detach()).sum().backward()
    assert all(p.grad.any() for p in block.parameters())
    with torch.no_grad():
        assert not block(state()).requires_grad


def test_memory_over_steps(build):
    """Backpropagation keeps more with each step, a checkpoint less than that, the others nothing more."""
    kept = {}
    for gradient in [*EXACT, Adjoint()]:
        for steps in (4, 16):
            block, h = build(FixedStep("rk4", steps=steps), gradient), state()
            kept[gradient, steps] = bytes_kept(lambda b=block, h=h: b(h), without=[*block.parameters(), h])
    assert kept[Backprop(), 16] > 3 * kept[Backprop(), 4]
    assert kept[Checkpoint(), 16] < kept[Backprop(), 16] / 3
    size = state().nbytes
    assert [kept[Checkpoint(every=3), steps] for steps in (4, 16)] == [1 * size, 5 * size]
    assert [kept[Checkpoint(states=2), steps] for steps in (4, 16)] == [size, size]
    assert [kept[Reversible(), steps] for steps in (4, 16)] == [2 * size, 2 * size]
    assert kept[Adjoint(), 16] == kept[Adjoint(), 4]


class Gate(nn.Module):
    """A field with a layer that is given."""

    def __init__(self, layer):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 3, 3, padding=1), layer

    def forward(self, t, h):
        return self.conv(torch.relu(self.layer(h)))


@every_method
@pytest.mark.parametrize("gradient", [*RECOMPUTED, Reversible()], ids=str)
@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, momentum=None)])
def test_running_statistics_are_those_of_the_forward_pass(layer, gradient, method):
    """A converted network trains with recomputation to the same bits as without, buffers included."""
    field = in_pieces("piecewise", 2, lambda: Gate(layer()))
    block = ODEBlock(field=field, solver=FixedStep(method, steps=4), gradient=gradient, allow_stateful_field=True)
    other = copy.deepcopy(block)
    other.gradient = Reversible(keep=True) if isinstance(gradient, Reversible) else Backprop()
    h = torch.randn(4, 3, 5, 5)
    for _ in range(2):
        found, expected = gradients(block, h), gradients(other, h)
        assert distance(found, expected) < 1e-5
        for (name, a), b in zip(block.named_buffers(), other.buffers(), strict=True):
            assert torch.equal(a, b), name
    assert int(block.field.pieces[0].layer.num_batches_tracked) > 2


def test_running_statistics_of_an_adaptive_solve_are_those_of_the_forward_pass():
    block = ODEBlock(field=Gate(nn.BatchNorm2d(3)), solver=Adaptive(), gradient="checkpoint", allow_stateful_field=True)
    out = block(torch.randn(4, 3, 5, 5))
    before = copy.deepcopy(dict(block.named_buffers()))
    out.square().sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in block.named_buffers())


@pytest.mark.parametrize("every", [1, 3])
def test_dropout_masks_are_drawn_once(every):
    field, h = Gate(nn.Dropout(0.5)), torch.randn(2, 3, 5, 5)
    results = []
    for gradient in (Backprop(), Checkpoint(every=every)):
        block = ODEBlock(field=field, solver=FixedStep("heun", steps=4), gradient=gradient, allow_stateful_field=True)
        torch.manual_seed(3)
        results.append(gradients(block, h))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("gradient", [Checkpoint(states=2), Reversible()], ids=str)
def test_dropout_masks_that_cannot_be_kept_are_refused(gradient):
    block = ODEBlock(
        field=Gate(nn.Dropout(0.5)), solver=FixedStep(steps=2), gradient=gradient, allow_stateful_field=True
    )
    with pytest.raises(ValueError, match=r"dropout would draw other masks.*dropout outside the flow"):
        block(torch.randn(2, 3, 5, 5))
    block.eval()
    block(torch.randn(2, 3, 5, 5)).sum().backward()


@pytest.mark.parametrize("gradient", [*RECOMPUTED, Reversible()], ids=str)
def test_a_graph_that_is_kept_can_be_used_again(gradient, build):
    block, h = build(FixedStep("midpoint", steps=5), gradient), state()
    loss = block(h).square().sum()
    inputs = [h, *block.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


class Borrowed(nn.Module):
    """Fields whose gradients are tensors of somebody else, or views: dh/dt = h + bias + mean of h."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 2, 3, 2, dtype=torch.float64))

    def forward(self, t, h):
        return h + self.bias + h.mean().expand_as(h)


@every_method
@pytest.mark.parametrize("gradient", [Checkpoint(states=2), Reversible()], ids=str)
def test_gradients_that_are_shared_are_not_written_into(gradient, method):
    block = ODEBlock(field=Borrowed(), solver=FixedStep(method, steps=4), gradient=gradient)
    found = gradients(block, state())
    block.gradient = Reversible(keep=True) if isinstance(gradient, Reversible) else Backprop()
    assert distance(found, gradients(block, state())) < 1e-12


class Unit(nn.Module):
    """dh/dt = 1."""

    def forward(self, t: float, h: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(h)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint(), Checkpoint(states=2), Reversible()], ids=str)
@pytest.mark.parametrize("steps", [1, 64, 400])
def test_small_steps_do_not_vanish_in_half_precision(dtype: torch.dtype, gradient: Gradient, steps: int) -> None:
    block = ODEBlock(field=Unit(), solver=FixedStep("euler", steps), gradient=gradient)
    h = torch.full((1, 1, 2, 2), 4.0, dtype=dtype, requires_grad=True)
    out = block(h)
    assert out.dtype == dtype
    assert torch.equal(out, torch.full_like(out, 5.0))
    out.sum().backward()
    assert h.grad.dtype == dtype
    torch.testing.assert_close(h.grad, torch.ones_like(h), rtol=1e-2, atol=0)


@pytest.mark.parametrize("gradient", [*RECOMPUTED, Reversible()], ids=str)
def test_a_graph_with_running_statistics_that_is_kept_can_be_used_again(gradient):
    block = ODEBlock(
        field=Gate(nn.BatchNorm2d(3)), solver=FixedStep(steps=3), gradient=gradient, allow_stateful_field=True
    )
    h = torch.randn(4, 3, 5, 5, requires_grad=True)
    loss, inputs = block(h).square().sum(), [h, *block.parameters()]
    statistics = {name: buffer.clone() for name, buffer in block.named_buffers()}
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(statistics[name], buffer) for name, buffer in block.named_buffers())


class StochasticDepth(nn.Module):
    """As torchvision's: pictures are left out at random."""

    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) > self.p) if self.training else x


class Unseen(nn.Module):
    """Draws, and nothing about it says so."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize("layer", [StochasticDepth, Unseen])
@pytest.mark.parametrize("gradient", [Checkpoint(), Checkpoint(every=2)], ids=str)
def test_what_is_drawn_by_layers_that_torch_does_not_bring_is_drawn_once(gradient, layer):
    field, h = Gate(layer()), torch.randn(6, 3, 5, 5)
    results = []
    for each in (Backprop(), gradient):
        block = ODEBlock(field=field, solver=FixedStep("heun", steps=4), gradient=each, allow_stateful_field=True)
        torch.manual_seed(3)
        results.append(gradients(block, h))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("gradient", [Checkpoint(states=2), Reversible()], ids=str)
def test_stochastic_depth_that_cannot_be_kept_is_refused(gradient):
    field = Gate(StochasticDepth())
    block = ODEBlock(field=field, solver=FixedStep(steps=2), gradient=gradient, allow_stateful_field=True)
    with pytest.raises(ValueError, match="draw other masks"):
        block(torch.randn(2, 3, 5, 5))
