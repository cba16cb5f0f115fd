import copy
import threading

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from ode_detect.ode import (
    Adaptive,
    BasicField,
    BlockRecord,
    Checkpoint,
    FixedStep,
    NonFiniteStateError,
    ODEBlock,
    SolveRecord,
    TooManyEvaluationsError,
    record_solves,
)
from ode_detect.ode.gradients import GRADIENTS
from ode_detect.ode.solvers import TABLEAUS


class Stiff(nn.Module):
    """Falls onto cos(10 t) at rate 60; a weight for the gradient."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(60.0))
        self.calls = 0

    def forward(self, t, h):
        self.calls += 1
        return -self.rate * (h - torch.cos(10 * torch.as_tensor(t)))


def state():
    return torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2).requires_grad_()


def stage(count=2, solver=None, gradient="backprop"):
    blocks = [ODEBlock(field=BasicField(channels=4), solver=solver, gradient=gradient) for _ in range(count)]
    return nn.Sequential(*blocks)


@pytest.mark.parametrize("gradient", [*GRADIENTS, Checkpoint(states=2)])
@pytest.mark.parametrize("method", TABLEAUS)
def test_fixed_steps(method, gradient):
    solver = FixedStep(method, steps=5)
    stages = solver.evaluations // 5
    block = ODEBlock(field=Stiff(), solver=solver, gradient=gradient)
    with record_solves(block) as record:
        for _ in range(2):
            block(state()).sum().backward()
    mine = record.blocks["ODEBlock"]
    assert (mine.solves, mine.accepted, mine.rejected) == (2, 10, 0)
    # The pair of a reversible solve takes 2 * 5 - 1 increments; by the binomial formula, 5 steps from 2 states take 8.
    assert mine.forward_evaluations == 2 * stages * (9 if gradient == "reversible" else 5)
    steps_back = {"backprop": 0, "reversible": 9, Checkpoint(states=2): 8}.get(gradient, 5)
    assert mine.backward_evaluations == 2 * stages * steps_back
    assert block.field.calls == mine.forward_evaluations + mine.backward_evaluations + 1  # one to count multiply-adds


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "adjoint"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_adaptive_steps_against_torchdiffeqs_own_callbacks(method, gradient):
    seen = {"accepted": 0, "rejected": 0, "calls": 0}
    field = Stiff()

    def count(what):
        def callback(*_):
            seen[what] += 1

        return callback

    def evaluate(t, h):
        seen["calls"] += 1
        return field(t, h)

    evaluate.callback_accept_step, evaluate.callback_reject_step = count("accepted"), count("rejected")
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    odeint(evaluate, state(), times, rtol=1e-3, atol=1e-4, method=method, options={"step_t": times})
    assert seen["rejected"] > 0

    block = ODEBlock(field=field, solver=Adaptive(method), gradient=gradient)
    with record_solves(block) as record:
        out = block(state())
    mine = record.blocks["ODEBlock"]
    assert (mine.accepted, mine.rejected, mine.forward_evaluations) == (
        seen["accepted"],
        seen["rejected"],
        seen["calls"],
    )
    before = field.calls
    out.sum().backward()
    # The backward pass counts although the context has ended, and its steps are not the solve's.
    assert mine.backward_evaluations == field.calls - before
    assert (mine.backward_evaluations > 0) == (gradient != "backprop")
    assert (mine.accepted, mine.rejected) == (seen["accepted"], seen["rejected"])


def test_steps_of_methods_that_do_not_adapt():
    for method, accepted in (("rk4", 6), ("implicit_adams", 6), ("scipy_solver", 0)):
        block = ODEBlock(field=Stiff(), solver=Adaptive(method, steps=6, rtol=1.0, atol=1.0))
        nn.init.ones_(block.field.rate)
        with record_solves(block) as record, torch.no_grad():
            block(state())
        assert record.total.accepted == accepted
        assert record.total.forward_evaluations > 0


@pytest.mark.parametrize("solver", [FixedStep("heun", steps=3), Adaptive()])
def test_counting_without_measuring(solver):
    block = ODEBlock(field=Stiff(), solver=solver)
    with record_solves(block, measure=False) as counted:
        block(state())
    calls = block.field.calls
    with record_solves(block) as measured:
        block(state())
    assert counted.total.forward_evaluations == measured.total.forward_evaluations == calls
    assert (counted.total.accepted, counted.total.solves) == (measured.total.accepted, 1)
    assert (counted.total.macs, counted.total.forward_seconds) == (0, 0.0)


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [*((FixedStep("heun", steps=3), name) for name in GRADIENTS), (Adaptive(), "checkpoint"), (Adaptive(), "adjoint")],
)
def test_a_record_changes_nothing(solver, gradient):
    block = ODEBlock(field=Stiff(), solver=solver, gradient=gradient)
    results = []
    for recorded in (False, True):
        h = state()
        if recorded:
            with record_solves(block):
                out = block(h)
        else:
            out = block(h)
        grads = torch.autograd.grad(out.sum(), (h, block.field.rate))
        results.append((out.detach(), *grads))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_blocks_have_their_names():
    with record_solves(model := nn.ModuleDict({"res3": stage(2), "head": nn.Conv2d(4, 4, 1)})) as record:
        model["res3"](torch.randn(1, 4, 4, 4))
    assert list(record.blocks) == ["res3.0", "res3.1"]
    assert [b.solves for b in record.blocks.values()] == [1, 1]
    assert record.total.forward_evaluations == 2


def test_a_model_without_flows():
    with record_solves(nn.Conv2d(1, 1, 1)) as record:
        pass
    assert record.blocks == {}
    assert record.total == BlockRecord()
    assert "total" in str(record)


def test_two_models_do_not_see_each_other():
    one, other = stage(1), stage(1)
    with record_solves(one) as a, record_solves(other) as b:
        one(torch.randn(1, 4, 4, 4))
    assert (a.total.solves, b.total.solves) == (1, 0)


def test_nested_records_both_see():
    model, h = stage(1), torch.randn(1, 4, 4, 4)
    with record_solves(model) as outer:
        model(h)
        with record_solves(model) as inner:
            model(h)
        model(h)
    assert (outer.total.solves, inner.total.solves) == (3, 1)


def test_two_threads_do_not_see_each_other():
    model, h = stage(1, FixedStep("rk4", steps=2)), torch.randn(1, 4, 4, 4)
    barrier, records, failures = threading.Barrier(2, timeout=30), {}, []

    def work(name, solves):
        try:
            with record_solves(model) as record:
                barrier.wait()
                for _ in range(solves):
                    model(h)
                barrier.wait()
            records[name] = record
        except BaseException as error:  # told by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=arguments) for arguments in (("a", 3), ("b", 5))]
    with record_solves(model) as mine:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures
    assert (records["a"].total.solves, records["b"].total.solves, mine.total.solves) == (3, 5, 0)
    assert records["b"].total.forward_evaluations == 5 * 8
    assert model[0].observers == {}


def test_the_end_of_the_context_detaches():
    model, h = stage(2), torch.randn(1, 4, 4, 4)
    with record_solves(model) as record:
        model(h)
    model(h)
    assert record.total.solves == 2
    with pytest.raises(KeyError, match="mine"), record_solves(model):
        raise KeyError("mine")
    assert [block.observers for block in model] == [{}, {}]


def test_a_copy_is_not_recorded():
    model, h = stage(1), torch.randn(1, 4, 4, 4)
    with record_solves(model) as record:
        clone = copy.deepcopy(model)
        clone(h)
        assert clone[0].observers == {}
        assert record.total.solves == 0
        model(h)
    assert record.total.solves == 1


@pytest.mark.parametrize(
    ("solver", "error", "evaluations"),
    [
        (Adaptive(max_evaluations=9), TooManyEvaluationsError, 9),
        (FixedStep("euler", steps=90), NonFiniteStateError, 90),
    ],
)
def test_a_failing_solve(solver, error, evaluations):
    class Square(nn.Module):
        def forward(self, t, h):
            return h * h

    block = ODEBlock(field=Square(), solver=solver)
    with record_solves(block) as record:
        with pytest.raises(error):
            block(torch.full((1, 1, 2, 2), 100.0))
        assert (record.total.solves, record.total.forward_evaluations) == (0, evaluations)
        block.solver = FixedStep()
        block(torch.ones(1, 1, 2, 2))
    assert (record.total.solves, record.total.forward_evaluations) == (1, evaluations + 1)
    assert block.observers == {}


def test_the_table():
    record = SolveRecord(
        {"res4": BlockRecord(2, 12, 6, 4, 1, 3_400_000, 0.0125, 0.25), "res5": BlockRecord(solves=1, rejected=7)}
    )
    assert str(record) == (
        "block  solves  NFE  backward NFE  accepted  rejected  MMACs    ms  backward ms\n"
        "-----  ------  ---  ------------  --------  --------  -----  ----  -----------\n"
        "res4        2   12             6         4         1    3.4  12.5        250.0\n"
        "res5        1    0             0         0         7    0.0   0.0          0.0\n"
        "-----  ------  ---  ------------  --------  --------  -----  ----  -----------\n"
        "total       3   12             6         4         8    3.4  12.5        250.0"
    )
