import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from ode_detect.ode import FixedStep, ODEBlock, SolveError, block
from ode_detect.ode.certification.model import certify_model
from ode_detect.ode.gradients import Checkpoint, Reversible

from .small_flows import Linear, state


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
