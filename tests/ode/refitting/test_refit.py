import copy
import math

import pytest
import torch
from torch import nn

from ode_detect.ode import (
    Adaptive,
    BasicField,
    BottleneckField,
    FixedStep,
    HatFunctions,
    ODEBlock,
    PiecewiseConstant,
    ResidualBranch,
    Reversible,
    in_pieces,
)
from ode_detect.ode.pieces import PIECES
from ode_detect.ode.refitting.refit import project_pieces, split_pieces

from ..small_flows import Block, Branch, flow, model, outputs, pictures, same, shaken, states

KINDS = ["piecewise", "hat"]


FIELDS = {
    "BatchNorm": Branch,
    "converted": lambda: ResidualBranch(Block(6)),
    "FrozenBN": lambda: BasicField(channels=6, norm="FrozenBN"),
    "bottleneck": lambda: BottleneckField(channels=6, bottleneck_channels=4, norm="FrozenBN"),
    "none": lambda: BasicField(channels=6, norm="none"),
    "GN": lambda: BasicField(channels=6, norm="GN"),
}
SOLVED = [name for name in FIELDS if name != "GN"]


# --- splitting ---


def smooth(kind, count=3):
    def build():
        return shaken(BasicField(channels=4, norm="GN", activation="silu")).double()

    return in_pieces(kind, 1 if kind == "constant" else count, build, duration=None if kind == "constant" else 2.5)


@pytest.mark.parametrize("kind", ["constant", *KINDS])
def test_a_split_flow_has_the_same_solution_and_half_the_error_of_euler(kind):
    block = ODEBlock(field=smooth(kind), solver=FixedStep(steps=12), duration=2.5)
    h = torch.randn(2, 4, 5, 5).double()

    def solve(solver):
        block.solver, kept = solver, block.solver
        out = block(h).detach()
        block.solver = kept
        return out

    exact, coarse = solve(FixedStep("rk4", steps=96)), block(h).detach()
    split_pieces(block)
    torch.testing.assert_close(solve(FixedStep("rk4", steps=96)), exact, rtol=1e-12, atol=1e-12)
    assert block.solver == FixedStep(steps=24)
    assert block.duration == block.field.duration == 2.5
    ratio = float((coarse - exact).norm() / (block(h).detach() - exact).norm())
    assert 1.7 < ratio < 2.3


@pytest.mark.parametrize(("kind", "count", "expected"), [("piecewise", 3, 6), ("hat", 3, 5), ("hat", 1, 2)])
def test_weights_over_time_stay(kind, count, expected):
    block = ODEBlock(field=in_pieces(kind, count, lambda: shaken(Branch()).eval()), allow_stateful_field=True)
    before, h = copy.deepcopy(block.field), torch.randn(1, 6, 4, 4)
    split_pieces(block)
    assert len(next(iter(block.field.children()))) == expected
    for t in torch.linspace(0, count, 25).tolist():
        torch.testing.assert_close(block.field(t, h), before(t, h), rtol=1e-4, atol=1e-5)


def test_statistics_are_copied_and_parameters_are_new():
    network = model(2)
    before = states(network)
    split_pieces(network)
    pieces = network[1].field.pieces
    for index, piece in enumerate(pieces):
        assert all(torch.equal(x, before[f"1.field.pieces.{index // 2}.{n}"]) for n, x in piece.state_dict().items())
    assert len({parameter.data_ptr() for parameter in network.parameters()}) == len(list(network.parameters()))


@pytest.mark.parametrize("kind", PIECES)
def test_a_split_keeps_modes_and_a_time_that_is_not_the_block_s(kind):
    field = in_pieces(kind, 1 if kind == "constant" else 2, lambda: shaken(Branch()))
    block = ODEBlock(field=field, solver=FixedStep(steps=4), duration=1.5, allow_stateful_field=True).eval()
    before, h = copy.deepcopy(block.field), torch.randn(1, 6, 4, 4)
    split_pieces(block)
    assert not any(module.training for module in block.modules())
    for t in (0.0, 0.4, 0.8, 1.2, 1.5):
        torch.testing.assert_close(block.field(t, h), before(t, h), rtol=1e-4, atol=1e-5)


def test_one_flow_is_split():
    network = model(2, flows=2)
    split_pieces(network, flow="2")
    assert [len(block.field.pieces) for block in network[1:]] == [2, 4]
    assert [block.solver.steps for block in network[1:]] == [2, 4]


# --- projection: contract ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_time_and_steps_stay_and_parameters_go(field, kind):
    network = model(6, FIELDS[field])
    size = sum(p.numel() for p in network[1].parameters())
    report = project_pieces(network, pictures(), count=2, kind=kind)
    block = network[1]
    assert isinstance(block.field, PiecewiseConstant if kind == "piecewise" else HatFunctions)
    assert block.duration == block.field.duration == 6.0
    assert block.solver.steps == 6
    (row,) = report.flows
    assert (row.name, row.pieces, row.count, row.parameters) == ("1", 6, 2, size)
    assert row.parameters_after == sum(p.numel() for p in block.parameters()) == size // 3
    assert bool(row.note) == (field == "GN")
    assert (row.fitted == pytest.approx(row.candidate, rel=1e-9)) == (field == "GN")
    for part in (row.name, "6 -> 2", f"{size:,} -> {size // 3:,}", f"{row.fitted:.2%}", kind):
        assert part in str(report)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_modes_random_state_and_everything_else_stay(kind, training):
    network = model(4, flows=2).train(training)
    network[1].field.pieces[0].bn1.eval()
    before, random = states(network), torch.get_rng_state()
    project_pieces(network, pictures(), count=2, flow="1", kind=kind)
    assert torch.equal(torch.get_rng_state(), random)
    for part in next(iter(network[1].field.children())):
        modes = [part.training, part.conv2.training, part.bn1.training, part.bn2.training]
        assert modes == [training, training, False, training]
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
    assert network.training == network[0].training == network[1].field.training == network[2].training == training
    kept = {n: x for n, x in network.state_dict().items() if not n.startswith("1.")}
    assert same(kept, {n: x for n, x in before.items() if not n.startswith("1.")})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_the_same_seed_gives_the_same_bits():
    networks = [model(4)]
    networks.append(copy.deepcopy(networks[0]))
    for network in networks:
        project_pieces(network, pictures(), count=2, positions=9, seed=3)
    assert same(states(networks[0]), states(networks[1]))


def test_pieces_of_unlike_builds_are_chosen_from():
    """They have no average, and each group takes one of its own."""
    pieces = [shaken(BottleneckField(channels=6, bottleneck_channels=w, norm="none")) for w in (3, 3, 5, 5)]
    network = nn.Sequential(nn.Conv2d(3, 6, 1), flow(PiecewiseConstant(pieces), 4))
    (row,) = project_pieces(network, pictures(), count=2).flows
    assert [piece.conv2.in_channels for piece in network[1].field.pieces] == [3, 5]
    assert math.isnan(row.averaged)
    with pytest.raises(ValueError, match="'0' are not of the same build, so hat functions cannot blend"):
        project_pieces(nn.Sequential(flow(PiecewiseConstant(pieces), 4)), pictures(), count=2, kind="hat")


# --- projection: value ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_equal_pieces_are_projected_without_loss(field, kind):
    piece = shaken(FIELDS[field]())
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        flow(PiecewiseConstant([copy.deepcopy(piece) for _ in range(5)]), 5, projection="relu"),
    )
    expected = outputs(network, pictures())
    (row,) = project_pieces(network, pictures(), count=2, kind=kind).flows
    assert row.candidate == row.fitted == row.output == 0.0
    assert torch.equal(outputs(network, pictures()), expected)


@pytest.mark.parametrize("field", SOLVED)
def test_last_convolutions_that_are_linear_in_time_are_found_by_hat_functions(field):
    """What averages and single pieces miss, the joint system of all knots finds."""
    knots = [shaken(FIELDS[field]())]
    knots += [copy.deepcopy(knots[0]) for _ in range(2)]
    last = {"converted": "block.conv2", "bottleneck": "conv3"}.get(field, "conv2")
    for knot in knots:
        nn.init.normal_(knot.get_submodule(last).weight, std=0.3)
    hat = HatFunctions(knots, duration=8.0)
    pieces = []
    for j in range(8):
        left, weight = hat.between(float(j))
        piece = copy.deepcopy(knots[left])
        kernel = piece.get_submodule(last).weight
        kernel.data.lerp_(knots[min(left + 1, 2)].get_submodule(last).weight.data, weight)
        pieces.append(piece)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), flow(PiecewiseConstant(pieces), 8))
    expected = outputs(network, pictures(4))
    (row,) = project_pieces(network, pictures(4), count=3, kind="hat", positions=42, ridge=1e-12).flows
    assert row.candidate > 0.05
    assert row.fitted < 1e-3
    torch.testing.assert_close(outputs(network, pictures(4)), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", SOLVED)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_least_squares_are_better_than_any_candidate(count, field, kind):
    network = model(5, FIELDS[field])
    original = copy.deepcopy(network)
    (row,) = project_pieces(network, pictures(), count=count, kind=kind, positions=42).flows
    assert row.fitted < row.candidate <= row.averaged
    assert row.fitted == pytest.approx(residual(original, network), rel=1e-4)
    expected = outputs(original, pictures())
    assert row.output == pytest.approx(float((outputs(network, pictures()) - expected).norm() / expected.norm()), 1e-4)


@torch.no_grad()
def residual(original, projected):
    """By hand: Euler steps of the original, where both fields are compared."""
    original, projected = copy.deepcopy(original).eval(), copy.deepcopy(projected).eval()
    off = power = 0.0
    for batch in pictures():
        h = original[0](batch)
        for j, piece in enumerate(original[1].field.pieces):
            slope = piece(float(j), h)
            off += float((projected[1].field(float(j), h) - slope).square().sum())
            power += float(slope.square().sum())
            h = h + slope
    return (off / power) ** 0.5


def test_more_pieces_lose_less():
    losses = []
    for count in (1, 2, 3, 5):
        torch.manual_seed(0)
        (row,) = project_pieces(model(6), pictures(), count=count, positions=42).flows
        losses.append(row.fitted)
    assert losses == sorted(losses, reverse=True)


# --- errors ---


def test_what_cannot_be_projected_says_what_to_do():
    network = model(4, flows=2)
    for count in (0, 4, 5):
        with pytest.raises(ValueError, match=f"'1' has 4 pieces and cannot be projected on {count}; give .* 1 to 3"):
            project_pieces(network, pictures(), count=count)
    with pytest.raises(ValueError, match="there are none; give at least one batch"):
        project_pieces(network, [], count=2)
    for arguments in ({"positions": 0}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match="1 position or more and a ridge above 0"):
            project_pieces(network, pictures(), count=2, **arguments)
    with pytest.raises(ValueError, match=r"unknown pieces 'hats'.*Did you mean 'hat'"):
        project_pieces(network, pictures(), count=2, kind="hats")
    with pytest.raises(ValueError, match="unknown flow 'res4'; known are 1, 2"):
        project_pieces(network, pictures(), count=2, flow="res4")
    network[2].solver = FixedStep(steps=2)
    with pytest.raises(ValueError, match=r"'2' has 4 pieces and 2 steps, so that some are never evaluated; .* 4 steps"):
        project_pieces(network, pictures(), count=1)
    network[2].solver = Adaptive()
    with pytest.raises(ValueError, match="'2' are changed along its steps, and 'dopri5' chooses its own; set its"):
        project_pieces(network, pictures(), count=2)
    network[2] = ODEBlock(field=BasicField(channels=6))
    with pytest.raises(ValueError, match="'2' has no pieces to project: its field is a BasicField"):
        project_pieces(network, pictures(), count=2)
    with pytest.raises(ValueError, match="has no ODEBlock"):
        project_pieces(nn.Conv2d(3, 3, 1), pictures(), count=2)


def test_a_flow_that_the_model_does_not_use():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = model(4)[1]

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="'flow' was not run on the pictures"):
        project_pieces(Beside(), pictures(), count=2)


def test_what_cannot_be_split_says_what_to_do():
    with pytest.raises(ValueError, match="'dopri5' chooses its own"):
        split_pieces(nn.Sequential(ODEBlock(field=BasicField(channels=4), solver=Adaptive())))
    with pytest.raises(ValueError, match="has no ODEBlock"):
        split_pieces(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="unknown flow '3'"):
        split_pieces(model(2), flow="3")


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_a_reversible_flow_is_compared_by_its_own_scheme(kind):
    network = model(4).double()
    network[1].gradient = Reversible(coupling=0.7)
    batches = [batch.double() for batch in pictures()]
    with torch.no_grad():
        states_in = [copy.deepcopy(network[0]).eval()(batch) for batch in batches]
    before = outputs(network[1], states_in)
    report = project_pieces(network, batches, count=2, kind=kind)
    after = outputs(network[1], states_in)
    share = float((after - before).norm() / before.norm())
    assert report.flows[0].output == pytest.approx(share, rel=1e-9)
