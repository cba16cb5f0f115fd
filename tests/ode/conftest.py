"""Fields and weights that several tests of the mathematics use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn


class SmoothConv(nn.Module):
    """tanh(conv3x3(h)) * (1 + t / 2): smooth in h and t, so that orders of convergence and gradients can be seen."""

    def __init__(self, channels: int = 2, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, dtype=dtype)

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.conv(h)) * (1 + 0.5 * t)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_warn_always(True)  # not only in the first test that meets a warning
    yield
    torch.set_warn_always(False)


@pytest.fixture
def smooth_conv() -> type[SmoothConv]:
    return SmoothConv


@pytest.fixture
def lively() -> Callable[..., nn.Module]:
    """Draws all weights anew, since a new flow is the identity."""

    def draw(module: nn.Module, std: float = 0.3) -> nn.Module:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=std)
        return module

    return draw
