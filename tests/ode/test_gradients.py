import copy

import pytest
import torch
from torch import nn

from ode_detect.ode import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    ODEBlock,
    adaptive_methods,
    in_pieces,
    record_solves,
)
from ode_detect.ode.gradients import GRADIENTS, make_gradient
from ode_detect.ode.pieces import PIECES
from ode_detect.ode.solvers import TABLEAUS

EXACT = [name for name in GRADIENTS if name != "adjoint"]
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
@pytest.mark.parametrize("gradient", EXACT)
def test_fixed_steps_are_differentiated_exactly(gradient, pieces, method, build):
    assert check(build(FixedStep(method, steps=2), gradient, pieces))


@pytest.mark.parametrize("gradient", EXACT)
def test_a_projected_solve_is_differentiated_exactly(gradient, build):
    assert check(build(FixedStep("euler", steps=2, projection="relu"), gradient))


@pytest.mark.parametrize(
    ("gradient", "pieces"), [*((name, "constant") for name in EXACT), ("backprop", "piecewise"), ("backprop", "hat")]
)
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
def test_checkpoint_is_backpropagation_bit_for_bit(projection, pieces, method, build):
    block, h = (
        build(FixedStep(method, steps=3, projection=projection), "backprop", pieces, torch.float32),
        state(torch.float32),
    )
    expected = gradients(block, h)
    block.gradient = Checkpoint()
    assert all(torch.equal(a, b) for a, b in zip(gradients(block, h), expected, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_of_an_adaptive_solve_is_backpropagation(method, build):
    block, h = build(Adaptive(method, steps=8), "backprop", "piecewise", torch.float32), state(torch.float32)
    expected = gradients(block, h)
    block.gradient = Checkpoint()
    assert distance(gradients(block, h), expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_adjoint_of_torchdiffeq_is_near_backpropagation(method, build):
    solver = Adaptive(method, rtol=1e-4, atol=1e-5, steps=24, max_evaluations=10_000)
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


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("solver", [FixedStep("rk4", steps=2), Adaptive()])
def test_weights_that_are_frozen_get_no_gradient(solver, gradient, build):
    block = build(solver, gradient, "piecewise")
    first, second = block.field.pieces
    first.requires_grad_(False)
    h = state()
    block(h).sum().backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None and p.grad.any() for p in second.parameters())
    assert h.grad.any()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("solver", [FixedStep("rk4", steps=2), Adaptive()])
def test_an_input_without_gradient(solver, gradient, build):
    block = build(solver, gradient)
    block(state().detach()).sum().backward()
    assert all(p.grad.any() for p in block.parameters())
    with torch.no_grad():
        assert not block(state()).requires_grad


class KeptBytes:
    """Bytes that autograd keeps for the backward pass."""

    def __init__(self):
        self.seen = {}

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def pack(self, tensor):
        self.seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_memory_over_steps(build):
    """Backpropagation keeps more with each step, a checkpoint less than that, the adjoint nothing more."""
    kept = {}
    for gradient in GRADIENTS:
        for steps in (2, 8):
            block = build(FixedStep("rk4", steps=steps), gradient)
            with KeptBytes() as keeper:
                out = block(state())  # held, so that no address is used twice
            kept[gradient, steps] = sum(keeper.seen.values())
            del out
    assert kept["backprop", 8] > 3 * kept["backprop", 2]
    assert kept["checkpoint", 8] < kept["backprop", 8] / 3
    assert kept["adjoint", 8] == kept["adjoint", 2]


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_by_name(name):
    assert make_gradient(name) == GRADIENTS[name]()
    value = GRADIENTS[name]()
    assert make_gradient(value) is value
    assert copy.copy(value) == value


@pytest.mark.parametrize("wrong", ["checkpont", None, Checkpoint, 3])
def test_unknown_gradients(wrong):
    with pytest.raises(ValueError, match=r"unknown gradient .*known are adjoint, backprop, checkpoint"):
        ODEBlock(field=nn.Identity(), gradient=wrong)


class Unit(nn.Module):
    """dh/dt = 1."""

    def forward(self, t: float, h: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(h)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
@pytest.mark.parametrize("steps", [1, 64, 400])
def test_small_steps_do_not_vanish_in_half_precision(dtype: torch.dtype, gradient: str, steps: int) -> None:
    block = ODEBlock(field=Unit(), solver=FixedStep("euler", steps), gradient=gradient)
    out = block(torch.full((1, 1, 2, 2), 4.0, dtype=dtype))
    assert out.dtype == dtype
    assert torch.equal(out, torch.full_like(out, 5.0))
