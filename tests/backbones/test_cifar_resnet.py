from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ode_detect.backbones import CifarResNet, build_cifar_resnet
from ode_detect.ode.names import UnknownNameError

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "weights" / "cifar10_resnets"


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_the_number_of_parameters_is_the_published_one(name: str, parameters: int) -> None:
    # 0.27 M and 0.85 M in He et al. 2016, table 6; the last digits are those of the published checkpoints.
    assert sum(p.numel() for p in build_cifar_resnet(name).parameters()) == parameters


def test_the_network_is_the_one_of_the_paper() -> None:
    torch.manual_seed(0)
    model = CifarResNet(blocks=2, num_classes=7).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    weights = model.state_dict()

    def conv(x: torch.Tensor, block: str, index: int, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, weights[f"{block}conv{index}.weight"], stride=stride, padding=1)
        mean, variance, scale, shift = (
            weights[f"{block}bn{index}.{kind}"].reshape(1, -1, 1, 1)
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = torch.randn(2, 3, 32, 32)
    h = conv(x, "", 1).relu()
    for stage in (1, 2, 3):
        for index in range(2):
            block = f"layer{stage}.{index}."
            stride = 2 if stage > 1 and index == 0 else 1
            shortcut = h
            if stride == 2:
                shortcut = torch.zeros(2, 2 * h.shape[1], h.shape[2] // 2, h.shape[3] // 2)
                shortcut[:, h.shape[1] // 2 : h.shape[1] // 2 + h.shape[1]] = h[:, :, ::2, ::2]
            h = (conv(conv(h, block, 1, stride).relu(), block, 2) + shortcut).relu()
    expected = h.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="resnet20, resnet32, resnet44, resnet56"):
        build_cifar_resnet("resnet18")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_published_checkpoints_load(depth: int) -> None:
    (file,) = PUBLISHED.glob(f"resnet{depth}-*.th")
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    missing, unexpected = build_cifar_resnet(f"resnet{depth}").load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.endswith("num_batches_tracked") for name in missing)
