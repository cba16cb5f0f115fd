import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from ode_detect.ode import Adaptive, FixedStep, ODEBlock, SolveError, block, in_pieces
from ode_detect.ode.certification.gradients import MODES, certify_gradients
from ode_detect.ode.certification.model import certify_model
from ode_detect.ode.gradients import Adjoint, Checkpoint, Reversible


class Linear(nn.Module):
    """dh/dt = rate * h, with a rate that is learnt."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, h):
        return self.rate * h


@pytest.fixture
def build(smooth_conv):
    def make(solver, dtype=torch.float32, pieces="constant"):
        field = in_pieces(pieces, 1 if pieces == "constant" else 2, lambda: smooth_conv(2, dtype))
        return ODEBlock(field=field, solver=solver)

    return make


def state(dtype=torch.float32):
    return torch.randn(1, 2, 5, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_mode(report):
    return {mode.mode: mode for mode in report.modes}


# --- gradients ---


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


# --- models ---


class Network(nn.Module):
    """A BatchNorm and two flows; a third one that is used on large pictures only, and a dropout."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.first = ODEBlock(field=Linear(1.0))
        self.second = ODEBlock(field=Linear(0.01), solver=FixedStep("rk4", steps=2))
        self.large = ODEBlock(field=Linear())
        self.repeats = 1

    def forward(self, image):
        h = self.first(self.stem(image))
        for _ in range(self.repeats):
            h = self.second(h)
        return {"features": [h, h.mean((2, 3))]} if len(image[0, 0]) < 100 else self.large(h)


@pytest.fixture
def network():
    return Network()


def picture():
    return torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_a_model_is_certified_flow_by_flow(network):
    report = certify_model(network, picture(), repeats=1)
    assert list(report.blocks) == ["first", "second", "large"]
    first, second, large = report.blocks.values()
    assert (first.calls, first.shape, first.flow.verdict) == (1, (1, 2, 4, 4), "Euler-only")
    assert (second.calls, second.flow.verdict) == (1, "flow")
    assert first.gradients.right
    assert large == type(large)(calls=0)
    assert report.verdict == "Euler-only"
    assert "not reached by this example" in str(report)
    assert "is Euler-only: it is tied to its steps" in str(report)


def test_the_change_of_the_models_output_by_hand(network):
    """The output is linear in what `first` gives: 2 times its input, 2.25 times with half the step."""
    report = certify_model(network, picture(), repeats=1)
    first = {c.what: c.of_model for c in report.blocks["first"].flow.changes}
    assert first["half the step"] == pytest.approx(0.125, rel=1e-5)
    assert first["midpoint at equal steps"] == pytest.approx(0.25, rel=1e-5)
    assert first["limit (rk4, 8 steps)"] is None
    # `second` hardly changes it, and has no midpoint to be swapped for: it is solved by rk4.
    assert report.together == {k: pytest.approx(first[k], rel=1e-3) for k in ("half the step", "a quarter of the step")}


def test_outputs_that_are_no_tensors_are_not_compared(network):
    report = certify_model(network, picture(), run=lambda model, image: [model(image), "boxes"], repeats=1)
    assert all(c.of_model is None for c in report.blocks["first"].flow.changes)
    assert report.together == {}
    assert "of the model's output" not in str(report)


def test_a_flow_that_is_reached_several_times_is_certified_at_its_first_state(network):
    states = []
    network.repeats = 3
    network.second.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    report = certify_model(network, picture(), repeats=1)
    assert report.blocks["second"].calls == 3
    assert "the first of 3 calls" in str(report)


def test_a_flow_alone_and_a_named_state(build):
    flow = build(FixedStep("rk4", steps=4))
    report = certify_model(flow, state(), run=lambda model, h: model(h=h), repeats=1)
    assert list(report.blocks) == ["ODEBlock"]
    assert report.verdict == "flow"
    assert "the network is a flow" in str(report)


def test_a_model_with_a_reversible_flow(network):
    network.second.gradient = Reversible()
    network.second.solver = FixedStep("rk4", steps=3)
    report = certify_model(network, picture(), repeats=1)
    assert report.blocks["second"].flow.verdict == "flow"
    assert {c.what: c.of_model for c in report.blocks["second"].flow.changes}["3/8 rule at equal steps"] < 1e-4
    assert network.second.gradient == Reversible()


def test_the_report_is_plain_json(network):
    report = certify_model(network, picture(), repeats=1)
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["verdict"] == "Euler-only"
    first = content["blocks"]["first"]
    assert first["flow"]["changes"][0]["solver"] == {"method": "euler", "steps": 2, "projection": "none"}
    assert first["gradients"]["modes"][0]["mode"] == "backprop"
    assert content["blocks"]["large"]["flow"] is None
    flow = report.blocks["first"].flow
    infinite = dataclasses.replace(report.blocks["first"], flow=dataclasses.replace(flow, displacement=float("inf")))
    content = dataclasses.replace(report, blocks={"first": infinite}).to_dict()
    assert content["blocks"]["first"]["flow"]["displacement"] is None


def snapshot(network):
    modes = [module.training for module in network.modules()]
    solvers = [(m.solver, m.gradient) for m in network.modules() if isinstance(m, ODEBlock)]
    hooks = [len(m._forward_pre_hooks) for m in network.modules()]
    return modes, solvers, hooks, copy.deepcopy(network.state_dict()), torch.get_rng_state()


def same(before, after):
    tensors = zip([*before[3].values(), before[4]], [*after[3].values(), after[4]], strict=True)
    return before[:3] == after[:3] and all(torch.equal(a, b) for a, b in tensors)


def test_the_model_is_what_it_was(network):
    network.train()
    network.stem.eval()
    before = snapshot(network)
    certify_model(network, picture(), repeats=1)
    assert same(before, snapshot(network))


@pytest.mark.parametrize("call", [1, 2, 4])
def test_the_model_is_what_it_was_after_an_error(call, network):
    calls = []

    def run(model, image):
        calls.append(0)
        torch.rand(1)
        if len(calls) == call:
            raise RuntimeError("no more memory")
        return model(image)

    before = snapshot(network.train())
    with pytest.raises(RuntimeError, match="no more memory"):
        certify_model(network, picture(), run=run, repeats=1)
    assert same(before, snapshot(network))


def test_a_model_that_cannot_be_solved_at_all(network):
    with torch.no_grad():
        network.first.field.rate.fill_(float("nan"))
    with pytest.raises(SolveError, match="not finite"):
        certify_model(network, picture(), repeats=1)


def test_a_model_without_flows_is_refused():
    with pytest.raises(ValueError, match=r"this Conv2d has no ODEBlock; make stages of it flows"):
        certify_model(nn.Conv2d(3, 2, 1), picture())


def test_nothing_reached_is_nothing_certified(network):
    report = certify_model(network, picture(), run=lambda model, image: model.stem(image), repeats=1)
    assert report.verdict == "not reached"
    assert "nothing is certified" in str(report)


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


def test_a_wrong_gradient_reaches_the_summary(network, monkeypatch):
    right = certify_model(network, picture(), repeats=1)
    assert right.right
    assert right.to_dict()["right"] is True
    assert str(right).splitlines()[-1].endswith("; its gradients are right")
    solve = block.solve

    def wrong(field, h, *, gradient, **arguments):
        out = solve(field, h, gradient=gradient, **arguments)
        if isinstance(gradient, Checkpoint) and out.requires_grad and float(field.rate.detach()) < 0.5:
            out.register_hook(lambda grad: grad * 1.001)
        return out

    monkeypatch.setattr(block, "solve", wrong)
    report = certify_model(network, picture(), repeats=1)
    assert not report.right
    assert report.to_dict()["right"] is False
    *_, broken, last = str(report).splitlines()
    assert broken == "gradients of second that are WRONG or failed: checkpoint, binomial"
    assert last.endswith("; its gradients are NOT right")


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
