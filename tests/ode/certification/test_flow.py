import copy
import math

import pytest
import torch
from torch import nn

from ode_detect.ode import Adaptive, BasicField, FixedStep, ODEBlock, Reversible, SolveError, in_pieces
from ode_detect.ode.certification.flow import KINKED_ORDER, ORDER_SLACK, TOLERANCE, certify_flow
from ode_detect.ode.solvers import TABLEAUS

from ..known_solutions import Fading, Growth, GrowthInPieces, Logistic


class Linear(nn.Module):
    """dh/dt = rate * h."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = rate

    def forward(self, t, h):
        return self.rate * h


class ThreeRates(GrowthInPieces):
    rates = (0.5, 0.2, 0.3)


def state(*shape):
    return 0.1 + 0.8 * torch.rand(*(shape or (1, 2, 3, 3)), dtype=torch.float64)


def by_name(report):
    return {change.what: change for change in report.changes}


# --- value ---


def test_one_euler_step_of_linear_growth_by_hand():
    h = state()
    report = certify_flow(ODEBlock(field=Linear()), h)
    expected = {
        "half the step": 2.25,
        "a quarter of the step": 1.25**4,
        "midpoint at equal steps": 2.5,
        "heun at equal steps": 2.5,
        "rk4 at equal steps": 1 + 1 + 1 / 2 + 1 / 6 + 1 / 24,
        "limit (rk4, 8 steps)": math.e,
    }
    assert list(by_name(report)) == list(expected)
    for what, factor in expected.items():
        # Own output 2 h, displacement h.
        change = by_name(report)[what]
        assert change.of_displacement == pytest.approx(factor - 2, rel=1e-5)
        assert change.of_output == pytest.approx((factor - 2) / 2, rel=1e-5)
        assert change.of_model is None
    assert report.displacement == pytest.approx(0.5)
    assert dict(report.errors) == pytest.approx({1: math.e - 2, 2: math.e - 2.25, 4: math.e - 1.25**4}, rel=1e-4)
    assert report.order == pytest.approx(math.log2((math.e - 2) / (math.e - 2.25)), rel=1e-4)
    assert report.verdict == "Euler-only"
    assert "a quarter of the step changes the displacement by 44.1 %, more than 25 %" in report.reasons


@pytest.mark.parametrize("field", [Logistic(), Fading(), ThreeRates()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("method", TABLEAUS)
def test_order_and_errors_of_smooth_flows_with_known_solutions(method, field):
    block, h = ODEBlock(field=field, solver=FixedStep(method, steps=24)), state()
    report = certify_flow(block, h)
    order = TABLEAUS[method].order
    assert report.expected == order
    assert report.order == pytest.approx(order, abs=0.15)
    assert report.verdict == "flow"
    with torch.no_grad():
        exact, moved = field.exact(h, block.duration), (block(h) - h).norm()
        for steps, error in report.errors:
            block.solver = FixedStep(method, steps=steps)
            # At 4 times the steps the error of the limit itself, of 8 times the steps, is 1/16 of it for rk4.
            assert error == pytest.approx(float((block(h) - exact).norm() / moved), rel=0.1)


def test_a_step_over_a_jump_of_the_weights_is_of_order_1():
    even, odd = (certify_flow(ODEBlock(field=ThreeRates(), solver=FixedStep("rk4", n)), state()) for n in (6, 8))
    assert (even.expected, odd.expected) == (4, 1)
    assert even.order > 3.5
    assert odd.changes[-1].what == "limit (rk4, 192 steps)"


def test_the_tolerance_stands_where_lipschitz_times_step_is_nearly_a_half():
    near, far = (certify_flow(ODEBlock(field=Linear(rate)), state()) for rate in (0.42, 0.44))
    assert (near.verdict, far.verdict) == ("flow", "Euler-only")
    assert near.changes[-1].of_displacement < TOLERANCE < far.changes[-1].of_displacement


def test_rk4_is_swapped_for_the_three_eighths_rule():
    """A method of the same order that is not the same method: they agree on a linear field and on no other."""
    solver = FixedStep("rk4", steps=2)
    linear, logistic = (certify_flow(ODEBlock(field=f, solver=solver), state()) for f in (Linear(), Logistic()))
    what = "3/8 rule at equal steps"
    assert by_name(linear)[what].of_displacement < 1e-12
    assert 1e-9 < by_name(logistic)[what].of_displacement < 1e-2
    assert by_name(linear)[what].solver == Adaptive("rk4", steps=2, max_evaluations=8)
    assert [change.what for change in linear.changes if change.limit] == [linear.changes[-1].what]


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_the_three_eighths_rule_takes_the_steps_of_a_flow_in_pieces(steps):
    report = certify_flow(ODEBlock(field=ThreeRates(), solver=FixedStep("rk4", steps=steps)), state())
    swapped = by_name(report)["3/8 rule at equal steps"]
    assert swapped.solver.steps == steps
    assert swapped.of_displacement < math.inf


# --- verdicts ---


class Scaled(nn.Module):
    def __init__(self, field, scale):
        super().__init__()
        self.field, self.scale = field, scale

    def forward(self, t, h):
        return self.scale * self.field(t, h)


@pytest.fixture
def group_normed(lively):
    """A field with GroupNorm, whose speed hardly depends on its weights."""

    def make(scale, activation="relu", steps=1, method="euler", **arguments):
        torch.manual_seed(1)
        field = Scaled(lively(BasicField(channels=8, norm="GN", activation=activation)), scale)
        return ODEBlock(field=field, solver=FixedStep(method, steps=steps, **arguments))

    return make


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("method", TABLEAUS)
def test_a_gentle_field_in_many_steps_is_a_flow(method, activation, group_normed):
    # So few steps of rk4 that there is an error to see.
    steps = 2 if method == "rk4" else 8
    report = certify_flow(group_normed(1.0, activation, steps=steps, method=method), torch.randn(2, 8, 6, 6))
    assert report.verdict == "flow", report
    assert report.order >= min(report.expected, KINKED_ORDER) - ORDER_SLACK
    assert "verdict: flow" in str(report)


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_steep_field_is_tied_to_one_step_and_a_flow_in_enough(method):
    class Turning(nn.Module):
        """Turns each pixel's state by 8 radians: L = 8."""

        def forward(self, t, h):
            return 8 * torch.stack([-h[:, 1], h[:, 0]], dim=1)

    coarse, fine = (certify_flow(ODEBlock(field=Turning(), solver=FixedStep(method, n)), state()) for n in (1, 300))
    assert (coarse.verdict, fine.verdict) == ("Euler-only", "flow")
    assert "half the step changes the displacement by" in coarse.reasons[0]


def test_slow_convergence_is_no_flow_even_where_changes_are_small():
    class Comb(nn.Module):
        """Jumps in time, between the steps: no order at all, small as they are."""

        def forward(self, t, h):
            return h * 0 + 1 + 0.05 * ((int(float(t) * 96) * 37) % 11 - 5)

    report = certify_flow(ODEBlock(field=Comb(), solver=FixedStep("rk4", steps=4)), state())
    assert max(c.of_displacement for c in report.changes) < TOLERANCE
    assert report.verdict == "Euler-only"
    assert "the error falls with order" in report.reasons[0]


def test_a_new_flow_is_the_identity_and_not_judged():
    report = certify_flow(ODEBlock(field=BasicField(channels=4)), torch.randn(1, 4, 5, 5))
    assert (report.verdict, report.displacement) == ("identity", 0.0)
    assert "the field is zero here" in str(report)


def test_a_step_that_sees_nothing_of_the_field_is_no_identity():
    class Later(nn.Module):
        def forward(self, t, h):
            return float(t) * h

    report = certify_flow(ODEBlock(field=Later()), state())
    assert (report.verdict, report.displacement) == ("Euler-only", 0.0)
    assert by_name(report)["half the step"].of_displacement == math.inf
    assert by_name(report)["half the step"].of_output == pytest.approx(0.25)


def test_a_projected_scheme_is_compared_with_its_own_limit():
    class Falling(nn.Module):
        """Falls onto the floor and slides along it: the limit is max(h - 2 t, 0)."""

        def forward(self, t, h):
            return torch.full_like(h, -2.0)

    block = ODEBlock(field=Falling(), solver=FixedStep("midpoint", steps=2, projection="relu"))
    report = certify_flow(block, state())
    assert report.changes[-1].what == "limit (64 steps)"
    assert report.changes[-1].solver == FixedStep("midpoint", 64, "relu")
    assert report.expected == 1
    assert report.verdict == "flow"
    assert report.order is None
    assert "no order to see" in str(report)
    # Without the floor it would go on falling: by 2, and not by the height.
    assert report.displacement == math.inf


def test_projection_lowers_the_order_that_is_asked_for(group_normed):
    report = certify_flow(group_normed(1.0, steps=16, method="midpoint", projection="relu"), torch.rand(1, 8, 4, 4))
    assert (report.expected, report.verdict) == (1, "flow")


def test_a_solver_that_fails_is_an_infinite_change():
    class BlowUp(nn.Module):
        """dh/dt = h^3: from 1 it is infinite at t = 0.5, which one Euler step does not see."""

        def forward(self, t, h):
            return h**3

    report = certify_flow(ODEBlock(field=BlowUp()), torch.ones(1, 1, 2, 2))
    assert report.changes[-1].of_displacement == math.inf
    assert (report.verdict, report.order) == ("Euler-only", None)
    assert "infinite" in str(report)


# --- adaptive methods ---


def test_an_adaptive_flow_is_judged_by_tighter_tolerances_and_another_method():
    h = state()
    report = certify_flow(ODEBlock(field=Logistic(), solver=Adaptive("dopri5", rtol=1e-4, atol=1e-4)), h)
    assert [c.what for c in report.changes] == ["tolerances / 10", "tolerances / 100", "bosh3"]
    assert report.changes[1].solver == Adaptive("dopri5", rtol=1e-6, atol=1e-6, max_evaluations=100_000, steps=64)
    assert 0 < report.changes[0].of_displacement < 1e-2
    assert (report.verdict, report.order, report.expected, report.errors) == ("flow", None, None, ())


def test_tolerances_that_are_too_loose_make_no_flow():
    class Turning(nn.Module):
        def forward(self, t, h):
            return 8 * torch.stack([-h[:, 1], h[:, 0]], dim=1)

    report = certify_flow(ODEBlock(field=Turning(), solver=Adaptive("bosh3", rtol=0.5, atol=0.5)), state())
    assert report.verdict == "Euler-only"


# --- the reversible scheme ---


def test_a_reversible_flow_is_judged_by_the_scheme_that_solves_it():
    plain, coupled = (
        certify_flow(ODEBlock(field=Logistic(), solver=FixedStep("rk4", 8), gradient=g), h)
        for h in [state()]
        for g in ("backprop", Reversible(coupling=0.9))
    )
    assert (plain.verdict, coupled.verdict) == ("flow", "flow")
    assert coupled.displacement != plain.displacement
    assert coupled.order > 3.5
    assert by_name(coupled)["3/8 rule at equal steps"].of_displacement < 1e-2


# --- contract ---


def test_block_and_state_stay_as_they_are():
    field = in_pieces("piecewise", 2, lambda: BasicField(channels=4))
    block = ODEBlock(field=field, solver=FixedStep("heun", steps=2), gradient="checkpoint").train()
    before, solver = copy.deepcopy(block.state_dict()), block.solver
    h = torch.randn(1, 4, 5, 5)
    given = h.clone()
    with torch.autocast("cpu", torch.bfloat16):
        certify_flow(block, h)
    assert block.solver is solver
    assert block.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), block.state_dict().values(), strict=True))
    assert torch.equal(h, given)


def test_autocast_is_left_out(group_normed):
    block, h = group_normed(0.2, steps=4), torch.randn(1, 8, 4, 4)
    plain = certify_flow(block, h)
    with torch.autocast("cpu", torch.bfloat16):
        assert certify_flow(block, h) == plain


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan")])
def test_a_tolerance_out_of_range(tolerance):
    with pytest.raises(ValueError, match=r"must be above 0.*0\.25 is usual"):
        certify_flow(ODEBlock(field=Linear()), state(), tolerance=tolerance)


def test_a_flow_that_cannot_be_solved_at_all_says_so():
    with pytest.raises(SolveError, match="not finite"):
        certify_flow(ODEBlock(field=Growth(math.nan)), state())
