"""Convolutions for inference on a CPU: weights laid out for oneDNN once instead of at each call, with their relu.

The operators are those that torch.compile puts into its graphs, called without a graph, so that nothing is compiled
and flows can still be solved in another way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from ode_detect.ode.conversion.residual import RELU, ResidualBranch
from ode_detect.ode.fields import BasicField, BottleneckField, NormedConv2d
from ode_detect.ode.pieces import HatFunctions


def can_pack() -> bool:
    """Whether this PyTorch has oneDNN and its operators."""
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
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
        """Convolve (N, C, H, W) as `torch.nn.Conv2d` does; channels last."""
        attribute = "relu" if self.relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.geometry, attribute, [], "")

    def add_to(self, h: Tensor, x: Tensor) -> Tensor:
        """relu(h + convolution of x), written into ``h``."""
        operator = torch.ops.mkldnn._convolution_pointwise_.binary
        return operator(h, x, self.weight, self.bias, *self.geometry, "add", 1.0, "relu", [], None)

    def scaled(self, factor: float) -> PackedConv2d:
        """The convolution times a factor; itself if that is 1."""
        if factor == 1.0:
            return self
        other = copy.copy(self)
        other.weight = self._laid_out(self.weight.to_dense() * factor)
        other.bias = None if self.bias is None else self.bias * factor
        return other

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


class PackedBranch(nn.Module):
    """The branch f(h) of a residual block as a row of packed layers; relu(h + size * f(h)) in one go where it ends so.

    Args:
        layers: called one after the other.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._ends: dict[float, PackedConv2d] = {}

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """f(h), shape of ``h``; it does not depend on ``t``."""
        for layer in self.layers:
            h = layer(h)
        return h

    def can_step(self, size: float) -> bool:
        """Whether the last convolution can take the step; a size that is no power of two would round its weights."""
        last = self.layers[-1]
        return isinstance(last, PackedConv2d) and not last.relu and math.frexp(size)[0] == 0.5

    def step(self, size: float, h: Tensor) -> Tensor:
        """relu(h + size * f(h)), written into ``h``; with channels last."""
        branch = h
        for layer in self.layers[:-1]:
            branch = layer(branch)
        if size not in self._ends:
            last: Any = self.layers[-1]
            self._ends[size] = last.scaled(size)
        return self._ends[size].add_to(h, branch)


def pack(model: nn.Module) -> None:
    """Replace the convolutions of a model by packed ones, in place; fields and residual branches by `PackedBranch`.

    Left as they are: convolutions that still have a normalisation of their own, that pad with other than zeros, that
    are of an unknown class, and those in hat functions, which blend weights.

    Args:
        model: on the CPU, in the dtype in which it is to be computed; changed.
    """
    if isinstance(model, HatFunctions) and len(model.knots) > 1:
        return
    for name, child in list(model.named_children()):
        row = _row_of(child)
        if row is not None:
            _replace(model, name, PackedBranch(_packed_row(row)))
        elif _is_plain(child):
            _replace(model, name, PackedConv2d(child, relu=_activates(child)))
        else:
            pack(child)


def _replace(parent: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a layer, also in the lists of its parent: Detectron2's pyramid walks through lists of its own."""
    old = getattr(parent, name)
    setattr(parent, name, new)
    for value in vars(parent).values():
        if isinstance(value, list):
            value[:] = [new if item is old else item for item in value]


def _row_of(field: nn.Module) -> list[nn.Module] | None:
    """The layers of a field that is nothing but layers one after the other."""
    if isinstance(field, ResidualBranch):
        return [nn.ReLU(inplace=True) if name == RELU else getattr(field.block, name) for name in field.path]
    if isinstance(field, BasicField | BottleneckField) and field.activation is F.relu:
        relus = [[conv, nn.ReLU(inplace=True)] for _, conv in field.named_children()]
        return [layer for pair in relus for layer in pair][:-1]
    return None


def _packed_row(row: list[nn.Module]) -> list[nn.Module]:
    """Convolutions packed with the relu after them; folded normalisations left out."""
    packed: list[nn.Module] = []
    for layer in (layer for layer in row if not isinstance(layer, nn.Identity)):
        last = packed[-1] if packed else None
        if type(layer) is nn.ReLU and isinstance(last, PackedConv2d):
            last.relu = True
        elif _is_plain(layer):
            packed.append(PackedConv2d(layer, relu=_activates(layer)))
        else:
            pack(layer)
            packed.append(layer)
    return packed


def _is_plain(module: object) -> TypeGuard[nn.Conv2d]:
    # A subclass with a forward of its own computes something else.
    known = isinstance(module, nn.Conv2d) and type(module).__name__ in ("Conv2d", NormedConv2d.__name__)
    alone = isinstance(getattr(module, "norm", None), nn.Identity | None)
    activation = getattr(module, "activation", None)
    relu = activation is None or activation is F.relu or isinstance(activation, nn.ReLU)
    zeros = getattr(module, "padding_mode", "") == "zeros" and not isinstance(getattr(module, "padding", ""), str)
    return known and alone and relu and zeros


def _activates(conv: nn.Conv2d) -> bool:
    return getattr(conv, "activation", None) is not None


def _macs(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


def _macs_of_sum(h: Any, *arguments: Any, **named: Any) -> int:
    return _macs(*arguments, **named)


for _name, _formula in (("_convolution_pointwise", _macs), ("_convolution_pointwise_", _macs_of_sum)):
    if can_pack() and getattr(torch.ops.mkldnn, _name) not in flop_registry:
        register_flop_formula(getattr(torch.ops.mkldnn, _name))(_formula)
