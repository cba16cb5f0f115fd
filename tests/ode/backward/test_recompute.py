from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ode_detect.ode import Adaptive, Adjoint, Auto, Backprop, Checkpoint, FixedStep, GradientError, ODEBlock, Reversible
from ode_detect.ode.backward.recompute import (
    Totals,
    recomputing,
    solve_from_every,
    solve_from_few,
    statistics_of,
    statistics_put_aside,
    without_graph,
    without_trace,
)
from ode_detect.ode.gradients import Gradient
from ode_detect.ode.statistics import statistics_kept

GRID = [(float(i), float(i + 1)) for i in range(7)]


class Steps:
    """h <- h * weight + start, with a note of each step taken."""

    def __init__(self) -> None:
        self.field = nn.ParameterList([torch.tensor(1.5, dtype=torch.float64)])
        self.taken: list[float] = []

    def __call__(self, start: float, end: float, h: torch.Tensor) -> torch.Tensor:
        self.taken.append(start)
        return h * self.field[0] + start


def test_the_steps_that_are_taken_again() -> None:
    steps, h = Steps(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    solve_from_few(steps.field, steps, GRID, h, 3).sum().backward()
    # The states before steps 0, 2 and 5 are kept; on the way from 2 to 4, that before 3 is, in the place of 5.
    assert steps.taken == [0, 1, 2, 3, 4, 5, 6, 5, 6, 5, 2, 3, 4, 3, 2, 0, 1, 0]
    other, again = Steps(), torch.ones(2, dtype=torch.float64, requires_grad=True)
    solve_from_every(other.field, other, GRID, again, 3).sum().backward()
    assert other.taken[7:] == [6, 3, 4, 5, 0, 1, 2]
    assert torch.equal(h.grad, again.grad)
    assert torch.equal(steps.field[0].grad, other.field[0].grad)


def test_gradients_are_not_written_into_until_they_are_ours() -> None:
    weight = torch.ones(3, requires_grad=True)
    totals, grad = Totals([weight]), torch.full((3,), 2.0)
    for _ in range(3):
        h = torch.ones(3, requires_grad=True)
        assert torch.equal(totals.differentiate([h + weight], [grad], h), torch.full((3,), 2.0))
    assert torch.equal(grad, torch.full((3,), 2.0))
    assert torch.equal(totals.gradients[0], torch.full((3,), 6.0))


def test_what_has_no_gradient() -> None:
    weight, h = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    totals = Totals([weight])
    assert not totals.differentiate([torch.ones(3)], [torch.ones(3)], h).any()
    assert not totals.differentiate([weight * 2], [torch.ones(3)], h).any()
    assert torch.equal(totals.gradients[0], torch.full((3,), 2.0))
    assert torch.equal(Totals([]).differentiate([h * 3], [torch.ones(3)], h), torch.full((3,), 3.0))


def test_a_step_without_a_graph_is_computed_as_with_one() -> None:
    asked = []

    def step(start: float, end: float, h: torch.Tensor) -> torch.Tensor:
        asked.append(h.requires_grad and torch.is_grad_enabled())
        return h * 2

    with torch.no_grad():
        assert not without_graph(step, (0.0, 1.0), torch.ones(2)).requires_grad
    assert asked == [True]


def test_statistics_are_put_aside_also_when_it_fails() -> None:
    layer, idle = nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval()
    module = nn.Sequential(layer, idle, nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2))
    assert statistics_of(module) == [layer]
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    held = layer.running_mean

    def evaluate_and_fail() -> None:
        with statistics_put_aside([layer]):
            layer(torch.randn(3, 2, 4, 4))
            assert not torch.equal(layer.running_mean, before["running_mean"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate_and_fail()
    assert layer.running_mean is held
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.named_buffers())


def test_evaluations_without_a_trace() -> None:
    field = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5))
    before, random = {k: v.clone() for k, v in field.state_dict().items()}, torch.get_rng_state()
    with without_trace(field, h := torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))):
        field(h)
        assert not torch.equal(field[0].running_mean, before["0.running_mean"])
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[k], v) for k, v in field.state_dict().items())


def test_a_function_that_is_called_again() -> None:
    calls, layer = [], nn.BatchNorm2d(2)
    again = recomputing(layer)(lambda x: calls.append(1) or layer(x).exp())
    out = again(torch.randn(3, 2, 4, 4, requires_grad=True))
    assert (len(calls), int(layer.num_batches_tracked)) == (1, 1)
    out.sum().backward()
    assert (len(calls), int(layer.num_batches_tracked)) == (2, 1)


class Gated(nn.Module):
    """tanh(conv(h)) times a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        self.register_buffer("gate", torch.full((1, 2, 1, 1), 0.7, dtype=torch.float64))

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.conv(h)) * self.gate


def _solved(gradient: Gradient | str, solver: FixedStep | Adaptive, field: nn.Module | None = None, **arguments: Any):
    h = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    block = ODEBlock(field=field or Gated(), solver=solver, gradient=gradient, **arguments)
    return block, h, block(h).square().sum()


def _step(block: ODEBlock) -> None:
    with torch.no_grad():
        block.field.conv.weight.mul_(1.5)


def _load(block: ODEBlock) -> None:
    block.load_state_dict({name: value * 0.5 for name, value in block.state_dict().items()})


def _set_buffer(block: ODEBlock) -> None:
    block.field.gate.mul_(2)


def _replace(block: ODEBlock) -> None:
    block.field.conv.bias = nn.Parameter(torch.ones(2, dtype=torch.float64))


CHANGES = {
    _step: "'conv.weight' of its field was changed in place",
    _load: "'gate' of its field was changed in place",
    _set_buffer: "'gate' of its field was changed in place",
    _replace: "'conv.bias' of its field is another tensor now",
}
STEPS = FixedStep("heun", steps=4)
AGAIN = [
    (Checkpoint(), STEPS),
    (Checkpoint(every=2), STEPS),
    (Checkpoint(states=2), STEPS),
    (Reversible(), STEPS),
    (Auto(memory_budget=1), STEPS),
    (Checkpoint(), Adaptive()),
    (Adjoint(), STEPS),
    (Adjoint(), Adaptive()),
]


@pytest.mark.filterwarnings("ignore:no exact gradient:UserWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("gradient", "solver"), AGAIN, ids=str)
def test_a_field_that_changed_before_the_backward_pass_is_refused(gradient, solver, change) -> None:
    block, _, loss = _solved(gradient, solver)
    change(block)
    with pytest.raises(GradientError, match=rf"{CHANGES[change]}.*Call backward\(\) before.*gradient='backprop'"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:no exact gradient:UserWarning")
@pytest.mark.parametrize(("gradient", "solver"), AGAIN[:6], ids=str)
def test_a_state_that_changed_before_the_backward_pass_is_refused(gradient, solver) -> None:
    h = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    loss = ODEBlock(field=Gated(), solver=solver, gradient=gradient)(h).square().sum()
    h.add_(1)
    if isinstance(gradient, Reversible):  # which reads its last pair, and not the input
        loss.backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_of_a_functional_call_are_not_taken_for_those_of_the_module() -> None:
    block = ODEBlock(field=Gated(), solver=STEPS, gradient="checkpoint")
    fast = {name: (p * 0.5).detach().requires_grad_() for name, p in block.named_parameters()}
    h = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    loss = torch.func.functional_call(block, fast, (h,)).sum()
    with pytest.raises(GradientError, match="is another tensor now"):
        loss.backward()


@pytest.mark.parametrize("gradient", [Checkpoint(), Checkpoint(states=2), Reversible()], ids=str)
def test_a_normalisation_in_another_mode_is_refused(gradient) -> None:
    field = nn.Module()
    field.norm = nn.BatchNorm2d(2, dtype=torch.float64)
    field.forward = lambda t, h: torch.tanh(field.norm(h))
    block, _, loss = _solved(gradient, STEPS, field, allow_stateful_field=True)
    block.eval()
    with pytest.raises(GradientError, match="BatchNorm2d 'norm' of its field is in evaluation mode now"):
        loss.backward()


@pytest.mark.parametrize("gradient", ["checkpoint", Checkpoint(states=2), "reversible", "adjoint"], ids=str)
def test_modes_and_statistics_that_change_nothing_are_no_change(gradient) -> None:
    """Training mode, a second forward pass, and an evaluation in between leave a field what it was."""
    block, h, loss = _solved(gradient, STEPS)
    block.eval()
    block(h.detach() + 1)
    loss.backward()
    field = nn.Module()
    field.norm = nn.BatchNorm2d(2, dtype=torch.float64)
    field.forward = lambda t, h: torch.tanh(field.norm(h))
    block, h, loss = _solved(gradient, STEPS, field, allow_stateful_field=True)
    (loss + block(h + 1).sum()).backward()
    assert h.grad is not None
    with statistics_kept(block):
        loss = block(h).square().sum()
        field.norm.running_mean.add_(1)
        loss.backward()


def _penalty(gradient: Gradient, solver: FixedStep | Adaptive) -> tuple[Tensor, ...]:
    """Gradients by the weights of a gradient penalty: |dL/dh|^2."""
    torch.manual_seed(3)
    block, h, loss = _solved(gradient, solver)
    (by_h,) = torch.autograd.grad(loss, h, create_graph=True)
    return torch.autograd.grad(by_h.square().sum(), list(block.parameters()))


@pytest.mark.parametrize(
    ("gradient", "solver"),
    [(Checkpoint(states=2), STEPS), (Reversible(), STEPS), (Adjoint(), STEPS), (Adjoint(), Adaptive())],
    ids=str,
)
def test_a_gradient_penalty_is_not_lost(gradient, solver) -> None:
    with pytest.raises(GradientError, match=r"create_graph=True asks for one.*gradient='backprop' or"):
        _penalty(gradient, solver)
    with pytest.raises(GradientError, match="create_graph=True"):
        _solved(gradient, solver)[2].backward(create_graph=True)
    _, h, loss = _solved(gradient, solver)
    assert float(torch.autograd.grad(loss, h)[0].norm()) > 0


@pytest.mark.parametrize(
    ("gradient", "solver"),
    [(Checkpoint(), STEPS), (Checkpoint(every=3), STEPS), (Checkpoint(), Adaptive())],
    ids=str,
)
def test_a_gradient_penalty_by_recomputation(gradient, solver) -> None:
    for found, expected in zip(_penalty(gradient, solver), _penalty(Backprop(), solver), strict=True):
        torch.testing.assert_close(found, expected)
        assert float(found.norm()) > 1e-3
