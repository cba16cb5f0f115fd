import copy
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ode_detect
from ode_detect.ode import (
    Adaptive,
    Auto,
    Backprop,
    BasicField,
    Checkpoint,
    FixedStep,
    NonFiniteStateError,
    ODEBlock,
    PiecewiseConstant,
    Reversible,
    adaptive_methods,
    in_pieces,
)
from ode_detect.ode.fields import FIELDS
from ode_detect.ode.gradients import GRADIENTS
from ode_detect.ode.pieces import PIECES
from ode_detect.ode.solvers import TABLEAUS

SOLVERS = [*(FixedStep(method, steps=2) for method in TABLEAUS), Adaptive(rtol=0.2, atol=0.2), Adaptive("rk4", steps=1)]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{s.method}")
WAYS = [*GRADIENTS, Checkpoint(states=1), Auto(memory_budget=10**6)]
every_way = pytest.mark.parametrize(
    ("solver", "gradient"),
    [(s, g) for s in SOLVERS for g in WAYS if isinstance(s, FixedStep) or g in ("backprop", "checkpoint", "adjoint")],
    ids=str,
)


@pytest.fixture
def build(lively):
    def make(pieces="constant", count=2, channels=4, norm="GN", **arguments):
        count = 1 if pieces == "constant" else count
        field = lively(in_pieces(pieces, count, lambda: BasicField(channels=channels, norm=norm)))
        return ODEBlock(field=field, **arguments)

    return make


# --- contract ---


@every_way
def test_shape_dtype_and_layout(gradient, solver, build):
    block = build(solver=solver, gradient=gradient).to(memory_format=torch.channels_last)
    inputs = [
        torch.randn(1, 4, 3, 9),
        torch.randn(2, 4, 7, 5).to(memory_format=torch.channels_last),
    ]
    for x in inputs:
        h = x.detach().requires_grad_()
        out = block(h)
        assert (out.shape, out.dtype, out.device, out.stride()) == (h.shape, h.dtype, h.device, h.stride())
        out.sum().backward()
        assert (h.grad.shape, h.grad.stride()) == (h.shape, h.stride())


@every_solver
def test_inputs_of_every_layout_give_the_same(solver, build):
    block, x = build(solver=solver), torch.randn(2, 4, 6, 6)
    expected = block(x)
    sliced = torch.zeros(2, 8, 6, 12)[:, ::2, :, ::2].copy_(x)
    for h in (sliced, x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), x.to(memory_format=torch.channels_last)):
        assert not h.is_contiguous()
        torch.testing.assert_close(block(h), expected, rtol=1e-3, atol=1e-4)


@every_way
def test_an_empty_batch(gradient, solver, build):
    h = torch.empty(0, 4, 5, 5, requires_grad=True)
    out = build("piecewise", solver=solver, gradient=gradient)(h)
    assert out.shape == h.shape
    out.sum().backward()
    assert h.grad.shape == h.shape


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_autocast(dtype, gradient, solver, build):
    block = build("piecewise", solver=solver, gradient=gradient)
    h = torch.randn(1, 4, 3, 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(h)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    for tensor in (h, *block.parameters()):
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    torch.testing.assert_close(out.detach().float(), block(h.detach().float()).detach(), rtol=0.1, atol=0.25)


def test_a_field_of_higher_precision_does_not_change_the_dtype():
    class Field(nn.Module):
        def forward(self, t, h):
            return h.float()

    assert ODEBlock(field=Field())(torch.ones(1, 1, 2, 2).bfloat16()).dtype == torch.bfloat16


# --- Euler steps are residual blocks ---


def blocks_by_hand(fields, h, projection):
    """A run of residual blocks conv, norm, relu, conv, norm, plus the shortcut."""
    for field in fields:
        branch = F.conv2d(h, field.conv1.weight, field.conv1.bias, padding=1)
        branch = F.group_norm(branch, field.conv1.norm.num_groups, field.conv1.norm.weight, field.conv1.norm.bias)
        branch = F.conv2d(F.relu(branch), field.conv2.weight, field.conv2.bias, padding=1)
        branch = F.group_norm(branch, field.conv2.norm.num_groups, field.conv2.norm.weight, field.conv2.norm.bias)
        h = h + branch
        h = F.relu(h) if projection == "relu" else h
    return h


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", Checkpoint(every=2), Checkpoint(states=2)], ids=str)
@pytest.mark.parametrize("projection", ["none", "relu"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("autocast", [False, True])
def test_euler_over_n_pieces_is_n_residual_blocks_bit_for_bit(autocast, count, projection, gradient, build):
    solver = FixedStep("euler", steps=count, projection=projection)
    block = build("piecewise", count=count, solver=solver, gradient=gradient)
    x = torch.randn(2, 4, 7, 5)
    results = []
    for run in (block, lambda h: blocks_by_hand(block.field.pieces, h, projection)):
        block.zero_grad()
        h = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = run(h)
        out.square().mean().backward()
        results.append([out.detach(), h.grad, *(p.grad.clone() for p in block.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    block.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(block(x), blocks_by_hand(block.field.pieces, x, projection))


# --- the dial ---


def test_the_dial_turns_after_construction(smooth_conv):
    block, h = ODEBlock(field=smooth_conv(3)), torch.randn(1, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        block.solver = Adaptive("dopri8", rtol=1e-10, atol=1e-10)
        exact = block(h)
        errors = {}
        for method, steps in itertools.product(TABLEAUS, (2, 4, 8)):
            block.solver = FixedStep(method, steps=steps)
            errors[method, steps] = float((block(h) - exact).abs().max())
    for method in TABLEAUS:
        for steps in (4, 8):
            assert errors[method, steps] < errors[method, steps // 2] / 1.5
    assert errors["rk4", 8] < errors["midpoint", 8] < errors["euler", 8]


def test_solver_and_gradient_are_no_part_of_the_weights(build):
    block, h = build("piecewise", solver=FixedStep("rk4", steps=4)), torch.randn(1, 4, 5, 5)
    other = build("piecewise", solver=Adaptive(), gradient="adjoint")
    assert all(key.startswith("field.pieces.") for key in block.state_dict())
    other.load_state_dict(block.state_dict())
    other.solver, other.gradient = block.solver, Backprop()
    assert torch.equal(block(h), other(h))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("pieces", PIECES)
def test_a_block_can_be_copied(pieces, clone, build):
    block, h = build(pieces, solver=FixedStep("heun", steps=4), gradient="checkpoint"), torch.randn(1, 4, 5, 5)
    assert torch.equal(clone(block)(h), block(h))


def batch_mates(solver, smooth_conv):
    """A picture alone, and the same picture beside one that is harder to solve."""
    block = ODEBlock(field=smooth_conv(3), solver=solver, duration=2.0)
    picture = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        return block(picture), block(torch.cat([picture, 50 * torch.randn_like(picture)]))[:1]


@pytest.mark.parametrize("method", TABLEAUS)
def test_a_prediction_does_not_depend_on_the_other_pictures_in_its_batch(method, smooth_conv):
    alone, beside = batch_mates(FixedStep(method, steps=8), smooth_conv)
    torch.testing.assert_close(beside, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="one step size, chosen for the worst, serves the whole batch"
)
def test_a_prediction_of_an_adaptive_solve_does_not_depend_on_the_other_pictures(smooth_conv):
    alone, beside = batch_mates(Adaptive("dopri5"), smooth_conv)
    torch.testing.assert_close(beside, alone, rtol=1e-12, atol=1e-12)


# --- refusals ---


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.BatchNorm2d(4), "batch statistics, and BatchNorm2d at '0.0' does.*norm='GN'"),
        (lambda: nn.SyncBatchNorm(4), "batch statistics, and SyncBatchNorm at '0.0' does"),
        (lambda: nn.Dropout(0.1), "Dropout at '0.0' draws a new mask.*outside the flow"),
        (lambda: nn.Dropout2d(0.1), "Dropout2d at '0.0' draws a new mask"),
        (lambda: nn.AlphaDropout(0.1), "AlphaDropout at '0.0' draws a new mask"),
    ],
)
def test_a_field_that_is_no_function_is_refused_unless_insisted(layer, words):
    class Field(nn.Sequential):
        def forward(self, t, h):
            return super().forward(h)

    field = Field(nn.Sequential(layer(), nn.Conv2d(4, 4, 1)))
    with pytest.raises(ValueError, match=words + ".*allow_stateful_field=True"):
        ODEBlock(field=field)
    if not isinstance(field[0][0], nn.SyncBatchNorm):
        assert ODEBlock(field=field, allow_stateful_field=True)(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_batch_norm_as_the_whole_field_and_idle_dropout():
    with pytest.raises(ValueError, match="and BatchNorm2d does"):
        ODEBlock(field=nn.BatchNorm2d(4))
    ODEBlock(field=nn.Dropout(0.0))


@pytest.mark.parametrize("duration", [0, -1.0, float("inf"), float("nan")])
def test_durations_out_of_range(duration):
    with pytest.raises(ValueError, match="duration of a flow must be a number above 0"):
        ODEBlock(field=nn.Identity(), duration=duration)
    block = ODEBlock(field=nn.Identity(), duration=2)
    with pytest.raises(ValueError, match="duration of a flow must be a number above 0"):
        block.duration = duration
    assert block.duration == 2.0


def test_what_is_set_later_is_checked_as_in_the_constructor():
    block = ODEBlock(field=BasicField(channels=4))
    with pytest.raises(TypeError, match="try FixedStep"):
        block.solver = "rk4"
    with pytest.raises(ValueError, match="Did you mean 'checkpoint'"):
        block.gradient = "chekpoint"
    block.gradient = "checkpoint"
    assert block.gradient == Checkpoint()


class WithoutTime(nn.Module):
    def forward(self, h):
        return h


@every_way
def test_a_field_without_time_and_a_state_of_other_channels_are_named(gradient, solver):
    h = torch.randn(2, 6, 4, 4, requires_grad=True)
    with pytest.raises(TypeError, match=r"called as field\(t, h\), .* WithoutTime of 'res4' cannot be"):
        ODEBlock(field=WithoutTime(), solver=solver, gradient=gradient, name="res4")(h)
    for field in FIELDS.values():
        with pytest.raises(
            ValueError, match=r"field of 'res4' takes states of other channels than the 6 .*\(2, 6, 4, 4\)"
        ):
            ODEBlock(field=field(channels=4), solver=solver, gradient=gradient, name="res4")(h)


def test_a_mistake_inside_of_a_field_stays_as_it_is():
    class Broken(nn.Module):
        def forward(self, t, h):
            return h + None

    with pytest.raises(TypeError, match="unsupported operand"):
        ODEBlock(field=Broken())(torch.randn(2, 4, 4, 4))


@pytest.mark.parametrize("solver", ["rk4", FixedStep, 4])
def test_a_solver_is_a_value(solver):
    with pytest.raises(TypeError, match=r"a FixedStep or an Adaptive, not .*try FixedStep"):
        ODEBlock(field=nn.Identity(), solver=solver)


def test_arguments_are_named():
    with pytest.raises(TypeError, match="positional"):
        ODEBlock(nn.Identity())


def test_what_is_printed():
    block = ODEBlock(field=nn.Identity(), solver=FixedStep("rk4", steps=3), gradient="checkpoint", duration=2)
    for part in ("method='rk4', steps=3", "Checkpoint(", "duration=2"):
        assert part in repr(block)


# --- values that are not finite ---


class Explosion(nn.Module):
    """Each Euler step of length 1 / 10 multiplies h by 1e10: float32 ends in the fourth."""

    def forward(self, t, h):
        return 1e11 * h


@pytest.mark.parametrize("gradient", [g for g in WAYS if g != "reversible"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_euler_says_where_it_blew_up(dtype, gradient):
    block = ODEBlock(field=Explosion(), solver=FixedStep("euler", steps=10), gradient=gradient, name="backbone.res4")
    with pytest.raises(NonFiniteStateError) as caught:
        block(torch.ones(1, 1, 2, 2, dtype=dtype))
    error = caught.value
    assert (error.block, error.step, error.evaluations) == ("backbone.res4", "step 4 of 10", 4)
    assert error.time == pytest.approx(0.4)
    assert "at time 0.4, step 4 of 10, after 4 evaluations. Check the input for NaN first" in str(error)


def test_a_solve_again_is_the_solve_that_failed():
    """Steps of 1e-4 from 1 vanish in float16, but not in the float32 of the state."""

    class Late(nn.Module):
        def forward(self, t, h):
            return torch.where(h > 1.5, float("nan"), 1.0).to(h.dtype)

    block = ODEBlock(field=Late(), solver=FixedStep("euler", steps=10_000))
    with pytest.raises(NonFiniteStateError, match=r"at time 0\.50"):
        block(torch.ones(1, 1, 1, 1, dtype=torch.float16))


@pytest.mark.parametrize("keep", [True, False])
def test_a_reversible_solve_says_where_it_blew_up(keep):
    """Its pair is in float64: the ratio of 1e10 a step overflows when it is put into the float32 of the field."""
    solver = FixedStep("euler", steps=10)
    block = ODEBlock(field=Explosion(), solver=solver, gradient=Reversible(keep=keep), name="backbone.res4")
    with pytest.raises(NonFiniteStateError) as caught:
        block(torch.ones(1, 1, 2, 2))
    # y = 1e10 after step 1, z = 1e20, y = 1e30 after step 2, z = 1e40 is infinite in float32, and so is y of step 3.
    assert (caught.value.step, caught.value.evaluations) == ("step 3 of 10", 5)
    # What fits the pair (4.8e38), but not the result, is known at the end.
    block.solver, block.duration = FixedStep("euler", steps=2), 4.0
    with pytest.raises(NonFiniteStateError, match="step 2 of 2, after 3 evaluations"):
        block(torch.full((1, 1, 2, 2), 6e4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", TABLEAUS)
def test_an_input_that_is_not_finite(method, value):
    h = torch.ones(1, 1, 2, 2)
    h[0, 0, 1, 1] = value
    with pytest.raises(NonFiniteStateError, match="at time 0, the input, after 0 evaluations"):
        ODEBlock(field=nn.Module(), solver=FixedStep(method, steps=3))._checked(h, h)
    with pytest.raises(NonFiniteStateError, match="the input"):
        ODEBlock(field=Explosion(), solver=FixedStep(method, steps=3))(h)


def test_the_check_can_be_left_out():
    block = ODEBlock(field=Explosion(), solver=FixedStep("euler", steps=10), check_finite=False)
    assert not block(torch.ones(1, 1, 2, 2)).isfinite().any()


def test_large_values_are_finite():
    """A sum that overflows is not a state that does."""
    block = ODEBlock(field=nn.Module())
    h = torch.full((1, 1, 2, 2), 3e38)
    assert block._checked(h, h) is h


# --- torch.compile ---


class Gain(nn.Module):
    """A field of few operations, since compilers take their time over many."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 1, 1))

    def forward(self, t, h):
        return self.weight * h


def compiled_equals_eager(block, h, backend, **tolerances):
    torch._dynamo.reset()
    parameters = list(block.parameters())
    results = []
    for run in (block, torch.compile(block, fullgraph=True, backend=backend)):
        state = h.clone().requires_grad_()
        out = run(state)
        results.append([out, *torch.autograd.grad(out.square().sum(), (state, *parameters), materialize_grads=True)])
    torch.testing.assert_close(*results, **tolerances)


@pytest.mark.parametrize(
    ("gradient", "pieces", "method"),
    [
        *itertools.product(("backprop", "checkpoint"), PIECES, TABLEAUS),
        *itertools.product((Checkpoint(every=2), Reversible(keep=True)), ("piecewise",), ("heun",)),
    ],
    ids=str,
)
def test_one_graph_under_torch_compile(method, pieces, gradient):
    field = in_pieces(pieces, 1 if pieces == "constant" else 2, Gain)
    projection = "none" if isinstance(gradient, Reversible) else "relu"
    block = ODEBlock(field=field, solver=FixedStep(method, steps=2, projection=projection), gradient=gradient)
    compiled_equals_eager(block, torch.randn(1, 2, 2, 2), "aot_eager", rtol=0, atol=0)


# torch's own compiler, which asks a tensor that it is given after the break for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("gradient", [Checkpoint(states=2), Reversible(), Auto(memory_budget=100)], ids=str)
def test_what_compilers_do_not_follow_runs_beside_them(gradient):
    """The solve breaks the graph: it trains, but not as one graph."""
    block, h = ODEBlock(field=Gain(), solver=FixedStep("heun", steps=4), gradient=gradient), torch.randn(1, 2, 2, 2)
    expected = torch.autograd.grad(block(h).square().sum(), block.field.weight)
    torch._dynamo.reset()
    found = torch.autograd.grad(torch.compile(block, backend="aot_eager")(h).square().sum(), block.field.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gradient", [g for g in WAYS if g != "adjoint"], ids=str)
def test_one_graph_for_evaluation(gradient):
    block = ODEBlock(field=Gain(), solver=FixedStep("heun", steps=3), gradient=gradient).eval()
    h = torch.randn(1, 2, 2, 2)
    torch._dynamo.reset()
    with torch.no_grad():
        exported = torch.export.export(block, (h,)).module()
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert torch.equal(exported(h), block(h))
        assert torch.equal(compiled(h), block(h))


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_under_torch_compile(name, lively):
    block = ODEBlock(field=lively(FIELDS[name](channels=4)), gradient="checkpoint")
    compiled_equals_eager(block, torch.randn(1, 4, 3, 3), "aot_eager", rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
# torch's own inductor, at import: nothing of ours is old.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_inductor(build):
    block = build("piecewise", solver=FixedStep("midpoint", steps=2), gradient="checkpoint")
    compiled_equals_eager(block, torch.randn(1, 4, 4, 4), "inductor", rtol=1e-4, atol=1e-4)


# --- the package alone ---


def test_ode_imports_without_detectron2_and_torchvision():
    program = """
        import importlib.abc, sys

        class Blocker(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {"detectron2", "torchvision", "fvcore", "iopath", "cv2"}:
                    raise ImportError(f"{name} is blocked")

        sys.meta_path.insert(0, Blocker())
        import torch
        from ode_detect.ode import Adaptive, BasicField, ODEBlock, record_solves

        block = ODEBlock(field=BasicField(channels=4), solver=Adaptive(), gradient="adjoint")
        with record_solves(block) as record:
            block(torch.randn(1, 4, 5, 5)).sum().backward()
        assert record.total.solves == 1
        assert not {"detectron2", "torchvision", "fvcore"} & {name.split(".")[0] for name in sys.modules}
    """
    root = Path(ode_detect.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", adaptive_methods())
def test_a_seeded_walk_over_solvers_keeps_its_promises(method):
    """Random sizes, pieces and tolerances: the identity stays (nearly) the identity, whatever solves it."""
    generator = torch.Generator().manual_seed(len(method))
    for _ in range(2):
        n, h, w, count = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(4))
        field = PiecewiseConstant([BasicField(channels=2, norm="none") for _ in range(count)])
        block = ODEBlock(field=field, solver=Adaptive(method, steps=count))
        x = torch.randn(n, 2, h, w, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(block(x), x, rtol=1e-5, atol=1e-5)


class Turning(nn.Module):
    """dh/dt = i h: the state turns, h(1) = exp(i) h(0)."""

    def forward(self, t, h):
        return 1j * h


class Twisted(nn.Module):
    """A complex field with a real weight, not holomorphic."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    def forward(self, t, h):
        return 1j * self.weight * h + 0.1 * h.conj() * h.abs()


COMPLEX = [FixedStep("rk4", steps=10), Adaptive(rtol=1e-9, atol=1e-9), Adaptive("rk4", steps=10)]
every_complex_way = pytest.mark.parametrize(
    ("solver", "gradient"),
    [(s, g) for s in COMPLEX for g in WAYS if isinstance(s, FixedStep) or g in ("backprop", "checkpoint", "adjoint")],
    ids=str,
)


@every_complex_way
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_state(dtype, gradient, solver):
    block = ODEBlock(field=Turning(), solver=solver, gradient=gradient)
    h = torch.full((1, 1, 2, 1), 2.0, dtype=dtype, requires_grad=True)
    out = block(h)
    assert out.dtype == dtype
    exact = 2 * torch.exp(torch.tensor(1j, dtype=dtype))
    torch.testing.assert_close(out, exact.expand_as(out), rtol=0, atol=1e-4)
    out.real.sum().backward()
    torch.testing.assert_close(h.grad, (exact / 2).conj().resolve_conj().expand_as(h), rtol=0, atol=1e-4)


@every_complex_way
def test_gradients_of_a_complex_state(gradient, solver):
    results = []
    for way in (gradient, "backprop"):
        block = ODEBlock(field=Twisted(), solver=solver if way == gradient else COMPLEX[0], gradient=way)
        h = (torch.arange(8).reshape(1, 2, 2, 2) * (0.1 - 0.2j)).to(torch.complex128).requires_grad_()
        block(h).abs().square().sum().backward()
        results.append([h.grad, block.field.weight.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", COMPLEX, ids=str)
def test_an_imaginary_part_that_is_not_finite(solver):
    h = torch.complex(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), float("nan")))
    with pytest.raises(NonFiniteStateError):
        ODEBlock(field=Turning(), solver=solver)(h)


def test_complex_weights_and_the_adjoint():
    field = nn.Module()
    field.weight = nn.Parameter(torch.tensor(0.5 + 0.5j))
    field.forward = lambda t, h: field.weight * h
    with pytest.raises(ValueError, match="complex weights; use gradient='checkpoint'"):
        ODEBlock(field=field, gradient="adjoint")(torch.ones(1, 1, 2, 2, dtype=torch.complex64))


@every_way
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_a_state_of_integers_is_refused(dtype, gradient, solver, build):
    with pytest.raises(ValueError, match=rf"'ODEBlock' was given {dtype}.*h\.float\(\)"):
        build(solver=solver, gradient=gradient)(torch.ones(1, 4, 3, 3, dtype=dtype))


@pytest.mark.parametrize(
    "gradient", [Backprop(), Checkpoint(), Checkpoint(every=8), Checkpoint(states=3), Reversible()], ids=str
)
def test_weight_gradients_of_many_steps_under_autocast(gradient, lively):
    """Summed in bfloat16, as autocast's cache would, they were 10 % off."""
    block = ODEBlock(field=lively(BasicField(channels=8), 0.1), solver=FixedStep(steps=256), gradient=gradient)
    h, by_out = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 8, 8)
    found = []
    for autocast in (True, False):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = block(h)
        (out * by_out).sum().backward()
        found.append([block.field.conv1.weight.grad, block.field.conv2.weight.grad])
    for ours, exact in zip(*found, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 0.015


@pytest.mark.parametrize(
    ("attribute", "value", "error", "message"),
    [
        ("duration", -1, ValueError, "a number above 0, not -1"),
        ("duration", float("nan"), ValueError, "a number above 0, not nan"),
        ("solver", "rk4", TypeError, "a FixedStep or an Adaptive, not 'rk4'"),
        ("gradient", "adjiont", ValueError, "unknown gradient 'adjiont'.*'adjoint'"),
        ("gradient", None, ValueError, "unknown gradient None"),
        ("field", nn.BatchNorm2d(4), ValueError, "must not depend on batch statistics"),
    ],
)
def test_what_is_set_after_construction_is_checked_too(attribute, value, error, message, build):
    block = build()
    before = getattr(block, attribute)
    with pytest.raises(error, match=message):
        setattr(block, attribute, value)
    assert getattr(block, attribute) is before


def test_what_may_be_set_after_construction(build):
    block = build("piecewise")
    block.gradient, block.duration, block.solver = "checkpoint", 3, FixedStep("rk4", steps=2)
    assert (block.gradient, block.duration) == (Checkpoint(), 3.0)
    block.field = BasicField(channels=4)
    insisted = ODEBlock(field=nn.BatchNorm2d(4), allow_stateful_field=True)
    insisted.field = nn.BatchNorm2d(4)
    for lasting in (build("piecewise").field, build("hat").field):
        with pytest.raises(ValueError, match="must be a number above 0, not 0"):
            lasting.duration = 0


class Wider(nn.Module):
    def forward(self, t, h):
        return torch.cat([h, h], 2)


@pytest.mark.parametrize("solver", [FixedStep(), Adaptive()], ids=str)
def test_a_slope_of_another_shape_or_kind_is_told_in_words(solver):
    for field in (Wider(), Turning()):
        with pytest.raises(ValueError, match=r"the field of 'ODEBlock' must return dh/dt in the shape of"):
            ODEBlock(field=field, solver=solver)(torch.ones(1, 2, 1, 3))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_scripting_a_block_alone_says_what_to_take_instead():
    block = ODEBlock(field=BasicField(channels=4), solver=FixedStep("rk4", steps=2), name="res4").eval()
    with pytest.raises(TypeError, match=r"has the flow 'res4', .* Write it by export_model"):
        torch.jit.script(nn.Sequential(block))
