import copy
import itertools
import math

import pytest
import torch
from torch import nn

from ode_detect.ode import BasicField, FixedStep, HatFunctions, ODEBlock, PiecewiseConstant, in_pieces
from ode_detect.ode.pieces import PIECES, are_alike, blended, duration_of, halved, parts_of, segments_of, shares_at
from ode_detect.ode.solvers import TABLEAUS

KINDS = [kind for kind in PIECES if kind != "constant"]


class Affine(nn.Module):
    """weight * h + offset, where the offset is a buffer and ``steps`` an integer one."""

    def __init__(self, weight=0.0, offset=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(weight)]))
        self.register_buffer("offset", torch.tensor([float(offset)]))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, t, h):
        assert int(self.steps) == 7
        return self.weight * h + self.offset


def fields(count):
    return [Affine(k + 1, 10 * k) for k in range(count)]


ONE = torch.ones(1, 1, 1, 1)


@pytest.mark.parametrize("kind", PIECES)
def test_every_kind_can_be_built(kind):
    field = in_pieces(kind, 1 if kind == "constant" else 3, lambda: BasicField(channels=4))
    h = torch.randn(2, 4, 5, 3)
    for t in (0.0, 0.3, duration_of(field)):
        assert field(t, h).shape == h.shape
    assert duration_of(field) == (1.0 if kind == "constant" else 3.0)
    assert ODEBlock(field=field).duration == duration_of(field)


@pytest.mark.parametrize("kind", PIECES)
def test_one_piece_is_constant_weights(kind, lively):
    field = lively(in_pieces(kind, 1, lambda: BasicField(channels=4)))
    alone = field if kind == "constant" else next(iter(field.children()))[0]
    h = torch.randn(1, 4, 5, 5)
    assert all(torch.equal(field(t, h), alone(t, h)) for t in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_start_different(kind):
    field = in_pieces(kind, 3, lambda: BasicField(channels=4))
    first, second, _ = next(iter(field.children()))
    assert not torch.equal(first.conv1.weight, second.conv1.weight)


@pytest.mark.parametrize("kind", PIECES)
@pytest.mark.parametrize("count", [0, -1])
def test_there_must_be_a_piece(kind, count):
    with pytest.raises(ValueError, match=f"{kind} pieces were asked for with a count of {count}"):
        in_pieces(kind, count, Affine)


def test_constant_weights_are_one_piece():
    with pytest.raises(ValueError, match="constant weights have 1 piece"):
        in_pieces("constant", 2, Affine)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"unknown pieces 'hats'.*Did you mean 'hat'"):
        in_pieces("hats", 2, Affine)


@pytest.mark.parametrize("container", [PiecewiseConstant, HatFunctions])
def test_no_piece_at_all(container):
    with pytest.raises(ValueError, match="at least one field"):
        container([])


@pytest.mark.parametrize(
    ("t", "piece"), [(0.0, 0), (0.999, 0), (1.0, 1), (1.999999, 1), (2.0, 2), (2.5, 2), (3.0, 2), (3.0 + 1e-9, 2)]
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_piece_k_acts_from_k_to_k_plus_1(t, piece, as_tensor):
    field = PiecewiseConstant(fields(3))
    assert (
        float(field(torch.tensor(t, dtype=torch.float64) if as_tensor else t, ONE).detach()) == piece + 1 + 10 * piece
    )


@pytest.mark.parametrize("as_tensor", [False, True])
def test_hats_are_linear_between_knots(as_tensor):
    """Knots at 0, 1, 2, ... times K / (K - 1); weights and buffers against numpy's interpolation."""
    np = pytest.importorskip("numpy")
    for count in (2, 3, 5):
        field = HatFunctions(fields(count))
        for t in np.linspace(0, count, 23):
            position = t * (count - 1) / count
            expected = np.interp(position, range(count), [k + 1 + 10 * k for k in range(count)])
            got = field(torch.tensor(t) if as_tensor else float(t), ONE)
            assert float(got.detach()) == pytest.approx(float(expected), rel=1e-6)


def test_hats_leave_their_knots_as_they_are():
    field = HatFunctions(fields(3))
    before = copy.deepcopy(field.state_dict())
    field(1.3, ONE).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), field.state_dict().values(), strict=True))
    assert all(isinstance(p, nn.Parameter) for p in field.parameters())


def test_hats_share_the_gradient_out():
    field = HatFunctions(fields(3))
    field(0.375, ONE).sum().backward()  # a quarter of the way from knot 0 to knot 1
    grads = [knot.weight.grad for knot in field.knots]
    assert float(grads[0]) == pytest.approx(0.75)
    assert float(grads[1]) == pytest.approx(0.25)
    assert grads[2] is None


def test_knots_must_be_of_one_build():
    with pytest.raises(ValueError, match="same build"):
        HatFunctions([Affine(), nn.Conv2d(1, 1, 1)])
    with pytest.raises(
        ValueError, match=r"'weight' is \(2, 1, 3, 3\) in knot 2 and \(2, 1, 1, 1\) in knot 0; build all"
    ):
        HatFunctions([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 3)])
    with pytest.raises(ValueError, match=r"'bias' is absent in knot 1 and \(2,\) in knot 0"):
        HatFunctions([nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1, bias=False)])


@pytest.mark.parametrize("duration", [0.5, 1.0, 2.5, 3.0, 4.5])
def test_segments_cover_the_duration(duration):
    field = PiecewiseConstant(fields(3))
    parts = segments_of(field, duration)
    assert parts[0][1] == 0.0
    assert parts[-1][2] == duration
    assert all(end == start for (_, _, end), (_, start, _) in itertools.pairwise(parts))
    for part, start, end in parts:
        assert torch.equal(part(start, ONE), field(start, ONE))
        assert torch.equal(part(start, ONE), field((start + end) / 2, ONE))


@pytest.mark.parametrize("field", [Affine(), HatFunctions(fields(3))])
def test_what_is_smooth_is_one_segment(field):
    assert segments_of(field, 2.0) == [(field, 0.0, 2.0)]


REGRESSION = {"piecewise": 0.6020157875377936, "hat": 0.5355233855642457}


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_stays(kind):
    field = in_pieces(kind, 3, lambda: BasicField(channels=4, norm="none", activation="silu")).double()
    with torch.no_grad():
        for index, parameter in enumerate(field.parameters()):
            parameter.copy_(0.2 * torch.sin(index + torch.arange(parameter.numel())).reshape_as(parameter))
    h = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 4, 4, 4)
    out = ODEBlock(field=field, solver=FixedStep("rk4", steps=6))(h)
    assert float(out.detach().square().mean().sqrt()) == pytest.approx(REGRESSION[kind], rel=1e-9)


# --- duration ---

DURATIONS = [(22.0, 4), (3.0, 7), (8.0, 2), (1.0, 3), (2.7, 6), (0.1, 5), (math.pi, 11), (1e-3, 9), (1e6 / 3, 13)]


class Remembers(nn.Module):
    """Piece ``index``, which writes down that it was evaluated; dh/dt = 1."""

    def __init__(self, index, seen):
        super().__init__()
        self.index, self.seen = index, seen

    def forward(self, t, h):
        self.seen.append(self.index)
        return 1.0 + 0.0 * h


@pytest.mark.parametrize("gradient", ["backprop", "adjoint"])
@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize(("duration", "count"), DURATIONS)
def test_every_stage_sees_the_piece_of_its_step(duration, count, method, gradient):
    """Also in the backward solve of the adjoint, in reverse."""
    for per_piece in (1, 2, 3, 7):
        seen = []
        field = PiecewiseConstant([Remembers(k, seen) for k in range(count)], duration=duration)
        solver = FixedStep(method, steps=per_piece * count)
        h = ONE.clone().requires_grad_()
        out = ODEBlock(field=field, solver=solver, gradient=gradient)(h)
        expected = [k for k in range(count) for _ in range(per_piece * len(TABLEAUS[method].b))]
        assert seen == expected
        out.sum().backward()
        assert seen[len(expected) :] == (expected[::-1] if gradient == "adjoint" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("duration", "count"), DURATIONS)
def test_a_piece_starts_at_its_start_in_the_precision_of_the_time(duration, count, dtype):
    field = PiecewiseConstant(fields(count), duration=duration)
    starts = torch.tensor([start for _, start, _ in field.segments()], dtype=dtype)
    for k, start in enumerate(starts):
        assert field.index(start) == k
        assert field.index(torch.nextafter(start, -ONE.squeeze().to(dtype))) == max(k - 1, 0)
    assert field.index(torch.tensor(duration, dtype=dtype)) == count - 1


@pytest.mark.parametrize(("duration", "count"), DURATIONS)
def test_a_duration_stretches_time(duration, count):
    for container in (PiecewiseConstant, HatFunctions):
        plain, stretched = container(fields(count)), container(fields(count), duration=duration)
        assert duration_of(stretched) == ODEBlock(field=stretched).duration == duration
        for share in (0.0, 0.1, 0.33, 0.49, 0.77, 0.99, 1.0):
            torch.testing.assert_close(stretched(share * duration, ONE), plain(share * count, ONE))


def test_the_default_duration_changes_no_bit():
    """Time is the position among the pieces, and a step starts where k, a float, is k."""
    for count in range(1, 40):
        field, same = PiecewiseConstant(fields(count)), HatFunctions(fields(count))
        for t in torch.linspace(0, count, 97, dtype=torch.float64).tolist():
            assert field.index(t) == min(int(t), count - 1)
            left, weight = same.between(t)
            assert left + weight == t * (count - 1) / count
        assert [(start, end) for _, start, end in field.segments()] == [(float(k), k + 1.0) for k in range(count)]


@pytest.mark.parametrize(("duration", "count"), DURATIONS)
def test_adaptive_methods_are_run_piece_by_piece(duration, count):
    field = PiecewiseConstant(fields(count), duration=duration)
    parts = segments_of(field, duration)
    assert [part for part, _, _ in parts] == list(field.pieces)
    assert parts[-1][2] == duration
    assert all(end == start for (_, _, end), (_, start, _) in itertools.pairwise(parts))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_duration_can_be_built_and_shown(kind):
    field = in_pieces(kind, 2, Affine, duration=8)
    assert duration_of(field) == 8.0
    assert "duration=8" in repr(field)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duration", [0, -1.0, float("inf"), float("nan")])
def test_durations_out_of_range(kind, duration):
    with pytest.raises(ValueError, match=r"number above 0, not (0|-1\.0|inf|nan); leave it out for 2"):
        in_pieces(kind, 2, Affine, duration=duration)


# --- parts of a field ---


def test_parts_and_their_shares_of_the_weights_at_a_time():
    pieces = [nn.Identity() for _ in range(3)]
    piecewise, hats = PiecewiseConstant(pieces), HatFunctions(pieces)
    assert parts_of(piecewise) == parts_of(hats) == pieces
    assert [shares_at(piecewise, t) for t in (0.0, 0.5, 1.0, 2.5)] == [[(0, 1.0)], [(0, 1.0)], [(1, 1.0)], [(2, 1.0)]]
    assert [shares_at(hats, t) for t in (0.0, 0.75, 1.5, 3.0)] == [
        [(0, 1.0)],
        [(0, 0.5), (1, 0.5)],
        [(1, 1.0)],
        [(2, 1.0)],
    ]


def test_fields_are_alike_by_the_shapes_of_their_tensors():
    assert are_alike([nn.Linear(2, 3), nn.Linear(2, 3)])
    assert not are_alike([nn.Linear(2, 3), nn.Linear(3, 2)])
    assert not are_alike([nn.Linear(2, 3), nn.Linear(2, 3, bias=False)])


def test_a_blend_is_the_weighted_mean_and_leaves_its_parts_alone():
    fields = [nn.BatchNorm2d(2), nn.BatchNorm2d(2)]
    for value, field in zip((1.0, 5.0), fields, strict=True):
        field.weight.data.fill_(value)
        field.running_mean.fill_(value)
        field.num_batches_tracked.fill_(int(value))
    blend = blended(fields, [0.75, 0.25])
    assert blend.weight.tolist() == blend.running_mean.tolist() == [2.0, 2.0]
    assert int(blend.num_batches_tracked) == 1, "integers are those of the first"
    assert fields[0].weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("make", "count"), [(lambda f: f[0], 2), (PiecewiseConstant, 6), (HatFunctions, 5)])
def test_a_halved_field_has_the_same_weights_over_time(make, count):
    field = make([Affine(weight=k) for k in range(3)])
    duration = getattr(field, "duration", 2.0)
    twice, h = halved(field, duration), torch.ones(1)
    assert len(parts_of(twice)) == count
    assert twice.duration == duration
    for t in (0.0, 0.3, 1.0, 1.6):
        assert twice(t, h).item() == pytest.approx(field(t, h).item())
