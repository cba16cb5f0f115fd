"""Optimise a trained model for inference, and compare the optimised copy with the original."""

from __future__ import annotations

import copy
import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.difference import TINY, difference
from ode_detect.ode.gradients import Reversible, needs_gradient, scheme_for
from ode_detect.ode.names import check_name
from ode_detect.ode.pieces import PiecewiseConstant
from ode_detect.ode.solvers import FixedStep
from ode_detect.ode.tally import Tally, now

from .folding import Folding, fold_norms
from .packing import PackedBranch, PackedConv2d, can_pack, pack

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What folding and another order of summation may cost; a wrong fold is far above it.
_ROUNDING = 1e-4
_ROUNDS = 3


class OptimizationError(ValueError):
    """An optimised model that does not compute what the original does; the message says by how much."""


@dataclass(frozen=True)
class Optimization:
    """A report of what was done to a model for inference, and what it changed; ``str()`` is a summary.

    Attributes:
        precision: of the convolutions and matrix products, "float32" or "bfloat16".
        folded: number of normalisations folded into convolutions.
        kept: path -> reason, of the normalisations by constants that stay.
        packed: number of convolutions whose weights are laid out for oneDNN.
        compiled: whether torch.compile is used.
        errors: for each output, the norm of the difference from the original's divided by the norm of the original's.
        tolerance: the largest error that was allowed.
        milliseconds: median time of the example, of the original ("original") and of all variants that were tried.
        refused: variant -> reason, of those that were tried and not taken though they might be faster.
    """

    precision: str
    folded: int
    kept: dict[str, str]
    packed: int
    compiled: bool
    errors: dict[str, float]
    tolerance: float
    milliseconds: dict[str, float]
    refused: dict[str, str]

    def __str__(self) -> str:
        done = [f"{self.precision}, channels last", f"{self.folded} normalisations folded"]
        done += [f"{self.packed} convolutions packed"] if self.packed else []
        done += ["compiled"] if self.compiled else []
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in self.milliseconds.items())
        errors = ", ".join(f"{name} {value:.2g}" for name, value in self.errors.items())
        lines = ["; ".join(done), f"time: {times}", f"relative error: {errors} (allowed: {self.tolerance:g})"]
        lines += [f"not folded: {path} ({reason})" for path, reason in self.kept.items()]
        lines += [f"not taken: {variant} ({reason})" for variant, reason in self.refused.items()]
        return "\n".join(lines)


class Prepared(NamedTuple):
    """A model made ready in one precision, and what was folded."""

    model: nn.Module
    folding: Folding


class InferenceFlow(ODEBlock):
    """A flow that takes the steps of a residual network as such a network does: in one dtype, relu in place.

    Smaller steps than those of the network, and other methods, are taken as by `ODEBlock`: a state in bfloat16 would
    round small steps away.
    """

    @classmethod
    def from_block(cls, block: ODEBlock) -> InferenceFlow:
        """Return the flow of a block: its field, and so its weights, its solver, gradient, mode and hooks.

        Hooks that are registered on one of the two later are not on the other, and what records the block does not
        record the flow.
        """
        flow = cls.__new__(cls)
        state = block.__getstate__()
        flow.__setstate__(
            {name: copy.copy(value) if isinstance(value, dict) else value for name, value in state.items()}
        )
        return flow

    def _solve(self, h: Tensor, tally: Tally | None) -> Tensor:
        solver = self.solver
        if not isinstance(solver, FixedStep) or solver.steps > self.duration or needs_gradient(self.field, h):
            return super()._solve(h, tally)
        if (solver.method, solver.projection) != ("euler", "relu"):
            return super()._solve(h, tally)
        h = h.clone(memory_format=torch.channels_last)
        for start, end in solver.grid(self.duration):
            h = self._step(start, end - start, h, tally)
        if tally is not None:
            tally.steps(accepted=solver.steps)
        return h

    def _step(self, time: float, size: float, h: Tensor, tally: Tally | None) -> Tensor:
        """One step, written into ``h``."""
        piece = self.field.pieces[self.field.index(time)] if isinstance(self.field, PiecewiseConstant) else self.field
        count: Callable[[Any], Any] = tally.count if tally is not None else lambda evaluate: evaluate
        if isinstance(piece, PackedBranch) and piece.can_step(size):
            return count(piece.step)(size, h)
        return torch.relu_(h.add_(count(piece)(time, h), alpha=size))


def optimize_for_inference(
    model: nn.Module,
    example: Any = None,
    *,
    precision: str = "auto",
    tolerance: float = 0.01,
    compile: bool = False,
) -> tuple[nn.Module, Optimization]:
    """Make a copy of a model that computes the same, faster. For inference only.

    Normalisation by constants is folded into the convolutions (in flows piece by piece; hat functions are left alone),
    memory is channels last, weights are laid out for oneDNN on a CPU, and all is computed in bfloat16 if that is
    faster on this machine, as measured on the example. Input and output keep their dtypes. The solvers of flows can be
    set as before. The copy refuses training mode, has no gradients, and is not for saving: save the original.

    A detector of Detectron2 is more than its network: see `ode_detect.detection.optimize.optimize_detector`.

    Args:
        model: called with one argument. It is not changed.
        example: the argument: a tensor, or containers of tensors. None takes one random picture (1, C, 224, 224).
        precision: "float32", "bfloat16", or "auto": the faster one that is within the tolerance.
        tolerance: the largest relative error of an output, in the norm; for float32 at most 1e-4 is allowed.
        compile: try torch.compile too, and take it if it is faster. That takes minutes and needs a C++ compiler.

    Returns:
        The copy, and what was done.

    Raises:
        OptimizationError: the outputs differ by more than the tolerance.
        ValueError: an unknown precision, a tolerance out of range, or an example that is missing.
        RuntimeError: compilation was asked for, and there is no C++ compiler.
    """
    given = _picture_for(model) if example is None else example
    return select(
        model,
        prepare=lambda kind: _prepare_whole(model, kind, packed=True),
        outputs=lambda m: dict(named_tensors(m(given))),
        run=lambda m: m(given),
        precision=precision,
        tolerance=tolerance,
        compiled=(lambda kind: _compiled(_prepare_whole(model, kind, packed=False))) if compile else None,
    )


def select(
    model: nn.Module,
    *,
    prepare: Callable[[str], Prepared],
    outputs: Callable[[nn.Module], dict[str, Tensor]],
    run: Callable[[nn.Module], Any],
    precision: str,
    tolerance: float,
    compiled: Callable[[str], Prepared] | None = None,
) -> tuple[nn.Module, Optimization]:
    """Prepare a model in each precision that may be taken, compare, measure, and take the fastest.

    Args:
        model: the original.
        prepare: makes a copy ready in a precision.
        outputs: what is compared, by name, of the original and of a copy.
        run: what is timed.
        precision: as for `optimize_for_inference`.
        tolerance: as for `optimize_for_inference`.
        compiled: makes a compiled copy ready in a precision, to be tried as well.

    Raises:
        OptimizationError, ValueError: as `optimize_for_inference`.
    """
    check_name(precision, ("auto", *PRECISIONS), "precision")
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance is a relative error between 0 and 1, not {tolerance}; 0.01 is usual.")
    original = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = outputs(original)
        variants, errors, refused = {}, {}, {}
        for kind in PRECISIONS if precision == "auto" else (precision,):
            makers = {kind: prepare} | ({f"{kind} compiled": compiled} if compiled else {})
            for name, maker in makers.items():
                candidate = maker(kind)
                errors[name] = relative_errors(expected, outputs(candidate.model))
                limit = tolerance if kind != "float32" else min(tolerance, _ROUNDING)
                reason = _too_far(errors[name], limit)
                if reason and (kind != "bfloat16" or precision != "auto"):
                    raise OptimizationError(_mismatch(name, reason, limit, candidate.folding))
                if reason:
                    refused[name] = reason
                else:
                    variants[name] = candidate
        timed = {"original": original} | {name: candidate.model for name, candidate in variants.items()}
        milliseconds = _times(timed, run)
    best = min(variants, key=milliseconds.__getitem__)
    chosen, kind = variants[best], best.split()[0]
    return chosen.model, Optimization(
        precision=kind,
        folded=len(chosen.folding.folded),
        kept=chosen.folding.kept,
        packed=sum(isinstance(module, PackedConv2d) for module in chosen.model.modules()),
        compiled=best.endswith("compiled"),
        errors=errors[best],
        tolerance=tolerance if kind != "float32" else min(tolerance, _ROUNDING),
        milliseconds=milliseconds,
        refused=refused,
    )


def copy_for_inference(model: nn.Module) -> Prepared:
    """A copy in evaluation mode, without gradients, with its normalisations folded, that refuses training mode."""
    clone = _with_inference_flows(model).eval().requires_grad_(False)
    folding = fold_norms(clone)
    clone.register_forward_pre_hook(_refuse_training)
    return Prepared(clone, folding)


def _with_inference_flows(model: nn.Module) -> nn.Module:
    """A copy of a model in which every block that solves by the scheme of its solver is an `InferenceFlow`."""
    copies: dict[int, Any] = {}
    # The innermost first: a copy of a block holds the flows that its field has.
    for block in reversed([module for module in model.modules() if isinstance(module, ODEBlock)]):
        clone = copy.deepcopy(block, copies)
        clone.gradient = scheme_for(block.gradient)
        if not isinstance(clone.gradient, Reversible):  # which is a scheme of its own, with other outputs
            # Wherever the model refers to the block, its copy refers to the flow.
            copies[id(block)] = InferenceFlow.from_block(clone)
    return copy.deepcopy(model, copies)


def is_optimized(model: nn.Module) -> bool:
    """Whether a model, or a part of it, was made by `copy_for_inference`."""
    return any(hook is _refuse_training for m in model.modules() for hook in m._forward_pre_hooks.values())


def compute_in(module: nn.Module, precision: str, *, packed: bool = True) -> None:
    """Lay out a network for a precision, in place: dtype, channels last, packed weights where there is oneDNN."""
    module.to(dtype=PRECISIONS[precision]).to(memory_format=torch.channels_last)
    on_cpu = all(tensor.device.type == "cpu" for tensor in module.parameters())
    # In float32 the packed layout was the slower one: a ResNet-101 took 1.6 times as long as channels last alone.
    if packed and precision == "bfloat16" and on_cpu and can_pack():
        pack(module)


def take_and_give(module: nn.Module, *, takes: torch.dtype, gives: torch.dtype | None) -> None:
    """Convert what a module is called with and what it returns; None returns what it computed."""
    module.register_forward_pre_hook(_Cast(takes).before)
    if gives is not None:
        module.register_forward_hook(_Cast(gives).after)


def named_tensors(value: Any, name: str = "output", *, floating: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors in nested containers, or all tensors, each with a name."""
    if isinstance(value, Tensor) and (value.is_floating_point() or not floating):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from named_tensors(item, str(key) if name == "output" else f"{name}.{key}", floating=floating)


def relative_errors(expected: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, float]:
    """For each tensor, the norm of the difference divided by the norm of what was expected."""
    if not expected:
        raise ValueError("outputs are compared, and the model returns no tensors; give an example for which it does.")
    return {name: difference([wanted], [given[name]]).relative_norm(TINY) for name, wanted in expected.items()}


class _Cast:
    """Hooks that convert floating-point tensors to a dtype, and pictures to channels last."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tree_map(self._cast, args)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return tree_map(self._cast, output)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.to(self.dtype, memory_format=torch.channels_last) if value.dim() == 4 else value.to(self.dtype)


def _prepare_whole(model: nn.Module, precision: str, *, packed: bool) -> Prepared:
    prepared = copy_for_inference(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    compute_in(prepared.model, precision, packed=packed)
    take_and_give(prepared.model, takes=PRECISIONS[precision], gives=dtype)
    return prepared


def _compiled(prepared: Prepared) -> Prepared:
    require_compiler(prepared.model)
    prepared.model.compile()
    return prepared


def require_compiler(model: nn.Module) -> None:
    """Raise a RuntimeError if torch.compile cannot work for a model on the CPU."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in model.parameters())
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl")
    if on_cpu and not any(shutil.which(name) for name in names if name):
        raise RuntimeError(
            "torch.compile on a CPU needs a C++ compiler, and none of c++, g++, clang++ is there; install one or name "
            "it in CXX, or leave compile=False."
        )


def _refuse_training(module: nn.Module, args: Any) -> None:
    if module.training:
        raise RuntimeError(
            "a model that was optimised for inference cannot be trained: its normalisations are folded and its weights "
            "are constants; call eval(), and train the original."
        )


def _picture_for(model: nn.Module) -> Tensor:
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        raise ValueError("a model is compared on an example, and no convolution tells how one looks; give an example.")
    generator = torch.Generator().manual_seed(0)
    channels = conv.in_channels
    return torch.randn(1, channels, 224, 224, generator=generator).to(conv.weight.device, conv.weight.dtype)


def _too_far(errors: dict[str, float], limit: float) -> str:
    name, worst = max(errors.items(), key=lambda item: item[1] if item[1] == item[1] else float("inf"))
    return "" if worst <= limit else f"{name} differs by {worst:.2g} of its norm"


def _mismatch(variant: str, reason: str, limit: float, folding: Folding) -> str:
    cure = (
        "allow more by tolerance, or use precision='float32'"
        if variant.startswith("bfloat16")
        else "a normalisation may not follow the convolution declared before it; the model cannot be optimised as it is"
    )
    return (
        f"an optimised model must compute what the original does within {limit:g}, and in {variant} {reason} "
        f"({len(folding.folded)} normalisations folded); {cure}."
    )


def _times(models: dict[str, nn.Module], run: Callable[[nn.Module], Any]) -> dict[str, float]:
    """Median milliseconds, the models taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(_ROUNDS):
        for name, model in models.items():
            began = now(device)
            run(model)
            taken[name].append((now(device) - began) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}
