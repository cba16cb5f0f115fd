"""Section ``conversion``: residual networks against themselves with flows: largest difference, and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from ode_detect.backbones import build_cifar_resnet
from ode_detect.ode import to_ode
from ode_detect.studies.timing import Case, Ratio, Side

LOSSLESS = 0.0
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "torchvision ResNet-101": (lambda: models.resnet101(weights=None), 224),
    "torchvision ResNeXt-50": (lambda: models.resnext50_32x4d(weights=None), 224),
    "torchvision MobileNetV2": (lambda: models.mobilenet_v2(weights=None, dropout=0.0), 224),
    "CIFAR ResNet-56": (lambda: build_cifar_resnet("resnet56"), 32),
}


def cases(*, quick: bool) -> Iterator[Case]:
    """Each network and its conversion, batch 2, compared in evaluation and training mode with gradients."""
    for name, (build, size) in list(NETWORKS.items())[-1 if quick else 0 :]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build().eval()
            _draw_statistics(network)
            pictures = torch.randn(2, 3, size, size)
        converted, certificate = to_ode(network, example=pictures)
        difference = {"largest_difference": certificate.differences.largest}
        blocks = sum(len(run.blocks) for run in certificate.runs)
        yield Case(
            f"{name}, {blocks} blocks in {len(certificate.runs)} flows, 2x3x{size}x{size}",
            {
                "flows": Side("ode", partial(_classify, converted, pictures), metrics=difference),
                "residual blocks": Side("twin", partial(_classify, network, pictures)),
            },
            [
                Ratio("flows", "residual blocks", LOSSLESS, "largest_difference"),
                Ratio("flows", "residual blocks"),
            ],
        )


@torch.no_grad()
def _draw_statistics(network: nn.Module) -> None:
    """Statistics and weights of normalisation as a training leaves them: none of them 0 or 1."""
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        for tensor, low, high in (
            (norm.weight, 0.5, 1.0),
            (norm.bias, -0.2, 0.2),
            (norm.running_mean, -0.2, 0.2),
            (norm.running_var, 0.5, 1.5),
        ):
            if tensor is not None:
                tensor.uniform_(low, high)


@torch.no_grad()
def _classify(network: nn.Module, pictures: Tensor) -> Tensor:
    return network(pictures)
