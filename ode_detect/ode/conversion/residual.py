"""Residual blocks as steps: the branch f of a block h + f(h) or relu(h + f(h)), and whether a block is one.

Blocks are recognised by how they are built, not by their class, so that this needs neither Detectron2 nor torchvision
nor timm. What is recognised is then tried: a block counts only if its branch gives its bits.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ode_detect.ode.randomness import random_layers
from ode_detect.ode.solvers import PROJECTIONS

RELU = "relu()"  # in a path: the function, where the block has no layer for it
_SHORTCUTS = ("downsample", "shortcut")
_SUMS = ("use_res_connect", "has_skip")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ConversionError(ValueError):
    """A network that cannot be converted; the message says which blocks and why."""


class ResidualBranch(nn.Module):
    """The branch f(h) of a residual block, computed by the layers of the block itself.

    The block is kept whole, shortcut and all, so that it can be taken out again as it was.

    Args:
        block: a residual block that keeps the shape: of Detectron2 (``conv1.norm``), torchvision or timm (``conv1``,
            ``bn1``, ...), a CIFAR ResNet (empty ``shortcut``), or an inverted residual (MobileNetV2, EfficientNet).

    Raises:
        ConversionError: a block that is none of these, or that changes the shape.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.path = branch_path(block)
        self.block = block
        self.training = block.training

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """f(h), shape of ``h``, (N, C, H, W); it does not depend on ``t``."""
        for name in self.path:
            h = F.relu_(h) if name == RELU else getattr(self.block, name)(h)
        return h

    def freeze(self) -> None:
        """Make the weights constant; in the way of the block, if it has one (Detectron2's also freeze BatchNorm)."""
        freeze = getattr(self.block, "freeze", None)
        if callable(freeze):
            freeze()
        else:
            self.requires_grad_(False)


def looks_residual(module: nn.Module) -> bool:
    """Whether a module looks like a residual block, so that a conversion should convert it or say why not."""
    shortcut = any(hasattr(module, name) for name in (*_SHORTCUTS, *_SUMS))
    named = any(word in type(module).__name__ for word in ("Block", "Bottleneck", "Residual"))
    return shortcut or named


def branch_path(block: nn.Module) -> tuple[str, ...]:
    """Return the layers of the branch of a residual block, by attribute name, in the order in which they are applied.

    Raises:
        ConversionError: with the reason why the block has no such branch; the caller knows its name.
    """
    layers = {name for name, _ in block.named_children()}
    path: list[str]
    if any(getattr(block, name, True) is False for name in _SUMS):
        raise ConversionError("it has no shortcut")
    if hasattr(block, "use_res_connect"):
        path, others = [name for name in ("conv", "block") if name in layers], {"stochastic_depth"}
    elif "conv_pwl" in layers:
        path, others = ["conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"], {"drop_path"}
    elif _is_preactivation(block):
        raise ConversionError("it normalises before it convolves (pre-activation)")
    elif {"conv1", "conv2"} <= layers and ("bn1" in layers or hasattr(block.conv1, "norm")):
        path, others = _numbered_path(layers), {"relu", "act2", "act3", "drop_path", *_SHORTCUTS}
    else:
        raise ConversionError("its layers are not those of a basic, bottleneck or inverted residual block")
    if not all(_is_identity(getattr(block, name, None)) for name in _SHORTCUTS):
        raise ConversionError("its shortcut is a layer of its own: it changes the shape")
    unknown = layers - set(path) - others
    if unknown or not path:
        raise ConversionError(f"it has layers that a residual block does not: {', '.join(sorted(unknown)) or 'none'}")
    return tuple(name for name in path if name == RELU or name in layers)


def projection_of(block: nn.Module) -> str:
    """Return what a residual block does after its sum: the name of a projection, "relu" or "none".

    The block is evaluated on a random state, in evaluation and in training mode, with its own and with random weights,
    and must be the sum of state and branch, bit for bit. It is not changed, and no random state is but torch's global
    one, if the block draws from it.

    Raises:
        ConversionError: with the reason why the block is not such a sum; the caller knows its name.
    """
    path = branch_path(block)
    if any(getattr(block, hooks) for hooks in _HOOKS):
        raise ConversionError("hooks are registered on it, which would not be called; remove them before")
    _check_not_random(block)
    count = sum(name.startswith("conv") for name in path)
    last = getattr(block, f"act{count}", getattr(block, "relu", None))
    if last is not None and not isinstance(last, nn.ReLU | nn.Identity):
        raise ConversionError(f"it applies {type(last).__name__} after the sum, and a step ends with relu or nothing")
    # The answer must not hang on the weights, which may be zero in the last layer, nor on the device.
    generator = torch.Generator().manual_seed(0)
    try:
        real = copy.deepcopy(block).to("cpu", torch.float32)
        probes = [real, _with_random_weights(copy.deepcopy(real), generator)]
        fits = [_fits(probe, training, generator) for probe in probes for training in (False, True)]
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        raise ConversionError(
            f"it cannot be evaluated on a random state ({type(error).__name__}: {_first_line(error)})"
        ) from error
    both = set.intersection(*fits)
    if not both:
        raise ConversionError("it is neither h + f(h) nor relu(h + f(h)) for the f of its layers")
    return "relu" if "relu" in both else "none"


def random_state(block: nn.Module, generator: torch.Generator) -> Tensor:
    """A state for a residual block, (2, C, 8, 8) with values on both sides of 6, where relu6 differs from relu."""
    convolutions = [m.in_channels for m in block.modules() if isinstance(m, _ConvNd)]
    if not convolutions:
        raise ConversionError("it has no convolution")
    # A convolution may take a part of the channels (timm's MixedConv2d); the last normalisation has those of the sum.
    widths = [getattr(m, "num_features", getattr(m, "num_channels", None)) for m in block.modules()]
    channels = [width for width in widths if isinstance(width, int)][-1:] or convolutions
    return torch.randn(2, channels[0], 8, 8, generator=generator, device="cpu", dtype=torch.float32) * 4


def _numbered_path(layers: set[str]) -> list[str]:
    count = 3 if "conv3" in layers else 2
    path: list[str] = []
    for index in range(1, count):
        own = f"act{index}" if f"act{index}" in layers else "relu"
        activation = own if own in layers else RELU
        middle = [activation] if index < count - 1 else ["drop_block", activation, "aa"]
        path += [f"conv{index}", f"bn{index}", *middle]
    return [*path, f"conv{count}", f"bn{count}", "se"]


def _fits(probe: nn.Module, training: bool, generator: torch.Generator) -> set[str]:
    """The projections with which the block is a step."""
    h = random_state(probe, generator)
    probe.train(training)
    with torch.no_grad():
        expected = probe(h.clone())
        given = h.clone()
        total = h + ResidualBranch(probe)(0.0, given)
    if not torch.equal(given, h) or expected.shape != h.shape:
        return set()
    return {
        name
        for name, apply in PROJECTIONS.items()
        if torch.equal(total if apply is None else apply(total.clone()), expected)
    }


@torch.no_grad()
def _with_random_weights(block: nn.Module, generator: torch.Generator) -> nn.Module:
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if tensor.dim() > 1:
            tensor.normal_(0, math.sqrt(2 / max(1, tensor[0].numel())), generator=generator)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            low, high = (-0.5, 0.5) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            tensor.uniform_(low, high, generator=generator)
    return block


def _check_not_random(block: nn.Module) -> None:
    for name, layer, share in random_layers(block):
        raise ConversionError(
            f"{type(layer).__name__} at {name!r} draws at random in training ({share:g}), and a vector field is a "
            "function; set it to 0 before"
        )


def _is_identity(shortcut: object) -> bool:
    empty = isinstance(shortcut, nn.Sequential) and len(shortcut) == 0
    return shortcut is None or empty or isinstance(shortcut, nn.Identity)


def _is_preactivation(block: nn.Module) -> bool:
    order = [name for name, _ in block.named_children() if name in ("conv1", "bn1", "norm1")]
    return "conv1" in order and order[0] != "conv1"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
