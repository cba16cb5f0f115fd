import copy

import pytest
import torch
from torch import nn

from ode_detect.ode import BasicField, BottleneckField
from ode_detect.ode.refitting import least_squares
from ode_detect.ode.refitting.least_squares import (
    LinearEnd,
    NormalEquations,
    activations,
    affine_map,
    best_solution,
    common_end,
    find_linear_end,
    sampled_rows,
    set_affine_map,
    set_solution,
)

STATE = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(1))
EVERYWHERE = torch.arange(30)


class Branch(nn.Module):
    """conv, norm, relu, conv, norm, and whatever comes after."""

    def __init__(self, norm=nn.BatchNorm2d, after=None, **conv):
        super().__init__()
        arguments = {"padding": 1, "bias": False, **conv}
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = norm(8)
        self.conv2 = nn.Conv2d(8, 8, 3, **arguments)
        self.bn2 = norm(8)
        if after is not None:
            self.after = after

    def forward(self, t, h):
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(h)))))
        return self.after(h) if hasattr(self, "after") else h


def shaken(module):
    """A module with random weights and statistics, in evaluation mode."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5).mul_(torch.randn_like(tensor).sign() if tensor.dim() > 1 else 1.0)
    return module.eval()


class FlatNorm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, affine=False)


KNOWN = {
    "BasicField FrozenBN": (lambda: BasicField(channels=8, norm="FrozenBN"), LinearEnd("conv2", "conv2.norm")),
    "BasicField none": (lambda: BasicField(channels=8, norm="none"), LinearEnd("conv2", "")),
    "BottleneckField": (lambda: BottleneckField(channels=8, norm="FrozenBN"), LinearEnd("conv3", "conv3.norm")),
    "BatchNorm": (Branch, LinearEnd("conv2", "bn2")),
    "dilated": (lambda: Branch(dilation=2, padding=2), LinearEnd("conv2", "bn2")),
    "identities after": (lambda: Branch(after=nn.Identity()), LinearEnd("conv2", "bn2")),
    "bias before BatchNorm": (lambda: Branch(bias=True), LinearEnd("conv2", "bn2")),
}
UNKNOWN = {
    "group normalisation": lambda: BasicField(channels=8, norm="GN"),
    "instance normalisation": lambda: Branch(nn.InstanceNorm2d),
    "no affine weights": lambda: Branch(FlatNorm),
    "groups": lambda: Branch(groups=2),
    "other padding": lambda: Branch(padding_mode="reflect"),
    "a layer after": lambda: Branch(after=nn.Tanh()),
    "no bias at all": lambda: Branch(nn.Identity),
    "no convolution": lambda: type("Half", (nn.Module,), {"forward": lambda self, t, h: h / 2})(),
    "not a layer": lambda: type("Twice", (Branch,), {"forward": lambda self, t, h: 2 * Branch.forward(self, t, h)})(),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_linear_end_is_found(name):
    build, end = KNOWN[name]
    assert find_linear_end(shaken(build()), 0.0, STATE) == end


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_linear_is_not_taken_for_it(name):
    field = shaken(UNKNOWN[name]())
    assert find_linear_end(field, 0.0, STATE) is None
    assert not any(module._forward_pre_hooks for module in field.modules())


@pytest.mark.parametrize("name", KNOWN)
def test_the_affine_map_is_what_the_end_computes(name):
    build, end = KNOWN[name]
    field = shaken(build()).double()
    with activations([field], end) as seen:
        slope = field(0.0, STATE.double())
    x, y = sampled_rows(seen[0], slope, field.get_submodule(end.convolution), EVERYWHERE)
    assert x.shape == (90, affine_map(field, end).shape[0])
    torch.testing.assert_close(x @ affine_map(field, end), y)


@pytest.mark.parametrize("name", KNOWN)
def test_an_affine_map_that_is_set_is_the_one_computed_in_both_modes(name):
    """Statistics are those of the convolution's own output, so batch statistics of the same pictures give the same."""
    build, end = KNOWN[name]
    field = shaken(build()).double()
    with activations([field], end) as seen:
        slope = field(0.0, STATE.double())
    x, _ = sampled_rows(seen[0], slope, field.get_submodule(end.convolution), EVERYWHERE)
    wanted = torch.randn_like(affine_map(field, end))
    system = NormalEquations()
    system.add(x, x @ wanted, [(0, 1.0)])
    set_affine_map(field, end, wanted, *system.statistics({0: wanted}))
    torch.testing.assert_close(affine_map(field, end), wanted)
    expected = (x @ wanted).reshape(3, 30, 8).transpose(1, 2).reshape(3, 8, 6, 5)
    torch.testing.assert_close(field(0.0, STATE.double()), expected)
    if end.norm:
        field.get_submodule(end.norm).train()
        torch.testing.assert_close(field(0.0, STATE.double()), expected, rtol=1e-6, atol=1e-6)


# --- normal equations ---


def random_system(shares, rows=40, size=5, channels=3):
    system, parts = NormalEquations(), []
    for share in shares:
        x = torch.cat([torch.randn(rows, size - 1), torch.ones(rows, 1)], dim=1).double()
        y = torch.randn(rows, channels).double()
        system.add(x, y, share)
        parts.append((x, y, share))
    return system, parts


SHARES = {
    "one piece": [[(0, 1.0)], [(0, 1.0)]],
    "blended": [[(0, 1.0)], [(0, 0.7), (1, 0.3)], [(0, 0.2), (1, 0.8)], [(1, 0.5), (2, 0.5)], [(2, 1.0)]],
}


@pytest.mark.parametrize("name", SHARES)
def test_the_solution_is_that_of_lstsq(name):
    system, parts = random_system(SHARES[name])
    count = len(system.indices)
    design = []
    for x, _, shares in parts:
        blocks = [torch.zeros_like(x)] * count
        for k, share in shares:
            blocks[k] = share * x
        design.append(torch.cat(blocks, dim=1))
    design, values = torch.cat(design), torch.cat([y for _, y, _ in parts])
    expected = torch.linalg.lstsq(design, values).solution
    start = {k: torch.randn(5, 3).double() for k in system.indices}
    solved = system.solve(start, ridge=0.0)
    torch.testing.assert_close(torch.cat([solved[k] for k in range(count)]), expected)
    for maps in (solved, start):
        off = design @ torch.cat([maps[k] for k in range(count)]) - values
        assert system.residual(maps) == pytest.approx(float(off.square().sum()))


@pytest.mark.parametrize("name", SHARES)
def test_the_statistics_are_those_of_the_rows(name):
    system, parts = random_system(SHARES[name])
    maps = {k: torch.randn(5, 3).double() for k in system.indices}
    z = torch.cat([sum(share * (x[:, :-1] @ maps[k][:-1]) for k, share in shares) for x, _, shares in parts])
    mean, variance = system.statistics(maps)
    torch.testing.assert_close(mean, z.mean(dim=0))
    torch.testing.assert_close(variance, z.var(dim=0, unbiased=False))


def test_what_the_rows_do_not_say_stays_as_it_was():
    """A channel that is never active keeps its weights."""
    system, start = NormalEquations(), {0: torch.randn(4, 2).double()}
    x = torch.randn(50, 4).double()
    x[:, 1] = 0.0
    system.add(x, x @ torch.randn(4, 2).double(), [(0, 1.0)])
    solved = system.solve(start, ridge=1e-6)[0]
    torch.testing.assert_close(solved[1], start[0][1])
    assert not torch.allclose(solved[0], start[0][0], atol=1e-2)


def test_a_strong_ridge_changes_nothing():
    system, _ = random_system(SHARES["blended"])
    start = {k: torch.randn(5, 3).double() for k in system.indices}
    solved = system.solve(copy.deepcopy(start), ridge=1e9)
    for k, before in start.items():
        torch.testing.assert_close(solved[k], before, rtol=1e-5, atol=1e-5)


def test_few_rows_tell_whether_an_end_is_linear(monkeypatch):
    """Of a large state: the patches of all positions would take kernel times its memory, in float64."""
    taken = []

    def seen(hidden, slope, conv, where):
        taken.append((len(hidden), len(where), where.device))
        return sampled_rows(hidden, slope, conv, where)

    monkeypatch.setattr(least_squares, "sampled_rows", seen)
    state = torch.randn(4, 8, 40, 40)
    assert find_linear_end(shaken(Branch()), 0.0, state) == LinearEnd("conv2", "bn2")
    assert taken == [(1, 256, state.device)]


def test_a_linear_end_is_common_only_if_all_fields_have_it():
    h = torch.randn(2, 4, 5, 5)
    fields = [BasicField(channels=4, norm="FrozenBN").eval() for _ in range(2)]
    assert common_end(fields, 0.0, h) == LinearEnd("conv2", "conv2.norm")
    other = BottleneckField(channels=4, norm="FrozenBN").eval()
    assert common_end([*fields, other], 0.0, h) is None
    assert common_end(fields, 0.0, h.flatten(2)) is None, "a state that is no picture is not tried"


@torch.no_grad()
def test_the_best_option_is_the_one_with_the_smallest_residual_and_is_put_into_its_parts():
    torch.manual_seed(0)
    fields = [BasicField(channels=4, norm="FrozenBN").eval() for _ in range(3)]
    for field in fields:
        for tensor in (*field.parameters(), *field.conv2.norm.buffers()):
            torch.nn.init.uniform_(tensor, 0.2, 1.0)
    end, h = LinearEnd("conv2", "conv2.norm"), torch.randn(2, 4, 6, 6)
    wanted = fields[1](0.0, h) * 2 - 1
    where, equations = torch.randperm(36), []
    for field in fields:
        with activations([field], end) as seen:
            field(0.0, h)
        sums = NormalEquations()
        sums.add(*sampled_rows(seen[0], wanted, field.conv2, where), [(0, 1.0)])
        equations.append(sums)
    number, maps = best_solution([[field] for field in fields], equations, end, 1e-9)
    assert number == 1, "only its first convolution gives what was wanted"
    set_solution([fields[number]], end, equations[number], maps)
    assert torch.allclose(fields[number](0.0, h), wanted, atol=1e-3)
