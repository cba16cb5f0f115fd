import copy
import dataclasses
import logging
import math
import warnings

import pytest
import torch
from torch import nn

from ode_detect.ode import (
    Auto,
    Backprop,
    BasicField,
    BottleneckField,
    Checkpoint,
    FixedStep,
    ODEBlock,
    in_pieces,
    record_solves,
)
from ode_detect.ode.backward.schedules import evaluations_to_reverse
from ode_detect.ode.memory import KeptBytes, bytes_kept, plan
from ode_detect.ode.solvers import TABLEAUS

STEPS = 12


@pytest.fixture
def flow(lively):
    def build(pieces="constant", *, method="euler", projection="none", steps=STEPS, norm="GN", **arguments):
        field = lively(in_pieces(pieces, 1 if pieces == "constant" else 4, lambda: BasicField(channels=4, norm=norm)))
        solver = FixedStep(method, steps=steps, projection=projection)
        return ODEBlock(field=field, solver=solver, **arguments)

    return build


def picture(dtype=torch.float32):
    return torch.randn(2, 4, 8, 8, dtype=dtype, requires_grad=True)


def kept_by(block, h):
    return bytes_kept(lambda: block(h), without=[*block.parameters(), *block.buffers(), h])


# --- measuring ---


def test_a_known_graph_keeps_known_bytes():
    x, weight = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    assert bytes_kept(lambda: x * weight) == 80
    assert bytes_kept(lambda: x * weight, without=[weight]) == 40
    assert bytes_kept(lambda: x * x) == 40, "a storage counts once"
    assert bytes_kept(lambda: x[:2] * 1.5 * x[3:5], without=[]) == 40 + 8, "a storage counts in full"
    assert bytes_kept(lambda: x + weight) == 0
    assert bytes_kept(lambda: x.exp()) == 40, "an output that is saved"
    with torch.no_grad():
        assert bytes_kept(lambda: x * weight) == 0


def test_what_is_gone_does_not_count():
    x = torch.randn(10, requires_grad=True)
    with KeptBytes() as kept:
        out = x.exp()
        assert kept.bytes == 40
        (x * x).sum()
        x.exp().exp()
        assert kept.bytes == 40
        assert kept.holds(out)
        assert not kept.holds(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())
    assert kept.bytes == 0


def test_the_last_to_come_sees_it():
    x = torch.randn(10, requires_grad=True)
    with KeptBytes() as outer, KeptBytes() as inner:
        out = x.exp()
    assert (outer.bytes, inner.bytes, out.requires_grad) == (0, 40, True)


# --- predicting ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pieces", ["constant", "piecewise"])
@pytest.mark.parametrize("projection", ["none", "relu"])
@pytest.mark.parametrize("method", TABLEAUS)
def test_predictions_are_what_is_kept(method, projection, pieces, dtype, flow):
    """Of every way of every report, whatever the budget, to the byte."""
    block = flow(pieces, method=method, projection=projection).to(dtype)
    h = picture(dtype)
    seen = set()
    for budget in (1, 40_000, 10**9):
        report = plan(block.field, h, solver=block.solver, duration=block.duration, budget=budget)
        for way in report.predictions:
            block.gradient = way.gradient
            assert kept_by(block, h) == way.kept, way
            seen.add(way.gradient)
    assert len(seen) >= 4


def test_predictions_of_hat_functions_and_frozen_norms(flow):
    for block in (flow("hat", norm="FrozenBN"), flow("piecewise", norm="FrozenBN"), flow("hat")):
        h = picture()
        report = plan(block.field, h, solver=block.solver, duration=block.duration, budget=10**9)
        for way in report.predictions:
            block.gradient = way.gradient
            # At the first of its times a blend is a knot, so one step of twelve keeps a little less.
            assert kept_by(block, h) <= way.kept <= 1.1 * kept_by(block, h) + 1, way


@pytest.mark.parametrize("method", TABLEAUS)
def test_predicted_evaluations_are_what_is_spent(method, flow):
    block, h = flow(method=method), picture()
    report = plan(block.field, h, solver=block.solver, duration=block.duration, budget=1)
    for way in report.predictions:
        block.gradient = way.gradient
        with record_solves(block, measure=False) as record:
            block(h).sum().backward()
        assert record.total.backward_evaluations == way.evaluations


def test_the_peak_is_what_is_held_while_going_back(flow):
    """States that are kept, one that is advanced, and the graph of a step."""
    block, h = flow(), picture()
    report = plan(block.field, h, solver=block.solver, duration=block.duration, budget=1)
    backprop, every, *_ = report.predictions
    size = h.nbytes
    assert every.peak - every.kept == (backprop.kept - (STEPS - 1) * size) / STEPS
    assert every.kept == (STEPS - 1) * size
    few = report.predictions[-1]
    assert (few.gradient, few.kept, few.evaluations) == (Checkpoint(states=1), 0, STEPS * (STEPS + 1) // 2)
    assert few.peak == size + every.peak - every.kept


# --- choosing ---


def test_the_fastest_that_fits_is_chosen(flow):
    block, h = flow(), picture()

    def choose(budget):
        return plan(block.field, h, solver=block.solver, duration=block.duration, budget=budget)

    backprop, every, spread, _ = choose(1).predictions
    assert backprop.peak > every.peak > spread.peak
    assert spread.gradient.every > 1
    assert choose(backprop.peak).chosen.gradient == Backprop()
    assert choose(backprop.peak - 1).chosen.gradient == Checkpoint()
    assert choose(every.peak - 1).chosen.gradient == spread.gradient
    few = choose(spread.peak - 1)
    assert few.fits
    states = few.chosen.gradient.states
    assert 1 < states < STEPS
    assert few.chosen.evaluations == evaluations_to_reverse(STEPS, states)
    assert few.chosen.peak <= few.budget < few.chosen.peak + h.nbytes, "one more state would not fit"
    nothing = choose(1)
    assert not nothing.fits
    assert nothing.chosen.gradient == Checkpoint(states=1)


def test_a_block_with_a_budget_says_what_it_does(flow, caplog):
    block, h = flow(gradient="auto", memory_budget=40_000, name="res4.flow"), picture()
    assert block.gradient == Auto(memory_budget=40_000)
    assert block.memory is None
    with caplog.at_level(logging.INFO, logger="ode_detect.ode.memory"):
        for _ in range(2):
            block(h).sum().backward()
    report = block.memory
    assert report.fits
    assert report.measured == report.chosen.kept <= 40_000
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert text == f"memory of res4.flow: {report}"
    for part in (str(report.chosen.gradient), "within the budget of 39.1 KiB", "KiB measured as kept", "Backprop()"):
        assert part in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.budget = 1


@pytest.mark.parametrize("budget", [20_000, 60_000, 10**9])
def test_a_budget_changes_no_gradient(budget, flow):
    block, h = flow("piecewise", gradient="auto", memory_budget=budget), picture()
    found = torch.autograd.grad(block(h).square().sum(), [h, *block.parameters()])
    block.gradient = Backprop()
    expected = torch.autograd.grad(block(h).square().sum(), [h, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_each_kind_of_solve_is_planned_once(flow, monkeypatch):
    from ode_detect.ode import memory as module

    planned = []
    monkeypatch.setattr(module, "plan", lambda *args, **kwargs: planned.append(1) or plan(*args, **kwargs))
    block = flow(gradient="auto", memory_budget=10**9)
    with torch.no_grad():
        block(picture())
    assert (planned, block.memory) == ([], None)
    for h in (picture(), picture(), torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)):
        block(h)
    assert len(planned) == 2
    block.solver = FixedStep("rk4", steps=2)
    block(picture())
    assert len(planned) == 3
    assert block.memory.chosen.kept == block.memory.measured
    block.field = copy.deepcopy(block.field)
    block(picture())
    assert len(planned) == 4
    copy.deepcopy(block)(picture())
    assert len(planned) == 5


def test_a_budget_that_nothing_fits_warns(flow):
    block = flow(gradient="auto", memory_budget=1, name="res4.flow")
    with pytest.warns(UserWarning, match=r"no exact gradient of 'res4.flow' fits its memory budget: Checkpoint"):
        block(picture())
    assert block.memory.chosen.gradient == Checkpoint(states=1)


def test_a_single_step(flow):
    block, h = flow(steps=1, gradient="auto", memory_budget=10**9), picture()
    block(h).sum().backward()
    assert block.memory.chosen.gradient == Backprop()
    assert block.memory.measured == block.memory.chosen.kept


def test_who_measures_a_block_with_a_budget_sees_it(flow):
    """Two cannot look at once: the block measures itself later."""
    block, h = flow(gradient="auto", memory_budget=40_000), picture()
    assert kept_by(block, h) == block.memory.chosen.kept
    assert block.memory.measured is None
    block(h)
    assert block.memory.measured == block.memory.chosen.kept


class Noisy(nn.Sequential):
    def forward(self, t, h):
        return super().forward(h)


def test_planning_leaves_no_trace():
    """Statistics, random numbers and gradients are those of a block without a budget."""
    torch.manual_seed(1)
    field = Noisy(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 1))
    block = ODEBlock(
        field=field, solver=FixedStep(steps=6), gradient="auto", memory_budget=20_000, allow_stateful_field=True
    )
    other = ODEBlock(field=Noisy(*field), solver=block.solver, allow_stateful_field=True)
    h = picture()
    start = {name: buffer.clone() for name, buffer in field.named_buffers()}
    results = []
    for flow in (block, other):
        field.load_state_dict(start, strict=False)
        torch.manual_seed(2)
        out = flow(h)
        grads = torch.autograd.grad(out.square().sum(), [h, *flow.parameters()])
        results.append([out, *grads, *(b.clone() for b in flow.buffers()), torch.rand(1)])
    assert block.memory.chosen.gradient != Backprop()
    assert all(way.gradient.states is None for way in block.memory.predictions[1:]), "dropout allows no binomial"
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_res4_of_resnet_101():
    """The flow for which the budget was made: 22 pieces of 1024 channels, here with few pixels."""
    field = in_pieces("piecewise", 22, lambda: BottleneckField(channels=64, bottleneck_channels=16))
    h = torch.randn(1, 64, 6, 6, requires_grad=True)
    block = ODEBlock(field=field, solver=FixedStep(steps=22), gradient=Checkpoint(states=4))
    few, block.gradient = kept_by(block, h), Backprop()
    assert few == 3 * h.nbytes
    assert few < kept_by(block, h) / 4
    assert math.ceil(22 / 5) - 1 == 4
    block.gradient = Checkpoint(every=5)
    assert kept_by(block, h) == 4 * h.nbytes


@pytest.mark.parametrize("budget", [2**30, 1])
def test_what_is_measured_is_watched_over_too(budget: int) -> None:
    """Hooks on what autograd saves take its own look at in-place changes away."""
    conv = nn.Conv2d(2, 2, 3, padding=1)
    field = nn.Module()
    field.conv = conv
    field.forward = lambda t, h: torch.tanh(conv(h))
    block = ODEBlock(field=field, solver=FixedStep(steps=3), gradient="auto", memory_budget=budget)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = block(torch.randn(1, 2, 4, 4, requires_grad=True)).square().sum()
    with torch.no_grad():
        conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"inplace operation|changed in place"):
        loss.backward()
