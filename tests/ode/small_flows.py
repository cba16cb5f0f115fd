"""Small networks with flows in pieces, and pictures for them."""

import copy

import torch
from torch import nn

from ode_detect.ode import FixedStep, ODEBlock, PiecewiseConstant


class Branch(nn.Module):
    """The branch of a residual block with batch normalisation, as converted networks have it."""

    def __init__(self, channels=6):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, t, h):
        return self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(h)))))


class Block(Branch):
    """The residual block that has this branch."""

    def forward(self, h):
        return torch.relu(h + super().forward(0.0, h))


def shaken(module):
    """Random weights and statistics."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.dim() > 1:
            nn.init.normal_(tensor, std=0.4 / tensor[0].numel() ** 0.5)
        elif tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.0)
    return module


def flow(field, steps, **solver):
    return ODEBlock(field=field, solver=FixedStep(steps=steps, **solver), allow_stateful_field=True)


def model(count=6, build=Branch, flows=1):
    """A stem and flows of unlike pieces, in training mode as it is built."""
    blocks = [flow(PiecewiseConstant([shaken(build()) for _ in range(count)]), count) for _ in range(flows)]
    return nn.Sequential(nn.Conv2d(3, 6, 1), *blocks)


def pictures(count=2):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, 7, 6, generator=generator) for _ in range(count)]


@torch.no_grad()
def outputs(network, batches):
    return torch.cat([copy.deepcopy(network).eval()(batch) for batch in batches])


def states(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(x, b[name]) for name, x in a.items())
