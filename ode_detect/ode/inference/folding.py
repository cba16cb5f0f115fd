"""Folding a frozen normalisation into the convolution before it, which then computes both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ode_detect.ode.pieces import HatFunctions

# By name: Detectron2's, torchvision's and ours are three classes of one build, and ode imports neither library.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
# timm's, which apply an activation too.
_WITH_ACTIVATION = ("BatchNormAct2d", "FrozenBatchNormAct2d")


@dataclass(frozen=True)
class Folding:
    """The normalisations that were folded, and those that were not.

    Attributes:
        folded: paths of the normalisations that were folded, and are no longer there.
        kept: path -> reason, of the normalisations by constants that stay.
    """

    folded: tuple[str, ...]
    kept: dict[str, str]


def fold_norms(model: nn.Module) -> Folding:
    """Fold normalisation by constants into the convolutions before it, in place.

    Folded are frozen BatchNorm and, since the model is for evaluation, BatchNorm with running statistics: where a
    convolution holds it as its ``norm`` (Detectron2, our fields), and where it is declared right after a convolution of
    as many channels (torchvision, timm, CIFAR). Weights are folded in float64, and rounded once.

    That a layer which is declared after another is applied after it is a habit, not a law: compare the outputs, as
    `optimize_for_inference` does.

    Args:
        model: in evaluation mode; changed.
    """
    folded: list[str] = []
    kept: dict[str, str] = {}
    _fold_within(model, "", folded, kept)
    return Folding(tuple(folded), kept)


def is_constant(norm: object) -> bool:
    """Whether a layer normalises by constants when it is evaluated."""
    if not isinstance(norm, nn.Module) or getattr(norm, "running_mean", None) is None:
        return False
    return isinstance(norm, _BatchNorm) or type(norm).__name__ in _FROZEN


def _fold_within(parent: nn.Module, path: str, folded: list[str], kept: dict[str, str]) -> None:
    if isinstance(parent, HatFunctions) and len(parent.knots) > 1:
        reason = "in hat functions, which blend weights and statistics: a blend of products is no product of blends"
        kept |= {f"{path}{name}": reason for name, module in parent.named_modules() if is_constant(module)}
        return
    if isinstance(parent, nn.Conv2d) and is_constant(getattr(parent, "norm", None)):
        _fold(parent, parent, "norm")
        folded.append(f"{path}norm")
    before: nn.Module | None = None
    for name, child in parent.named_children():
        if is_constant(child) and isinstance(before, nn.Conv2d) and _fits(before, child):
            _fold(before, parent, name)
            folded.append(f"{path}{name}")
        elif is_constant(child):
            kept[f"{path}{name}"] = "no convolution is declared right before it"
        else:
            _fold_within(child, f"{path}{name}.", folded, kept)
        before = child


def _fits(conv: nn.Conv2d, norm: nn.Module) -> bool:
    # A convolution that normalises or activates by itself does so before the next layer.
    alone = getattr(conv, "activation", None) is None and isinstance(getattr(conv, "norm", None), nn.Identity | None)
    statistics = norm.running_mean
    plain = "weight" in conv._parameters and not conv._forward_hooks
    return alone and plain and isinstance(statistics, Tensor) and len(statistics) == conv.out_channels


@torch.no_grad()
def _fold(conv: nn.Conv2d, parent: nn.Module, name: str) -> None:
    norm = getattr(parent, name)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter((conv.weight.double() * scale.reshape(-1, 1, 1, 1)).to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=False)
    after = nn.Sequential(norm.drop, norm.act) if type(norm).__name__ in _WITH_ACTIVATION else nn.Identity()
    setattr(parent, name, after.eval())
