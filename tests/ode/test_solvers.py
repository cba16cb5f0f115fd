import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from ode_detect.ode import Adaptive, FixedStep, HatFunctions, ODEBlock, PiecewiseConstant
from ode_detect.ode.solvers import PROJECTIONS, TABLEAUS

from .known_solutions import Fading, GrowthInPieces, Logistic

METHODS = list(TABLEAUS)


class Rotation(nn.Module):
    """h turns by 2 radians a unit of time."""

    def forward(self, t, h):
        return 2 * torch.cat([-h[:, 1:], h[:, :1]], dim=1)

    def exact(self, h, t):
        cos, sin = math.cos(2 * t), math.sin(2 * t)
        return torch.cat([cos * h[:, :1] - sin * h[:, 1:], sin * h[:, :1] + cos * h[:, 1:]], dim=1)


class InPieces(GrowthInPieces):
    rates = (0.3, -0.4, 0.2)


class Steady(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, h):
        return self.rate * h


class Hats(HatFunctions):
    """Knots at 0, 1.5 and 3."""

    def __init__(self):
        super().__init__([Steady(0.5), Steady(0.7), Steady(-0.4)])

    def exact(self, h, t):
        a, b, c = (float(knot.rate) for knot in self.knots)
        return h * math.exp(1.5 * (a / 2 + b + c / 2))


PROBLEMS = [Rotation, Logistic, Fading, InPieces, Hats]


def start():
    return torch.tensor([0.3, 0.7], dtype=torch.float64).reshape(1, 2, 1, 1)


def error(problem, solver):
    field, h = problem(), start()
    block = ODEBlock(field=field, solver=solver)
    with torch.no_grad():
        return float((block(h) - field.exact(h, block.duration)).abs().max())


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method, problem):
    coarse, fine = (error(problem, FixedStep(method, steps=steps)) for steps in (48, 96))
    assert fine > 1e-14, "too exact to see an order"
    assert math.log2(coarse / fine) == pytest.approx(TABLEAUS[method].order, abs=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_conditions_of_order(method):
    """Butcher's conditions, one per rooted tree, of the order that the tableau claims and not of the next."""
    tableau = TABLEAUS[method]
    n = len(tableau.b)
    a = torch.zeros(n, n, dtype=torch.float64)
    for i, row in enumerate(tableau.a):
        assert len(row) == i
        a[i, :i] = torch.tensor(row)
    b, c = torch.tensor(tableau.b, dtype=torch.float64), torch.tensor(tableau.c, dtype=torch.float64)
    assert torch.equal(a.sum(1), c)
    trees = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 2)],
        3: [(b @ c**2, 3), (b @ a @ c, 6)],
        4: [(b @ c**3, 4), ((b * c) @ a @ c, 8), (b @ a @ c**2, 12), (b @ a @ a @ c, 24)],
        5: [(b @ c**4, 5), (b @ a @ a @ a @ c, 120)],
    }
    for order, conditions in trees.items():
        kept = all(abs(float(value) - 1 / density) < 1e-14 for value, density in conditions)
        assert kept == (order <= tableau.order) or order > tableau.order + 1


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 22])
@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_what_is_evaluated(method, steps):
    calls = []

    class Field(nn.Module):
        def forward(self, t, h):
            calls.append(t)
            return h

    solver = FixedStep(method, steps=steps)
    ODEBlock(field=Field(), solver=solver, duration=3.0)(start())
    assert len(calls) == solver.evaluations
    assert all(type(t) is float and 0 <= t < 3 for t in calls)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("steps", [3, 9, 15, 33])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_the_piece_it_belongs_to(method, steps, gradient, dtype):
    read = []

    class Piece(nn.Module):
        def __init__(self, index):
            super().__init__()
            self.index, self.rate = index, nn.Parameter(torch.tensor(0.1, dtype=dtype))

        def forward(self, t, h):
            read.append(self.index)
            return self.rate * h

    block = ODEBlock(
        field=PiecewiseConstant([Piece(k) for k in range(3)]), solver=FixedStep(method, steps=steps), gradient=gradient
    )
    h = start().to(dtype).requires_grad_()
    out = block(h)
    stages = len(TABLEAUS[method].b)
    assert read == [k for k in range(3) for _ in range(stages * steps // 3)]
    read.clear()
    out.sum().backward()
    assert read == ([] if gradient == "backprop" else [k for k in (2, 1, 0) for _ in range(stages * steps // 3)])


@pytest.mark.parametrize("problem", [Fading, InPieces, Hats])
@pytest.mark.parametrize("method", METHODS)
def test_the_adjoints_forward_solve_is_the_same(method, problem):
    field, h = problem(), start().requires_grad_()
    outs = [ODEBlock(field=field, solver=FixedStep(method, steps=12), gradient=g)(h) for g in ("backprop", "adjoint")]
    torch.testing.assert_close(*outs, rtol=1e-14, atol=0)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_the_projection_follows_each_step(method, projection):
    field = Rotation()
    solver = FixedStep(method, steps=5, projection=projection)
    h = start()
    expected = h
    for _ in range(5):
        expected = ODEBlock(field=field, solver=FixedStep(method, steps=1), duration=0.2)(expected)
        expected = torch.where(expected > 0, expected, 0.0) if projection == "relu" else expected
    out = ODEBlock(field=field, solver=solver)(h)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-15)
    assert bool((out < 0).any()) == (projection == "none")


@pytest.mark.parametrize("method", METHODS)
def test_the_state_that_came_in_is_not_written_to(method):
    h = start()
    ODEBlock(field=Rotation(), solver=FixedStep(method, steps=2))(h)
    assert torch.equal(h, start())


@pytest.mark.parametrize(("pieces", "factor"), [(k, m) for k in (1, 3, 7, 22) for m in (1, 3, 5, 11)])
def test_a_grid_meets_the_pieces_exactly(pieces, factor):
    grid = list(FixedStep(steps=pieces * factor).grid(float(pieces)))
    assert [start for start, _ in grid[::factor]] == list(range(pieces))
    assert grid[-1][1] == pieces
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(grid))


@pytest.mark.parametrize("make", [FixedStep(), Adaptive()])
def test_solvers_are_frozen_values(make):
    assert make == dataclasses.replace(make)
    assert len({make, dataclasses.replace(make)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        make.steps = 3


@pytest.mark.parametrize("steps", [0, -1, 1.5, 2.0, True, "3", None])
@pytest.mark.parametrize("kind", [FixedStep, Adaptive])
def test_steps_must_be_whole(kind, steps):
    with pytest.raises(ValueError, match="steps must be an integer of 1 or more"):
        kind(steps=steps)


@pytest.mark.parametrize("steps", [10**9, 10**100])
@pytest.mark.parametrize("kind", [FixedStep, Adaptive])
def test_more_steps_than_can_be_computed_are_refused(kind, steps):
    with pytest.raises(ValueError, match=r"^steps must be an integer of at most 1000000, not (1000000000|one of many)"):
        kind(steps=steps)


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: FixedStep("eulr"), "euler"),
        (lambda: FixedStep("RK4"), "rk4"),
        (lambda: FixedStep(projection="rellu"), "relu"),
        (lambda: Adaptive("dopri4"), "dopri"),
    ],
)
def test_unknown_names(make, near):
    with pytest.raises(ValueError, match=f"known are .*Did you mean '{near}"):
        make()


def test_a_fixed_step_method_is_not_taken_for_an_adaptive_one():
    with pytest.raises(ValueError, match="unknown fixed-step method 'dopri5'"):
        FixedStep("dopri5")
