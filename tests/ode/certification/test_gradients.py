import copy

import pytest
import torch

from ode_detect.ode import Adaptive, FixedStep, ODEBlock, block
from ode_detect.ode.certification.gradients import MODES, certify_gradients
from ode_detect.ode.gradients import Adjoint, Checkpoint, Reversible

from .small_flows import Linear, state


def by_mode(report):
    return {mode.mode: mode for mode in report.modes}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("pieces", ["piecewise", "hat"])
def test_every_mode_of_a_smooth_flow_keeps_what_it_promises(pieces, method, dtype, build):
    report = certify_gradients(build(FixedStep(method, steps=6), dtype, pieces), state(dtype), repeats=1)
    modes = by_mode(report)
    assert list(modes) == list(MODES)
    assert report.right
    for name in ("backprop", "checkpoint", "binomial", "reversible"):
        mode = modes[name]
        assert mode.verdict == "exact", report
        assert mode.difference < (1e-5 if dtype == torch.float32 else 1e-10)
        assert mode.difference_float64 < 1e-10
    assert modes["adjoint"].verdict == "inexact"
    assert modes["adjoint"].difference > 1e-6
    assert modes["adjoint"].difference == pytest.approx(modes["adjoint"].difference_float64, rel=1e-2)


def test_what_the_modes_cost(build):
    modes = by_mode(certify_gradients(build(FixedStep("euler", steps=12)), state(), repeats=2))
    for name in ("backprop", "checkpoint", "binomial"):
        assert modes[name].forward_evaluations == 12
    assert modes["reversible"].forward_evaluations == 23
    assert modes["backprop"].backward_evaluations == 0
    assert modes["checkpoint"].backward_evaluations == 12
    assert modes["binomial"].backward_evaluations > 12
    kept = {name: mode.bytes_kept for name, mode in modes.items()}
    assert kept["backprop"] > kept["checkpoint"] > kept["binomial"] > 0
    assert modes["backprop"].time == 1
    assert all(mode.time > 0 for mode in modes.values())


def test_the_adjoint_of_euler_by_hand():
    """dh/dt = a h in one Euler step: out = (1 + a) h, d out / da = h. The adjoint, one Euler step back from out, takes
    the state for the output: out in place of h."""
    flow = ODEBlock(field=Linear(0.5), solver=FixedStep("euler"))
    adjoint = by_mode(certify_gradients(flow, state(), repeats=1))["adjoint"]
    # By the state 1.5 both ways; by the rate (1 + a) = 1.5 times as much.
    assert adjoint.difference == pytest.approx(0.5, rel=1e-4)


def test_modes_that_do_not_apply_say_why(build):
    projected = by_mode(certify_gradients(build(FixedStep("euler", 3, "relu")), state(), repeats=1))
    adaptive = by_mode(certify_gradients(build(Adaptive("dopri5")), state(), repeats=1))
    applies = {
        name: [m for m, r in modes.items() if r.verdict != "does not apply"]
        for name, modes in (("p", projected), ("a", adaptive))
    }
    assert applies == {"p": ["backprop", "checkpoint", "binomial"], "a": ["backprop", "checkpoint", "adjoint"]}
    for mode in (projected["reversible"], projected["adjoint"]):
        assert "project" in mode.remark
    for mode in (adaptive["reversible"], adaptive["binomial"]):
        assert "fixed" in mode.remark.lower()
    assert all(
        mode.time is None and mode.bytes_kept is None for mode in projected.values() if mode.remark.startswith("the")
    )


@pytest.mark.parametrize(
    ("kind", "name"), [(Checkpoint, "checkpoint"), (Reversible, "reversible"), (Adjoint, "adjoint")]
)
def test_a_wrong_gradient_is_found(kind, name, build, monkeypatch):
    """A thousandth too large, in one mode."""
    solve = block.solve

    def wrong(field, h, *, gradient, **arguments):
        out = solve(field, h, gradient=gradient, **arguments)
        if isinstance(gradient, kind) and not getattr(gradient, "keep", False):
            out.register_hook(lambda grad: grad * 1.001)
        return out

    flow, h = build(FixedStep("rk4", steps=8), torch.float64), state(torch.float64)
    before = by_mode(certify_gradients(flow, h, repeats=1))[name]
    monkeypatch.setattr(block, "solve", wrong)
    report = certify_gradients(flow, h, repeats=1)
    after = by_mode(report)[name]
    assert before.difference < 1e-4
    assert after.difference == pytest.approx(1e-3, rel=0.2)
    assert after.verdict == ("inexact" if kind is Adjoint else "WRONG")
    assert report.right == (kind is Adjoint)
    assert by_mode(report)["backprop"].verdict == "exact"
    assert ("WRONG" in str(report)) == (kind is not Adjoint)


def test_a_parameter_whose_gradient_is_wrong_is_found_beside_a_large_state(build, monkeypatch):
    """The gradients of the parameters count apart from that of the state, however small they are beside it."""
    solve = block.solve

    def wrong(field, h, *, gradient, **arguments):
        out = solve(field, h, gradient=gradient, **arguments)
        return (
            out
            + 0 * sum(p.sum() for p in field.parameters())
            + (field.rate - field.rate.detach()) * (1e-6 if isinstance(gradient, Checkpoint) else 0)
        )

    monkeypatch.setattr(block, "solve", wrong)
    flow = ODEBlock(field=Linear(0.5).double(), solver=FixedStep(steps=2))
    modes = by_mode(certify_gradients(flow, 1e-6 * state(torch.float64), repeats=1))
    assert modes["checkpoint"].verdict == "WRONG"
    assert modes["backprop"].verdict == "exact"


def test_a_flow_without_trained_weights_has_a_gradient_by_its_state(build):
    flow = build(FixedStep("euler", steps=3)).requires_grad_(False)
    report = certify_gradients(flow, state(), repeats=1)
    assert report.right
    assert by_mode(report)["checkpoint"].verdict == "exact"


def test_the_block_of_a_gradient_report_is_not_touched(build):
    flow, h = build(FixedStep("euler", steps=3)), state()
    flow.gradient = Checkpoint()
    before = copy.deepcopy(flow.state_dict())
    with torch.no_grad():
        certify_gradients(flow, h, repeats=1)
    assert flow.gradient == Checkpoint()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), flow.state_dict().values(), strict=True))
    assert all(p.grad is None for p in flow.parameters())
    with pytest.raises(ValueError, match="1 repeat or more, not 0"):
        certify_gradients(flow, h, repeats=0)


class NoNumber(torch.autograd.Function):
    """Zero, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * float("nan")


@pytest.mark.parametrize("kind", [Checkpoint, Reversible])
def test_a_gradient_that_is_not_a_number_is_wrong(kind, build, monkeypatch):
    """In one parameter only, of one mode."""
    solve = block.solve

    def wrong(field, h, *, gradient, **arguments):
        out = solve(field, h, gradient=gradient, **arguments)
        if isinstance(gradient, kind) and not getattr(gradient, "keep", False):
            out = out + NoNumber.apply(field.conv.bias).sum()
        return out

    monkeypatch.setattr(block, "solve", wrong)
    report = certify_gradients(build(FixedStep(steps=3)), state(), repeats=1)
    modes = by_mode(report)
    wrong_modes = ["checkpoint", "binomial"] if kind is Checkpoint else ["reversible"]
    assert [name for name, mode in modes.items() if mode.verdict == "WRONG"] == wrong_modes
    assert all(modes[name].difference == float("inf") for name in wrong_modes)
    assert not report.right


def test_an_error_of_the_field_is_a_failure(build, monkeypatch):
    """Not a mode that does not apply."""
    solve = block.solve

    def fails(field, h, *, gradient, **arguments):
        if gradient == Checkpoint():
            raise ValueError("the field is out of its range")
        return solve(field, h, gradient=gradient, **arguments)

    monkeypatch.setattr(block, "solve", fails)
    report = certify_gradients(build(FixedStep(steps=3)), state(), repeats=1)
    mode = by_mode(report)["checkpoint"]
    assert (mode.verdict, mode.remark) == ("failed", "the field is out of its range")
    assert not report.right
