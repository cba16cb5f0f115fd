"""A linear field and a state for it."""

import torch
from torch import nn


class Linear(nn.Module):
    """dh/dt = rate * h, with a rate that is learnt."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, h):
        return self.rate * h


def state(dtype=torch.float32):
    return torch.randn(1, 2, 5, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
