"""The network of a config: where it is, and in which memory format."""

from collections.abc import Callable
from pathlib import Path

import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.ode.flows import flows_of

ROOT = Path(__file__).resolve().parents[2]


QUICKSTART = ROOT / "configs" / "quickstart.yaml"


Overrides = Callable[..., list[str]]


def test_the_memory_format_of_a_network_is_that_of_the_config(squares_run: Overrides) -> None:
    for channels_last in (False, True):
        cfg = load_config(QUICKSTART, squares_run("format", "MODEL.CHANNELS_LAST", str(channels_last)))
        kernels = [
            weight for weight in build_network(cfg).parameters() if weight.ndim == 4 and weight[0, 0].numel() > 1
        ]
        assert {w.is_contiguous(memory_format=torch.channels_last) for w in kernels if w.shape[1] > 1} == {
            channels_last
        }


def test_a_network_without_flows_is_channels_last_as_a_whole() -> None:
    words = ["MODEL.DEVICE", "cpu", "MODEL.ODE.ROLE", "ablation"]
    cfg = load_config(ROOT / "configs" / "classification" / "mnist_odenet.yaml", words)
    kernels = [weight for weight in build_network(cfg).parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    assert kernels
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


def test_flows_with_group_normalisation_stay_contiguous_in_a_network_of_channels_last() -> None:
    cfg = load_config(ROOT / "configs" / "classification" / "mnist_odenet.yaml", ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.CHANNELS_LAST
    model = build_network(cfg).eval()
    (flow,) = flows_of(model).values()
    pictures = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    flow.field.register_forward_pre_hook(lambda field, inputs: seen.append(inputs[1]))
    model([{"image": picture} for picture in pictures])
    assert seen
    assert all(h.is_contiguous() for h in seen)
    assert flow.field.conv1.weight.is_contiguous()
    assert model.backbone.stem.layers[3].weight.is_contiguous(memory_format=torch.channels_last)
