"""Vector fields: what an `ODEBlock` integrates. Each maps (t, h) to dh/dt of the shape of h.

The convolutions are named as in Detectron2's residual blocks (``conv1.weight``, ``conv1.norm.weight``, ...), so that
pretrained blocks load into them. The last layer of a new field is zero: a new flow is the identity.
"""

# No annotations as strings: TorchScript reads those of forward().

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .names import check_name

Norm = str | Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine weights are constants.

    Buffers and arithmetic are those of Detectron2's layer of the same name, so that a pretrained block gives the same
    bits. New layers (mean 0, variance 1) are the identity up to ``eps``.

    Args:
        channels: C of an input of shape (N, C, H, W).
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        # Caffe2's files have scale and shift only, the statistics folded into them. Detectron2's layer loads so too.
        if f"{prefix}weight" in state_dict:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        # F.batch_norm would keep what it needs for the gradients of weight and bias, which are constants here.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GN": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
    "LN": lambda channels: nn.GroupNorm(1, channels),
    "FrozenBN": FrozenBatchNorm2d,
    "none": lambda channels: nn.Identity(),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "softplus": F.softplus}


class NormedConv2d(nn.Conv2d):
    """A convolution that keeps H and W, and its normalisation ``norm``.

    Args:
        inputs: channels that it takes.
        outputs: channels that it gives.
        kernel: height and width of the kernel, odd.
        norm: as in `BasicField`.
        groups: groups of channels that are convolved apart.
        dilation: distance of the kernel's taps, in cells.
        bias: whether there is a bias; None is where the normalisation brings none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        norm: Norm,
        groups: int = 1,
        dilation: int = 1,
        bias: bool | None = None,
    ) -> None:
        padding, bias = kernel // 2 * dilation, norm == "none" if bias is None else bias
        super().__init__(inputs, outputs, kernel, padding=padding, bias=bias, groups=groups, dilation=dilation)
        self.norm = make_norm(norm, outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise (N, C, H, W)."""
        return self.norm(self._conv_forward(x, self.weight, self.bias))

    def start_at_zero(self) -> None:
        """Make the output zero, by the learnt weight that is nearest to it."""
        weight = getattr(self.norm, "weight", None)
        nn.init.zeros_(weight if isinstance(weight, nn.Parameter) else self.weight)


class BasicField(nn.Module):
    """The residual branch of a basic block: conv3x3, norm, activation, conv3x3, norm.

    Args:
        channels: C of the state, shape (N, C, H, W).
        norm: "GN" (up to 32 groups), "LN" (over C, H and W: one group), "FrozenBN" (only with pretrained weights),
            "none", or a function of the number of channels that builds a layer.
        activation: "relu", "silu" or "softplus".
        dilation: of the 3x3 convolutions, in cells of the state; 1 for none.

    Source: He et al. 2016, fig. 5 (left).
    """

    def __init__(self, *, channels: int, norm: Norm = "GN", activation: str = "relu", dilation: int = 1) -> None:
        super().__init__()
        self.activation = _activation(activation)
        self.conv1 = NormedConv2d(channels, channels, 3, norm=norm, dilation=dilation)
        self.conv2 = NormedConv2d(channels, channels, 3, norm=norm, dilation=dilation)
        self.conv2.start_at_zero()

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt, shape of ``h``; it does not depend on ``t``."""
        return self.conv2(self.activation(self.conv1(h)))


class BottleneckField(nn.Module):
    """The residual branch of a bottleneck block: conv1x1, conv3x3, conv1x1, each with norm, activation between.

    Args:
        channels: C of the state, shape (N, C, H, W).
        bottleneck_channels: channels of the 3x3 convolution; C / 4 if not given.
        groups: groups of the 3x3 convolution (ResNeXt).
        norm: as in `BasicField`.
        activation: as in `BasicField`.
        dilation: of the 3x3 convolution; 1 for none.

    Source: He et al. 2016, fig. 5 (right).
    """

    def __init__(
        self,
        *,
        channels: int,
        bottleneck_channels: int | None = None,
        groups: int = 1,
        norm: Norm = "GN",
        activation: str = "relu",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        width = bottleneck_channels if bottleneck_channels is not None else max(channels // 4, 1)
        self.activation = _activation(activation)
        self.conv1 = NormedConv2d(channels, width, 1, norm=norm)
        self.conv2 = NormedConv2d(width, width, 3, norm=norm, groups=groups, dilation=dilation)
        self.conv3 = NormedConv2d(width, channels, 1, norm=norm)
        self.conv3.start_at_zero()

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt, shape of ``h``; it does not depend on ``t``."""
        return self.conv3(self.activation(self.conv2(self.activation(self.conv1(h)))))


class PreactField(nn.Module):
    """The residual branch of a pre-activated block: norm, activation, conv3x3, norm, activation, conv3x3.

    Args:
        channels: C of the state, shape (N, C, H, W).
        norm: as in `BasicField`.
        activation: as in `BasicField`.
        dilation: as in `BasicField`.

    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", fig. 1 (b).
    """

    def __init__(self, *, channels: int, norm: Norm = "GN", activation: str = "relu", dilation: int = 1) -> None:
        super().__init__()
        self.activation = _activation(activation)
        self.norm = make_norm(norm, channels)
        self.conv1 = NormedConv2d(channels, channels, 3, norm=norm, dilation=dilation)
        self.conv2 = NormedConv2d(channels, channels, 3, norm="none", dilation=dilation, bias=norm == "none")
        self.conv2.start_at_zero()

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt, shape of ``h``; it does not depend on ``t``."""
        return self.conv2(self.activation(self.conv1(self.activation(self.norm(h)))))


class ConcatConvField(nn.Module):
    """Norm, activation, conv3x3(t, h), norm, activation, conv3x3(t, h), norm: time is one more input channel.

    The convolutions have biases, which a normalisation of groups of channels does not take away.

    Args:
        channels: C of the state, shape (N, C, H, W).
        norm: as in `BasicField`.
        activation: as in `BasicField`.
        dilation: as in `BasicField`.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations", the MNIST network.
    """

    def __init__(self, *, channels: int, norm: Norm = "GN", activation: str = "relu", dilation: int = 1) -> None:
        super().__init__()
        self.activation = _activation(activation)
        self.norm = make_norm(norm, channels)
        self.conv1 = NormedConv2d(channels + 1, channels, 3, norm=norm, dilation=dilation, bias=True)
        self.conv2 = NormedConv2d(channels + 1, channels, 3, norm=norm, dilation=dilation, bias=True)
        self.conv2.start_at_zero()

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt at time ``t``, shape of ``h``."""
        h = self.conv1(_with_time(t, self.activation(self.norm(h))))
        return self.conv2(_with_time(t, self.activation(h)))


FIELDS: dict[str, Callable[..., nn.Module]] = {
    "basic": BasicField,
    "bottleneck": BottleneckField,
    "concat": ConcatConvField,
    "preact": PreactField,
}
# Fields that begin with normalisation and activation: what gives them their state ends in neither.
PREACTIVATED = ("concat", "preact")


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Build a normalisation for (N, C, H, W) by name, or by the function given instead of a name."""
    return norm(channels) if callable(norm) else NORMS[check_name(norm, NORMS, "norm")](channels)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    return ACTIVATIONS[check_name(name, ACTIVATIONS, "activation")]


def _with_time(t: float | Tensor, h: Tensor) -> Tensor:
    plane = torch.full_like(h[:, :1], t) if isinstance(t, float) else t.to(h.dtype).expand_as(h[:, :1])
    return torch.cat([plane, h], dim=1)
