"""Convolutions for inference on a CPU: weights laid out for oneDNN once instead of at each call, with their relu.

The operators are those that torch.compile puts into its graphs, called without a graph, so that nothing is compiled
and flows can still be solved in another way.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from .fields import BasicField, BottleneckField, _Conv
from .pieces import HatFunctions
from .residual import RELU, ResidualBranch


def can_pack() -> bool:
    """Whether this PyTorch has oneDNN and its operators."""
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


class PackedConv2d(nn.Module):
    """A convolution with constant weights, and relu after it if asked for. Without gradients, on a CPU only.

    Args:
        conv: the convolution, zero-padded, of the dtype in which it is to be computed; it is not changed.
        relu: whether relu is applied.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.geometry = (list(map(int, conv.padding)), list(conv.stride), list(conv.dilation), conv.groups)
        # Not parameters: their layout is oneDNN's own, and no state dict is made of it.
        self.weight = self._laid_out(conv.weight.detach())
        self.bias = None if conv.bias is None else conv.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), as `torch.nn.Conv2d`; channels last."""
        attribute = "relu" if self.relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, attribute, [], "")

    def extra_repr(self) -> str:
        """Shape of the weights."""
        return f"{tuple(self.weight.shape)}, relu={self.relu}"

    def __getstate__(self) -> dict[str, Any]:
        # A tensor in oneDNN's layout has no storage that could be copied or saved.
        return {**self.__dict__, "weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight = self._laid_out(self.weight)

    def _laid_out(self, weight: Tensor) -> Tensor:
        weight = weight.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry)


def pack(model: nn.Module) -> None:
    """Replace the convolutions of a model by packed ones, in place; in fields and residual branches with their relu.

    Left as they are: convolutions that still have a normalisation of their own, that pad with other than zeros, that
    are of an unknown class, and those in hat functions, which blend weights.

    Args:
        model: on the CPU, in the dtype in which it is to be computed; changed.
    """
    if isinstance(model, HatFunctions) and len(model.knots) > 1:
        return
    if isinstance(model, ResidualBranch):
        _shorten(model)
    followed = _followed_by_relu(model)
    for name, child in list(model.named_children()):
        if _is_plain(child):
            _replace(model, name, PackedConv2d(child, relu=name in followed or _activates(child)))
        else:
            pack(child)


def _replace(parent: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a layer, also in the lists of its parent: Detectron2's pyramid walks through lists of its own."""
    old = getattr(parent, name)
    setattr(parent, name, new)
    for value in vars(parent).values():
        if isinstance(value, list):
            value[:] = [new if item is old else item for item in value]


def _followed_by_relu(module: nn.Module) -> set[str]:
    """The convolutions of a field that relu comes after, which is taken out of the field here."""
    if not isinstance(module, BasicField | BottleneckField) or module.activation is not F.relu:
        return set()
    names = [name for name, _ in module.named_children()][:-1]
    if not all(_is_plain(getattr(module, name)) for name in names):
        return set()
    module.activation = nn.Identity()
    return set(names)


def _shorten(branch: ResidualBranch) -> None:
    """Leave folded normalisations out of the path of a branch, and relu where the convolution before can do it."""
    path: list[str] = []
    for name in branch.path:
        layer = None if name == RELU else getattr(branch.block, name)
        if isinstance(layer, nn.Identity):
            continue
        previous = getattr(branch.block, path[-1], None) if path else None
        if (layer is None or type(layer) is nn.ReLU) and _is_plain(previous) and branch.path.count(path[-1]) == 1:
            setattr(branch.block, path[-1], PackedConv2d(previous, relu=True))
        else:
            path.append(name)
    branch.path = tuple(path)


def _is_plain(module: object) -> TypeGuard[nn.Conv2d]:
    # A subclass with a forward of its own computes something else.
    known = isinstance(module, nn.Conv2d) and type(module).__name__ in ("Conv2d", _Conv.__name__)
    alone = isinstance(getattr(module, "norm", None), nn.Identity | None)
    activation = getattr(module, "activation", None)
    relu = activation is None or activation is F.relu or isinstance(activation, nn.ReLU)
    zeros = getattr(module, "padding_mode", "") == "zeros" and not isinstance(getattr(module, "padding", ""), str)
    return known and alone and relu and zeros


def _activates(conv: nn.Conv2d) -> bool:
    return getattr(conv, "activation", None) is not None


def _macs(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


if can_pack() and torch.ops.mkldnn._convolution_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(_macs)
