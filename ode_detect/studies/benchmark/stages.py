"""The stages that are measured: a run of residual blocks, and the field that has the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from ode_detect.ode import BasicField, BottleneckField, PiecewiseConstant

# New residual blocks double the variance of the state each; a trained stage does not. This makes the branches small.
_BRANCH = 0.1


@dataclass(frozen=True)
class Stage:
    """A run of residual blocks and the state that goes through it.

    Attributes:
        name: what it is called in the results.
        kind: "bottleneck" (FrozenBN, as in a pretrained ResNet-101) or "basic" (GN).
        blocks: number of blocks, and of the pieces of the field.
        shape: (N, C, H, W) of the state.
    """

    name: str
    kind: str
    blocks: int
    shape: tuple[int, int, int, int]

    def build(self, *, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, PiecewiseConstant]:
        """Build Detectron2's residual blocks and the field in pieces with a copy of their weights."""
        torch.manual_seed(0)
        channels = self.shape[1]
        blocks: list[nn.Module] = []
        fields: list[nn.Module] = []
        for _ in range(self.blocks):
            if self.kind == "bottleneck":
                width = channels // 4
                block: Any = BottleneckBlock(channels, channels, bottleneck_channels=width, norm="FrozenBN")
                field: nn.Module = BottleneckField(channels=channels, bottleneck_channels=width, norm="FrozenBN")
                last = block.conv3
            else:
                block, field = BasicBlock(channels, channels, norm="GN"), BasicField(channels=channels, norm="GN")
                last = block.conv2
            nn.init.constant_(last.norm.weight, _BRANCH)
            field.load_state_dict(block.state_dict())
            blocks.append(block)
            fields.append(field)
        return nn.Sequential(*blocks).to(dtype), PiecewiseConstant(fields).to(dtype)

    def state(self, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """A state as it comes out of a relu."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).relu().to(dtype)


def train_step(model: nn.Module, h: Tensor) -> list[Tensor]:
    """Forward and backward: the gradients of the sum of the squares of the output, of ``h`` and of the weights.

    Those of weights that no step touched are zero.
    """
    h = h.detach().requires_grad_()
    wanted = [h, *(p for p in model.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(model(h).square().sum(), wanted, materialize_grads=True))
