import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torchdiffeq import odeint
from torchdiffeq._impl import scipy_wrapper
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from ode_detect.ode import (
    Adaptive,
    Adjoint,
    FixedStep,
    NonFiniteStateError,
    ODEBlock,
    SolveError,
    StepUnderflowError,
    TooManyEvaluationsError,
    adaptive_methods,
    record_solves,
)
from ode_detect.ode.solvers import TABLEAUS

from .known_solutions import Fading, Growth, GrowthInPieces, Logistic

METHODS = adaptive_methods()
FIXED = [m for m in METHODS if isinstance(SOLVERS[m], type) and issubclass(SOLVERS[m], FixedGridODESolver)]
ADAPTING = [m for m in METHODS if m not in FIXED and m != "scipy_solver"]
MULTISTEP = [m for m in FIXED if "adams" in m]


class InPieces(GrowthInPieces):
    rates = (0.5, -0.4, 0.3)


PROBLEMS = [Logistic, Fading, InPieces]


class Square(nn.Module):
    """dh/dt = h^2 leaves every bound at time 1 / h(0)."""

    def forward(self, t, h):
        return h * h


class Turns(nn.Module):
    """Is NaN (or whatever) once h has passed 1; h grows by 2 a unit of time."""

    def __init__(self, into=float("nan")):
        super().__init__()
        self.into = into

    def forward(self, t, h):
        return torch.where(h > 1, self.into, 2.0 + 0 * h)


def start(dtype=torch.float64):
    return torch.tensor([0.3, 0.7], dtype=dtype).reshape(1, 2, 1, 1)


def error(problem, solver):
    field, h = problem(), start()
    block = ODEBlock(field=field, solver=solver)
    with torch.no_grad():
        return float((block(h) - field.exact(h, block.duration)).abs().max())


def test_our_own_methods_are_not_listed():
    ODEBlock(field=Logistic(), solver=FixedStep("heun"), gradient="adjoint")(start())
    assert not [name for name in adaptive_methods() if name.startswith("ode_detect")]
    assert {"dopri5", "bosh3", "rk4", "scipy_solver"} <= set(adaptive_methods())
    assert set(FIXED) | set(ADAPTING) | {"scipy_solver"} == set(METHODS)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", [*ADAPTING, "scipy_solver"])
def test_the_tolerance_is_met(method, problem):
    """The tolerance is for a step; over a solve errors add up, and Fehlberg's 1(2) pair judges them too small."""
    for tolerance in (1e-3, 1e-5):
        solver = Adaptive(method, rtol=tolerance, atol=tolerance, max_evaluations=100_000)
        assert error(problem, solver) < (500 if method == "fehlberg2" else 50) * tolerance


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("method", ADAPTING)
def test_no_evaluation_outside_the_time_of_the_flow(method, gradient):
    times = []

    class Field(nn.Module):
        def forward(self, t, h):
            times.append(float(t.detach()))
            return torch.cos(h)

    block = ODEBlock(field=Field(), solver=Adaptive(method), gradient=gradient, duration=1.7)
    block(start().requires_grad_()).sum().backward()
    assert min(times) >= 0
    assert max(times) <= 1.7


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", FIXED)
def test_order_of_torchdiffeqs_fixed_methods(method, problem):
    coarse, fine = (
        error(problem, Adaptive(method, steps=n, rtol=1e-6, atol=1e-8, max_evaluations=100_000)) for n in (48, 96)
    )
    order = math.log2(coarse / fine)
    if method in MULTISTEP:
        # Of order 4 and more, until the iteration that solves the implicit one stops, at its tolerance.
        assert order > SOLVERS[method].order - 0.2 or fine < 1e-8
    else:
        assert order == pytest.approx(SOLVERS[method].order, abs=0.2)


@pytest.mark.parametrize("method", METHODS)
def test_contract(method, smooth_conv):
    h = torch.randn(2, 3, 5, 4).to(memory_format=torch.channels_last)
    block = ODEBlock(field=smooth_conv(3, torch.float32), solver=Adaptive(method, steps=4))
    with torch.no_grad():
        out = block(h)
        assert block(torch.empty(0, 3, 5, 4)).shape == (0, 3, 5, 4)
    assert (out.shape, out.dtype, out.stride()) == (h.shape, h.dtype, h.stride())


def test_scipy_on_a_real_field(smooth_conv):
    """RK45 of SciPy, without torchdiffeq, against every way we have."""
    field = smooth_conv(3)
    h = torch.randn(1, 3, 5, 4, dtype=torch.float64)

    def slope(t, y):
        with torch.no_grad():
            return field(t, torch.from_numpy(y).reshape(h.shape)).numpy().ravel()

    reference = solve_ivp(slope, (0, 1.5), h.numpy().ravel(), method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    solvers = [(FixedStep(m, steps=8), 0.5 * 0.4 ** TABLEAUS[m].order) for m in TABLEAUS]
    solvers += [
        (Adaptive(m, rtol=1e-4, atol=1e-4), 0.02 if m == "fehlberg2" else 2e-3) for m in (*ADAPTING, "scipy_solver")
    ]
    for solver, tolerance in solvers:
        with torch.no_grad():
            out = ODEBlock(field=field, solver=solver, duration=1.5)(h)
        np.testing.assert_allclose(out.numpy().ravel(), reference, rtol=0, atol=tolerance, err_msg=str(solver))


@pytest.mark.parametrize("method", [m for m in FIXED if m not in MULTISTEP])  # those remember slopes across the jump
def test_a_jump_that_nobody_declared_falls_between_steps(method):
    """A field of the user's own that jumps at time 1, where a step ends: each step sees its own side."""

    class Jumps(nn.Module):
        def forward(self, t, h):
            return torch.full_like(h, 1.0 if t < 1 else -3.0)

    h = start()
    out = ODEBlock(field=Jumps(), solver=Adaptive(method, steps=4), duration=2.0)(h)
    torch.testing.assert_close(out, h - 2.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ADAPTING)
def test_torchdiffeq_itself_gives_the_same_bits(method, dtype, smooth_conv):
    field, h = smooth_conv(3, dtype), torch.randn(1, 3, 5, 4, dtype=dtype)
    with torch.no_grad():
        out = ODEBlock(field=field, solver=Adaptive(method), duration=1.5)(h)
        times = torch.tensor([0.0, 1.5], dtype=torch.float64)
        options = {"step_t": times[1:]}
        assert torch.equal(out, odeint(field, h, times, rtol=1e-3, atol=1e-4, method=method, options=options)[-1])


@pytest.mark.parametrize("method", sorted({"euler", "midpoint", "rk4"} & set(FIXED)))
def test_torchdiffeqs_loop_against_ours(method, smooth_conv):
    """rk4 is another method there (the 3/8 rule): equal to its order; the others are equal."""
    field, h = smooth_conv(3), torch.randn(1, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        theirs, ours = (ODEBlock(field=field, solver=kind(method, steps=6))(h) for kind in (Adaptive, FixedStep))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 if method == "rk4" else 1e-13)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", [FixedStep("heun", steps=2), Adaptive(), Adaptive("rk4", steps=2)])
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
def test_the_field_is_evaluated_in_the_dtype_of_the_state(gradient, solver, kind, smooth_conv):
    seen = set()
    field = smooth_conv(2, kind)
    field.register_forward_pre_hook(lambda module, args: seen.add(args[1].dtype))
    block = ODEBlock(field=field, solver=solver, gradient=gradient)
    h = torch.randn(1, 2, 4, 4).to(kind).requires_grad_()
    with record_solves(block):
        out = block(h)
    out.sum().backward()
    assert seen == {out.dtype} == {h.grad.dtype} == {field.conv.weight.grad.dtype} == {kind}


@pytest.mark.parametrize("solver", [FixedStep("midpoint", steps=2), Adaptive()])
def test_the_adjoint_evaluates_under_the_autocast_of_the_forward_pass(solver, smooth_conv):
    seen = []
    field = smooth_conv(2, torch.float32)
    field.conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    block = ODEBlock(field=field, solver=solver, gradient="adjoint")
    with torch.autocast("cpu", torch.bfloat16):
        out = block(torch.randn(1, 2, 4, 4, requires_grad=True))
    forward = len(seen)
    out.sum().backward()
    assert len(seen) > forward
    assert set(seen) == {torch.bfloat16}


# --- failures ---


@pytest.mark.parametrize("method", ADAPTING)
def test_too_many_evaluations(method):
    block = ODEBlock(field=Logistic(), solver=Adaptive(method, rtol=1e-9, atol=1e-9, max_evaluations=20), name="res4")
    with pytest.raises(
        TooManyEvaluationsError, match=r"'res4' reached max_evaluations.*forward pass, after 20"
    ) as caught:
        block(start())
    assert 0 <= caught.value.time < 1
    assert caught.value.evaluations == 20


def test_the_limit_is_for_the_whole_of_a_field_in_pieces():
    with record_solves(block := ODEBlock(field=InPieces(), solver=Adaptive())) as record:
        block(start())
    needed = record.total.forward_evaluations
    block.solver = Adaptive(max_evaluations=needed)
    block(start())
    block.solver = Adaptive(max_evaluations=needed - 1)
    with pytest.raises(TooManyEvaluationsError) as caught:
        block(start())
    assert caught.value.time > 2


def test_too_many_evaluations_in_the_backward_pass():
    solver = Adaptive(max_evaluations=100)
    block = ODEBlock(field=InPieces(), solver=solver, gradient=Adjoint(rtol=1e-11, atol=1e-11), name="res4")
    out = block(start().requires_grad_())
    with pytest.raises(TooManyEvaluationsError, match="backward pass, after 100"):
        out.sum().backward()


def test_each_backward_pass_has_its_own_limit():
    block = ODEBlock(field=InPieces(), solver=Adaptive(), gradient="adjoint")
    with record_solves(block) as record:
        out = block(start().requires_grad_())
        out.sum().backward(retain_graph=True)
    block.solver = Adaptive(max_evaluations=max(record.total.backward_evaluations, record.total.forward_evaluations))
    out = block(start().requires_grad_())
    for _ in range(3):
        out.sum().backward(retain_graph=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", [Logistic(), nn.Module()])
@pytest.mark.parametrize("method", ADAPTING)
def test_an_input_that_is_not_finite(method, field, value):
    field.forward = (lambda t, h: torch.tanh(h)) if type(field) is nn.Module else field.forward
    h = start()
    h[0, 0] = value
    with pytest.raises(NonFiniteStateError, match="Check the input for NaN first") as caught:
        ODEBlock(field=field, solver=Adaptive(method), name="res4")(h)
    assert (caught.value.block, caught.value.time) == ("res4", 0.0)


@pytest.mark.parametrize("method", ADAPTING)
def test_a_field_that_becomes_nan(method):
    with pytest.raises(NonFiniteStateError) as caught:
        ODEBlock(field=Turns(), solver=Adaptive(method))(start(torch.float32))
    assert 0 <= caught.value.time <= 0.36
    assert caught.value.evaluations >= 2


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge:UserWarning")
@pytest.mark.parametrize("method", [*FIXED, "scipy_solver"])
def test_a_field_that_becomes_nan_where_no_step_is_judged(method):
    with pytest.raises(NonFiniteStateError) as caught:
        ODEBlock(field=Turns(), solver=Adaptive(method, max_evaluations=100_000))(start(torch.float32))
    assert caught.value.evaluations > 0


@pytest.mark.parametrize("method", ADAPTING)
def test_a_state_that_overflows(method):
    """A state can be infinite while the estimated error is not: torchdiffeq asserts then, without a word on where."""

    class Grow(nn.Module):
        def forward(self, t, h):
            return torch.full_like(h, 3e38)

    with pytest.raises(SolveError) as caught:
        ODEBlock(field=Grow(), solver=Adaptive(method), duration=5.0)(torch.full((1, 1, 1, 1), 1e38))
    assert caught.value.time < 5


def test_a_step_that_shrinks_to_nothing():
    with pytest.raises(
        StepUnderflowError, match=r"shrank its step to nothing at time 0.4999.*after .* FixedStep"
    ) as caught:
        ODEBlock(field=Square(), solver=Adaptive(rtol=1e-2, atol=1e-2, max_evaluations=100_000))(
            2 * torch.ones(1, 1, 1, 1).double()
        )
    assert caught.value.step.startswith("step size ")
    assert caught.value.evaluations > 100


def test_a_gradient_that_is_not_finite():
    block = ODEBlock(field=Logistic(), solver=Adaptive(), gradient="adjoint", name="res4")
    out = block(start().requires_grad_())
    with pytest.raises(NonFiniteStateError, match="res4"):
        out.backward(torch.full_like(out, float("nan")))


def test_scipy_says_when_it_gives_up(monkeypatch):
    class GaveUp:
        y = np.zeros((2, 1))

    monkeypatch.setattr(scipy_wrapper, "solve_ivp", lambda *args, **kwargs: GaveUp)
    with pytest.raises(StepUnderflowError, match="the last step"), torch.no_grad():
        ODEBlock(field=Logistic(), solver=Adaptive("scipy_solver"))(start())


def test_scipy_needs_the_adjoint():
    block = ODEBlock(field=Growth(0.3), solver=Adaptive("scipy_solver"), name="res4")
    with pytest.raises(ValueError, match="'res4' needs a gradient; use gradient='adjoint'"):
        block(start())
    with torch.no_grad():
        expected = block(start())
    block.gradient = Adjoint()
    h = start().requires_grad_()
    out = block(h)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    # dh(1)/dh(0) is exp(0.3 * 1.5).
    torch.testing.assert_close(h.grad, torch.full_like(h, math.exp(0.45)), rtol=5e-3, atol=0)


@pytest.mark.parametrize("method", TABLEAUS)
def test_the_adjoint_cannot_be_projected(method):
    block = ODEBlock(field=Logistic(), solver=FixedStep(method, projection="relu"), gradient="adjoint", name="res4")
    with pytest.raises(ValueError, match="'res4' is projected by 'relu' after each step; use gradient='checkpoint'"):
        block(start())


@pytest.mark.parametrize(("steps", "taken"), [(1, 3), (3, 3), (4, 6), (6, 6), (12, 12)])
@pytest.mark.parametrize("method", ["rk4", "explicit_adams"])
def test_steps_are_over_the_whole_time_and_rounded_up_in_each_piece(method, steps, taken):
    """Three pieces; 6 steps of rk4 are those of plain rk4 with 2 in each."""
    block = ODEBlock(field=InPieces(), solver=Adaptive(method, steps=steps))
    with record_solves(block, measure=False) as record, torch.no_grad():
        out = block(start())
    assert record.total.accepted == taken
    if method == "rk4":
        expected = start()
        for piece, begin, end in block.field.segments():
            times = torch.tensor([begin, end], dtype=torch.float64)
            expected = odeint(piece, expected, times, method="rk4", options={"step_size": 3 / taken})[-1]
        torch.testing.assert_close(out, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pieces", [3, 7, 11])
def test_whole_numbers_of_steps_are_not_rounded_up(pieces):
    class Many(GrowthInPieces):
        rates = (0.1,) * pieces

    for duration in (0.3, 1.0, 7.7):
        field = Many()
        field.duration = duration
        block = ODEBlock(field=field, solver=Adaptive("euler", steps=2 * pieces))
        with record_solves(block, measure=False) as record, torch.no_grad():
            block(start())
        assert record.total.accepted == 2 * pieces
