"""Residual networks against themselves with flows."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ode_detect.backbones import build_cifar_resnet
from ode_detect.studies.benchmark import conversion


def test_a_network_and_its_conversion_compute_the_same() -> None:
    (case,) = conversion.cases(quick=True)
    assert case.name == "CIFAR ResNet-56, 25 blocks in 3 flows, 2x3x32x32"
    flows, blocks = case.sides["flows"], case.sides["residual blocks"]
    assert (flows.role, blocks.role) == ("ode", "twin")
    assert flows.metrics["largest_difference"] == 0.0
    ours, theirs = flows.run(), blocks.run()
    assert ours.shape == (2, 10)
    assert not ours.requires_grad
    assert torch.equal(ours, theirs)
    assert [(ratio.quantity, ratio.aim) for ratio in case.ratios] == [("largest_difference", 0.0), ("latency_ms", None)]


def test_normalisation_is_as_a_training_leaves_it() -> None:
    network = build_cifar_resnet("resnet20")
    conversion._draw_statistics(network)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert norms
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert not bool(((tensor == 0) | (tensor == 1)).any())
        assert float(norm.running_var.min()) >= 0.5


def test_the_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    list(conversion.cases(quick=True))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", conversion.NETWORKS)
def test_every_network_takes_pictures_of_its_size(name: str) -> None:
    build, size = conversion.NETWORKS[name]
    with torch.device("meta"):
        network = build().eval()
        assert network(torch.empty(2, 3, size, size)).shape[0] == 2
