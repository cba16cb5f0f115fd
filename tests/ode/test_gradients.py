import copy

import pytest
import torch
from torch import nn

from ode_detect.ode import Adaptive, Auto, Backprop, Checkpoint, FixedStep, ODEBlock, Reversible
from ode_detect.ode.gradients import GRADIENTS, make_gradient, scheme_for


def state(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 2, 3, 2, dtype=dtype, generator=generator).requires_grad_()


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_by_name(name):
    assert make_gradient(name) == GRADIENTS[name]()
    value = GRADIENTS[name]()
    assert make_gradient(value) is value
    assert copy.copy(value) == value


@pytest.mark.parametrize("wrong", ["checkpont", None, Checkpoint, 3])
def test_unknown_gradients(wrong):
    with pytest.raises(ValueError, match=r"unknown gradient .*known are adjoint, auto, backprop, checkpoint"):
        ODEBlock(field=nn.Identity(), gradient=wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkpoint(every=0), "every must be an integer of 1 or more, not 0; 1 keeps the state at each step"),
        (lambda: Checkpoint(states=1.5), "states must be an integer of 1 or more, not 1.5"),
        (lambda: Checkpoint(every=2, states=4), "not both: every=2 and states=4 were given. Leave one out"),
        (lambda: Reversible(coupling=1.0), "between 0 and 1, not at 1.0; 0.99 is usual"),
        (lambda: Reversible(coupling=0), "between 0 and 1, not at 0"),
        (
            lambda: Auto(memory_budget=0),
            "memory_budget must be an integer of 1 or more, not 0; it is",
        ),
        (lambda: make_gradient("auto"), "needs a memory_budget in bytes, and got none"),
        (lambda: make_gradient("backprop", 100), "goes with gradient='auto', not with 'backprop'; leave out one"),
        (lambda: make_gradient(Checkpoint(), 100), "goes with gradient='auto', not with Checkpoint"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


UNSOLVABLE = [
    (Reversible(), Adaptive(), "takes fixed steps, and 'res4' is solved by 'dopri5'. Use FixedStep"),
    (Reversible(), FixedStep(projection="relu"), "'res4' with its projection 'relu' cannot.*gradient=Checkpoint"),
    (Checkpoint(every=2), Adaptive(), "needs to know the steps beforehand.*Use FixedStep, or gradient='checkpoint'"),
    (Checkpoint(states=2), Adaptive(), "needs to know the steps beforehand"),
    (Auto(100), Adaptive(), "needs to know the steps beforehand"),
]


@pytest.mark.parametrize(("gradient", "solver", "message"), UNSOLVABLE, ids=str)
def test_gradients_that_do_not_go_with_a_solver(gradient, solver, message, smooth_conv):
    with pytest.raises(ValueError, match=message):
        ODEBlock(field=nn.Identity(), gradient=gradient, solver=solver, name="res4")
    block = ODEBlock(field=smooth_conv(2), gradient=gradient, name="res4")
    block.solver = solver
    with pytest.raises(ValueError, match=message):
        block(state())
    with torch.no_grad():
        if isinstance(gradient, Reversible):
            with pytest.raises(ValueError, match=message):
                block(state())
        else:  # The dial of a trained block turns freely where no gradient is asked for.
            block(state())


def test_which_scheme_a_solve_without_a_gradient_has():
    assert scheme_for(Checkpoint()) == Backprop()
    assert scheme_for(Reversible(coupling=0.9)) == Reversible(coupling=0.9)
    assert scheme_for(Reversible(), FixedStep("rk4")) == Reversible()
    assert scheme_for(Reversible(), Adaptive()) == Backprop()
