"""Fields whose flows are known in closed form: ``exact(h, t)`` is the state at time t from h at time 0."""

import math

import torch
from torch import nn

from ode_detect.ode import PiecewiseConstant


class Logistic(nn.Module):
    def forward(self, t, h):
        return 3 * h * (1 - h)

    def exact(self, h, t):
        return 1 / (1 + (1 / h - 1) * math.exp(-3 * t))


class Fading(nn.Module):
    """Not autonomous: dh/dt = -(1 + t) h^2."""

    def forward(self, t, h):
        return -(1 + t) * h * h

    def exact(self, h, t):
        return 1 / (1 / h + t + t * t / 2)


class Growth(nn.Module):
    """dh/dt = rate * (1 + t) * h."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def forward(self, t, h):
        return self.rate * (1 + t) * h


class GrowthInPieces(PiecewiseConstant):
    """Growth at another of ``rates`` in each unit of time; a subclass names them."""

    rates: tuple[float, ...]

    def __init__(self):
        super().__init__([Growth(rate) for rate in self.rates])

    def exact(self, h, t):
        return h * math.exp(sum(float(p.rate) * (k + 1.5) for k, p in enumerate(self.pieces)))
