import pytest
import torch
from torch import nn

from ode_detect.ode import Adaptive, BasicField, FixedStep, ODEBlock, solver_override
from ode_detect.ode.dial import LeftOut, SolverChange, changed_solver, chosen_solvers, set_solvers

from .two_stages import Network


@pytest.fixture
def network(lively):
    return lively(Network(FixedStep("euler", steps=4, projection="relu"))).eval()


@pytest.fixture
def smooth(lively):
    return lively(Network(FixedStep("euler", steps=4))).eval()


# --- contract ---


def test_all_flows_are_changed_and_changed_back(network):
    before = network.solvers
    with solver_override(network, steps=2, method="midpoint"):
        assert network.solvers == [FixedStep("midpoint", steps=2, projection="relu")] * 2
    assert network.solvers == before


def test_contexts_are_nested_and_undone_by_an_error(network):
    before = network.solvers
    seen = []

    def fail():
        with solver_override(network, method="rk4", flow="res3"):
            seen.extend(network.solvers)
            raise RuntimeError("within")

    with solver_override(network, steps=2):
        halved = network.solvers
        with pytest.raises(RuntimeError, match="within"):
            fail()
        assert network.solvers == halved == [FixedStep("euler", steps=2, projection="relu")] * 2
    assert seen == [halved[0], FixedStep("rk4", steps=2, projection="relu")]
    assert network.solvers == before


@pytest.mark.parametrize("flow", ["res3", "res3.flow", "res3.2", ["res3"]])
def test_one_flow_is_named_by_path_by_its_own_name_or_by_a_word_of_them(network, flow):
    with solver_override(network, steps=1, flow=flow):
        assert [solver.steps for solver in network.solvers] == [4, 1]


def test_a_mapping_changes_the_flows_that_it_names(network):
    with solver_override(network, steps={"res2": 3}, method={"res2": "heun", "res3": "rk4"}):
        assert [(s.method, s.steps) for s in network.solvers] == [("heun", 3), ("rk4", 4)]


def test_a_block_by_itself_has_a_dial_too(network):
    block = network.res2[2]
    with solver_override(block, steps=7):
        assert block.solver.steps == 7


def test_chosen_solvers_are_those_that_set_solvers_sets_for_good(network):
    change = SolverChange(steps=2, flow="res2")
    chosen = chosen_solvers(network, change)
    assert chosen == {"res2.2": FixedStep("euler", steps=2, projection="relu")}
    assert [solver.steps for solver in network.solvers] == [4, 4]
    assert set_solvers(network, change) == chosen
    assert [solver.steps for solver in network.solvers] == [2, 4]


def test_tolerances_are_kept_and_steps_come_back(smooth):
    set_solvers(smooth, SolverChange(method="dopri5"))
    assert smooth.solvers == [Adaptive("dopri5")] * 2
    tight = Adaptive("dopri5", rtol=1e-6, atol=1e-7)
    assert changed_solver(tight, method="bosh3") == Adaptive("bosh3", rtol=1e-6, atol=1e-7)
    assert changed_solver(tight, method="euler", steps=3) == FixedStep("euler", steps=3)
    assert changed_solver(Adaptive("rk4", steps=5), method="euler") == FixedStep("euler", steps=5)
    assert changed_solver(Adaptive("rk4", steps=5), steps=6) == Adaptive("rk4", steps=6)
    assert changed_solver(FixedStep(steps=5), method="implicit_adams", steps=6) == Adaptive("implicit_adams", steps=6)
    assert changed_solver(FixedStep(steps=5), method="implicit_adams") == Adaptive("implicit_adams", steps=5)


def test_a_flow_that_leaves_fixed_steps_takes_the_tolerances_that_are_given(smooth):
    given = {"rtol": 1e-5, "atol": 1e-6, "max_evaluations": 77}
    assert changed_solver(FixedStep(), method="dopri5", **given) == Adaptive("dopri5", **given)
    assert changed_solver(FixedStep(), method="dopri5", atol=0.5) == Adaptive("dopri5", atol=0.5)
    own = Adaptive("bosh3", rtol=1e-2, atol=1e-2, max_evaluations=50)
    assert changed_solver(own, method="dopri5", **given) == Adaptive("dopri5", 1e-2, 1e-2, 50)
    assert changed_solver(FixedStep(), method="rk4", **given) == FixedStep("rk4")
    chosen = set_solvers(smooth, SolverChange(method="dopri5", **given))
    assert list(chosen.values()) == [Adaptive("dopri5", **given)] * 2
    smooth.res2[2].solver = FixedStep(steps=2)
    with solver_override(smooth, method="bosh3", flow="res2", **given):
        assert smooth.solvers == [Adaptive("bosh3", **given), Adaptive("dopri5", **given)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "integer of 1 or more, not 0"),
        ({"steps": 1.5}, "integer of 1 or more, not 1.5"),
        ({"steps": {"res2": -1}}, "integer of 1 or more, not -1"),
        ({"method": "eulr"}, "unknown method 'eulr'.*Did you mean 'euler'"),
        ({"steps": 2, "flow": "res4"}, "unknown flow 'res4'; known are res2.flow, res3.flow"),
        ({"steps": {"re": 2}}, "unknown flow 're'"),
        ({"steps": 2, "flow": "2"}, "'2' means res2.2, res3.2"),
        ({"method": "dopri5"}, "projected by 'relu' after each step; use one of euler"),
        ({}, "neither was given; give steps or method"),
        ({"flow": "res2"}, "neither was given; give steps or method"),
        ({"steps": {"res2": 2}, "flow": "res3"}, "flow='res3' was given beside {'res2': 2}; leave flow out"),
        ({"method": {"res2": "rk4"}, "steps": 2, "flow": "res3"}, "a mapping names its flows itself"),
        ({"steps": {"res2": 2, "res2.flow": 3}}, r"'res2' and 'res2\.flow' are both res2\.2; leave one of them out"),
    ],
)
def test_an_impossible_request_is_refused_and_changes_nothing(network, arguments, message):
    before = network.solvers
    with pytest.raises(ValueError, match=message), solver_override(network, **arguments):
        pass
    assert network.solvers == before


@pytest.mark.parametrize(
    ("solver", "arguments", "message"),
    [
        (Adaptive("dopri5"), {"steps": 3}, "chooses its own steps"),
        (FixedStep(), {"method": "dopri5", "steps": 3}, "chooses its own steps"),
        (Adaptive("dopri5"), {"method": "euler"}, "give steps"),
    ],
)
def test_steps_for_a_method_without_them_and_the_reverse_are_refused(solver, arguments, message):
    with pytest.raises(ValueError, match=message):
        changed_solver(solver, **arguments)


def test_a_solver_that_the_gradient_cannot_take_is_refused():
    block = ODEBlock(field=BasicField(channels=4), gradient="reversible")
    with (
        pytest.raises(ValueError, match="a reversible solve takes fixed steps"),
        solver_override(block, method="bosh3"),
    ):
        pass
    with solver_override(block, method="rk4", steps=2):
        assert block.solver == FixedStep("rk4", steps=2)


def test_a_model_without_flows_has_no_dial():
    with pytest.raises(ValueError, match="this Conv2d has no ODEBlock"), solver_override(nn.Conv2d(1, 1, 1), steps=1):
        pass


# --- value ---


def test_the_output_is_that_of_a_network_built_with_the_solver(network, lively):
    other = Network(FixedStep("heun", steps=3, projection="relu")).eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 4, 6, 6)
    with solver_override(network, steps=3, method="heun"):
        assert torch.equal(network(x), other(x))
    assert not torch.equal(network(x), other(x))


# --- blocks left out ---


@pytest.mark.parametrize(
    ("kept", "starts"), [(8, range(8)), (7, (0, 1, 2, 4, 5, 6, 7)), (4, (1, 3, 5, 7)), (2, (2, 6)), (1, (4,))]
)
def test_blocks_are_kept_at_even_distances(kept, starts):
    assert list(LeftOut(steps=kept).grid(8.0)) == [(start, start + 1) for start in starts]


def test_blocks_are_left_out_as_by_hand(network):
    x = torch.randn(2, 4, 5, 5)
    with solver_override(network, steps=2, method="left_out"):
        assert network.solvers == [LeftOut(steps=2, projection="relu")] * 2
        found = network(x)
    h = x
    for stage in (network.res2, network.res3):
        h = stage[1](stage[0](h))
        for piece in (1, 3):
            h = torch.relu(h + stage[2].field.pieces[piece](0.0, h))
    assert torch.equal(found, h)
    with solver_override(network, steps=4, method="left_out"):
        assert torch.equal(network(x), network(x))
        everything = network(x)
    assert torch.equal(everything, network(x)), "four of four blocks are the network"


def test_more_blocks_than_there_are_cannot_be_kept(network):
    with (
        solver_override(network, steps=5, method="left_out"),
        pytest.raises(ValueError, match="5 were asked for of a flow that lasts 4"),
    ):
        network(torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match=r"flow that lasts 3\.5"):
        list(LeftOut(steps=1).grid(3.5))


def test_the_name_of_a_flow_in_errors_is_its_path_where_it_has_none():
    network = nn.Sequential(nn.Identity(), ODEBlock(field=BasicField(channels=4), solver=FixedStep(projection="relu")))
    with pytest.raises(ValueError, match="'1'"):
        set_solvers(network, SolverChange(method="dopri5"))
