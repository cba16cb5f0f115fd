import copy
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ode_detect.ode import (
    BasicField,
    BottleneckField,
    Checkpoint,
    ConcatConvField,
    FixedStep,
    FrozenBatchNorm2d,
    HatFunctions,
    ODEBlock,
    record_solves,
    solver_override,
)
from ode_detect.ode.conversion.residual import ResidualBranch
from ode_detect.ode.inference import optimize, packing
from ode_detect.ode.inference.optimize import InferenceFlow, OptimizationError, optimize_for_inference
from ode_detect.ode.inference.packing import can_pack

from .networks import Residual, flow

needs_onednn = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no oneDNN operators")


class NormFirst(nn.Module):
    """A pre-activation: the normalisation that is declared after a convolution follows it; the first follows none."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class Misleading(nn.Module):
    """The normalisation is declared after the convolution, and applied before it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.conv(self.norm(x))


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: BatchNorm, then an activation."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(super().forward(x))


def sequence(norm):
    return nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 1), norm(4))


MODELS = {
    "flow, piecewise": (lambda: flow(), 6, 0),
    "flow, constant": (lambda: flow("constant"), 2, 0),
    "flow, bottleneck": (lambda: flow(field=BottleneckField), 9, 0),
    "flow, one hat": (lambda: ODEBlock(field=HatFunctions([BasicField(channels=8, norm="FrozenBN")])), 2, 0),
    "flow, hats": (lambda: flow("hat"), 0, 6),
    "flow, time as a channel": (lambda: flow("constant", field=ConcatConvField), 2, 1),
    "flow, GN": (lambda: flow(norm="GN"), 0, 0),
    "block": (Residual, 2, 0),
    "block, frozen": (lambda: Residual(FrozenBatchNorm2d), 2, 0),
    "branch": (lambda: ODEBlock(field=ResidualBranch(Residual().eval()), allow_stateful_field=True), 2, 0),
    "pre-activation": (NormFirst, 1, 1),
    "sequence": (lambda: sequence(nn.BatchNorm2d), 2, 0),
    "sequence, frozen": (lambda: sequence(FrozenBatchNorm2d), 2, 0),
    "sequence, activating": (lambda: sequence(BatchNormAct2d), 2, 0),
    "sequence, instance norm": (lambda: sequence(lambda c: nn.InstanceNorm2d(c, track_running_stats=True)), 0, 0),
}


every_model = pytest.mark.parametrize("name", MODELS)


# --- contract ---


@every_model
def test_the_original_is_untouched_and_the_copy_is_for_inference(name, with_statistics):
    model = with_statistics(MODELS[name][0]()).train()
    before, gradients = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    fast, _ = optimize_for_inference(model, torch.randn(1, 8, 9, 7))
    after = model.state_dict()
    assert model.training
    assert not fast.training
    assert [p.requires_grad for p in model.parameters()] == gradients
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert list(after) == list(before)
    with pytest.raises(RuntimeError, match="train the original"):
        fast.train()(torch.randn(1, 8, 9, 7))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dtypes_and_containers_stay(precision, with_statistics):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Residual()

        def forward(self, pictures):
            out = self.block(pictures["image"])
            return {"p2": out, "rest": [F.max_pool2d(out, 2), pictures["id"]]}

    model = with_statistics(Pyramid())
    example = {"image": torch.randn(2, 8, 6, 6), "id": torch.tensor([4, 7])}
    fast, report = optimize_for_inference(model, example, precision=precision, tolerance=0.05)
    out = fast(example)
    assert (out["p2"].dtype, out["rest"][0].dtype) == (torch.float32, torch.float32)
    assert torch.equal(out["rest"][1], example["id"])
    assert set(report.errors) == {"p2", "rest.0"}
    assert fast({**example, "image": torch.randn(3, 8, 4, 4)})["p2"].shape == (3, 8, 4, 4)


def test_the_report_tells_what_was_done(with_statistics):
    _, report = optimize_for_inference(with_statistics(flow("hat")), torch.randn(1, 8, 6, 6), precision="float32")
    assert (report.precision, report.folded, report.compiled) == ("float32", 0, False)
    assert set(report.milliseconds) == {"original", "float32"}
    assert report.errors["output"] <= report.tolerance == 1e-4
    text = str(report)
    assert "float32, channels last; 0 normalisations folded" in text
    assert "not folded: field.knots.0.conv1.norm (in hat functions" in text
    assert "allowed: 0.0001" in text


def test_a_solver_can_be_set_after_it(with_statistics):
    model, x = with_statistics(nn.Sequential(flow(), nn.Conv2d(8, 4, 1))), torch.randn(1, 8, 6, 6)
    fast, _ = optimize_for_inference(model, x, precision="float32")
    with solver_override(model, steps=5, method="rk4"), solver_override(fast, steps=5, method="rk4"):
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        expected = model(x)
    assert not torch.allclose(fast(x), expected, rtol=1e-2)
    fast[0].solver = FixedStep("euler", steps=1)
    model[0].solver = FixedStep("euler", steps=1)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_picture_is_made_where_no_example_is_given(with_statistics):
    _, report = optimize_for_inference(with_statistics(nn.Sequential(nn.Conv2d(3, 8, 7, 8), nn.BatchNorm2d(8))))
    assert report.folded == 1
    with pytest.raises(ValueError, match="give an example"):
        optimize_for_inference(nn.Linear(3, 3))


@needs_onednn
def test_evaluations_and_multiply_adds_are_counted_as_before(with_statistics):
    model, x = with_statistics(flow()), torch.randn(1, 8, 6, 6)
    fast, report = optimize_for_inference(model, x, precision="bfloat16", tolerance=0.03)
    assert report.packed == 6
    with record_solves(model) as before, record_solves(fast) as after:
        model(x)
        fast(x)
    assert before.total.forward_evaluations == after.total.forward_evaluations == 3
    assert before.total.macs == after.total.macs > 0


def test_nothing_is_recomputed(with_statistics):
    model = with_statistics(flow(gradient="checkpoint"))
    fast, _ = optimize_for_inference(model, torch.randn(1, 8, 6, 6))
    assert model.gradient == Checkpoint()
    assert fast.gradient != Checkpoint()


# --- value ---


@every_model
def test_folded_equals_unfolded(name, with_statistics):
    build, folded, kept = MODELS[name]
    model, x = with_statistics(build()), torch.randn(2, 8, 9, 7)
    fast, report = optimize_for_inference(model, x, precision="float32")
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        other = torch.randn(1, 8, 12, 5)
        torch.testing.assert_close(fast(other), model(other), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert (report.folded, len(report.kept)) == (folded, kept)


@every_model
def test_bfloat16_is_near_float32(name, with_statistics):
    model, x = with_statistics(MODELS[name][0]()), torch.randn(2, 8, 9, 7)
    fast, report = optimize_for_inference(model, x, precision="bfloat16", tolerance=0.03)
    with torch.no_grad():
        error = (fast(x) - model(x)).norm() / model(x).norm()
    assert report.errors["output"] == pytest.approx(float(error), rel=1e-3)
    assert 1e-5 < error <= 0.03  # not silently float32


@needs_onednn
@pytest.mark.parametrize(("steps", "fused"), [(3, 3), (1, 0)])
def test_steps_in_one_go_are_taken_where_they_can_be(steps, fused, with_statistics, monkeypatch):
    fast, _ = optimize_for_inference(
        with_statistics(flow()), torch.randn(1, 8, 6, 6), precision="bfloat16", tolerance=0.03
    )
    taken, step = [], packing.PackedBranch.step
    monkeypatch.setattr(packing.PackedBranch, "step", lambda *arguments: taken.append(1) or step(*arguments))
    with torch.no_grad(), solver_override(fast, steps=steps):
        fast(torch.randn(1, 8, 6, 6))
    assert len(taken) == fused


def test_without_onednn_convolutions_stay(with_statistics, monkeypatch):
    monkeypatch.setattr(optimize, "can_pack", lambda: False)
    model, x = with_statistics(flow()), torch.randn(1, 8, 6, 6)
    fast, report = optimize_for_inference(model, x, precision="bfloat16", tolerance=0.03)
    assert report.packed == 0
    assert (fast(x) - model(x)).norm() < 0.03 * model(x).norm()


def test_steps_of_a_residual_network_are_taken_in_bfloat16_and_smaller_ones_are_not(with_statistics):
    model, x = with_statistics(flow()), torch.randn(1, 8, 6, 6)
    fast, _ = optimize_for_inference(model, x, precision="bfloat16", tolerance=0.03)
    seen = []
    fast.field.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        before = x.clone()
        assert (fast(x) - model(x)).norm() < 0.03 * model(x).norm()
        assert torch.equal(x, before)
        for steps, limit in ((2, 0.03), (300, 0.03)):
            with solver_override(model, steps=steps), solver_override(fast, steps=steps), record_solves(fast) as record:
                assert (fast(x) - model(x)).norm() < limit * model(x).norm()
                assert (record.total.forward_evaluations, record.total.accepted) == (steps, steps)
    assert seen[0].dtype == torch.bfloat16


# --- which variant is taken ---


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_the_faster_precision_is_taken(faster, with_statistics, monkeypatch):
    times = {"original": 9.0, "float32": 5.0, "bfloat16": 5.0, faster: 2.0}
    monkeypatch.setattr(optimize, "_times", lambda models, run: {name: times[name] for name in models})
    fast, report = optimize_for_inference(with_statistics(Residual()), torch.randn(1, 8, 6, 6), tolerance=0.05)
    assert report.precision == faster
    assert report.milliseconds == times
    assert next(fast.buffers(), torch.zeros(())).dtype in (torch.float32, torch.bfloat16)


def test_bfloat16_that_is_too_coarse_is_not_taken(with_statistics, monkeypatch):
    monkeypatch.setattr(optimize, "_times", lambda models, run: dict.fromkeys(models, 1.0))
    model, x = with_statistics(Residual()), torch.randn(1, 8, 6, 6)
    _, report = optimize_for_inference(model, x, tolerance=1e-3)
    assert report.precision == "float32"
    assert "differs by" in report.refused["bfloat16"]
    assert "not taken: bfloat16" in str(report)
    with pytest.raises(OptimizationError, match=r"within 0.001, and in bfloat16 output differs by 0.00\d+ of its norm"):
        optimize_for_inference(model, x, precision="bfloat16", tolerance=1e-3)


def test_a_wrong_fold_is_refused(with_statistics):
    with pytest.raises(OptimizationError, match=r"within 0.0001, and in float32 output differs by .* \(1 normalis"):
        optimize_for_inference(with_statistics(Misleading()), torch.randn(1, 8, 6, 6))


def test_not_a_number_is_refused(with_statistics):
    model = with_statistics(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    model[1].running_var.fill_(float("nan"))
    with pytest.raises(OptimizationError, match="differs by nan"):
        optimize_for_inference(model, torch.randn(1, 8, 6, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float16"}, "unknown precision 'float16'; known are auto, bfloat16, float32"),
        ({"tolerance": 0.0}, "between 0 and 1, not 0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(Residual(), torch.randn(1, 8, 6, 6), **arguments)


def test_compiling_without_a_compiler_says_so(monkeypatch, with_statistics):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler"):
        optimize_for_inference(with_statistics(Residual()), torch.randn(1, 8, 6, 6), compile=True)


def test_steps_are_taken_in_one_dtype_also_where_gradients_are_on_but_none_is_needed(with_statistics, monkeypatch):
    """A caller who forgot torch.no_grad() gets the same speed."""
    fast, _ = optimize_for_inference(with_statistics(flow()), torch.randn(1, 8, 6, 6), precision="float32")
    taken, step = [], InferenceFlow._step
    monkeypatch.setattr(InferenceFlow, "_step", lambda *arguments: taken.append(1) or step(*arguments))
    h = torch.randn(1, 8, 6, 6)
    out = fast(h)
    assert len(taken) == 3
    assert not out.requires_grad
    with torch.no_grad():
        assert torch.equal(out, fast(h))


# --- flows for inference ---


def test_a_flow_made_of_a_block_shares_its_weights_and_keeps_what_was_set(with_statistics):
    block, h = with_statistics(flow(name="res4.flow", check_finite=False)), torch.randn(2, 8, 6, 6)
    made = InferenceFlow.from_block(block)
    assert type(made) is InferenceFlow
    assert made.field is block.field
    assert all(a is b for a, b in zip(made.parameters(), block.parameters(), strict=True))
    for name in ("solver", "gradient", "duration", "name", "check_finite", "allow_stateful_field", "training"):
        assert getattr(made, name) == getattr(block, name), name
    assert list(made.state_dict()) == list(block.state_dict())
    with torch.no_grad():
        assert torch.allclose(made(h), block(h), atol=1e-6)
    made.solver = FixedStep("rk4", steps=2)
    assert block.solver != made.solver


def test_a_flow_made_of_a_block_keeps_its_hooks_and_no_later_ones(with_statistics):
    block, called = with_statistics(flow()), []
    block.register_forward_hook(lambda *_: called.append("before"))
    made = InferenceFlow.from_block(block)
    made.register_forward_hook(lambda *_: called.append("flow"))
    block.register_forward_hook(lambda *_: called.append("block"))
    made(torch.randn(1, 8, 6, 6))
    assert called == ["before", "flow"]


def test_a_flow_made_of_a_recorded_block_is_not_recorded(with_statistics):
    block = with_statistics(flow())
    with record_solves(block) as record:
        InferenceFlow.from_block(block)(torch.randn(1, 8, 6, 6))
        assert record.total.solves == 0
        block(torch.randn(1, 8, 6, 6))
    assert record.total.solves == 1


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_flow_for_inference_can_be_copied_and_not_scripted(clone, with_statistics):
    made, h = InferenceFlow.from_block(with_statistics(flow())), torch.randn(1, 8, 6, 6)
    other = clone(made)
    assert type(other) is InferenceFlow
    assert other.field is not made.field
    with torch.no_grad():
        assert torch.equal(other(h), made(h))
    with pytest.raises(TypeError, match=r"torch\.jit\.script reads the source"):
        torch.jit.script(made)


class Holding(nn.Module):
    """Refers to one flow as a child, in a list, and by a hook of its own."""

    def __init__(self, block):
        super().__init__()
        self.first, self.again, self.stages = block, nn.Sequential(block), [block]
        self.register_forward_pre_hook(block.extra_repr_of_input)

    def forward(self, h):
        return self.stages[0](self.again(self.first(h)))


class Hooked(ODEBlock):
    def extra_repr_of_input(self, module, args):
        self.seen = args[0].shape


def test_wherever_a_model_refers_to_a_block_its_copy_refers_to_the_same_flow(with_statistics):
    made = flow()
    block = Hooked(field=made.field, solver=made.solver)
    model, h = with_statistics(Holding(block)), torch.randn(1, 8, 6, 6)
    fast = optimize.copy_for_inference(model).model
    assert isinstance(fast.first, InferenceFlow)
    assert fast.first is fast.again[0] is fast.stages[0]
    assert type(model.first) is Hooked
    with torch.no_grad():
        assert torch.allclose(fast(h), model(h), atol=1e-5)


def test_a_flow_within_a_flow_and_a_reversible_one(with_statistics):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = flow()

        def forward(self, t, h):
            return self.flow(h) - h

    outer = ODEBlock(field=Inner(), solver=FixedStep(steps=2), allow_stateful_field=True)
    reversible = ODEBlock(field=BasicField(channels=8), gradient="reversible")
    model, h = with_statistics(nn.Sequential(outer, reversible)), torch.randn(1, 8, 6, 6)
    fast = optimize.copy_for_inference(model).model
    assert [type(fast[0]), type(fast[0].field.flow), type(fast[1])] == [InferenceFlow, InferenceFlow, ODEBlock]
    with torch.no_grad():
        assert torch.allclose(fast(h), model(h), atol=1e-5)
