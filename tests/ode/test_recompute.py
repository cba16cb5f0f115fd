import pytest
import torch
from torch import nn

from ode_detect.ode.recompute import (
    Totals,
    recomputing,
    solve_from_every,
    solve_from_few,
    statistics_of,
    statistics_put_aside,
    without_graph,
    without_trace,
)

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
