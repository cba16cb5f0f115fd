import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model

import ode_detect.classification.model  # noqa: F401  registers the classifier
from ode_detect.backbones import build_mlp_backbone
from ode_detect.engine.config import add_ode_config

PICTURE = ShapeSpec(channels=1)


def config() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.merge_from_list(["META_ARCHITECTURE", "Classifier", "DEVICE", "cpu", "PIXEL_MEAN", [0.0]])
    cfg.MODEL.PIXEL_STD, cfg.MODEL.BACKBONE.NAME, cfg.INPUT.FORMAT = [255.0], "build_mlp_backbone", "L"
    return cfg


def test_the_name_is_registered() -> None:
    assert BACKBONE_REGISTRY.get("build_mlp_backbone") is build_mlp_backbone


def test_the_network_of_the_paper_has_its_parameters() -> None:
    model = build_model(config())
    assert sum(p.numel() for p in model.parameters()) == 784 * 300 + 300 + 300 * 10 + 10
    model([{"image": torch.zeros(1, 28, 28, dtype=torch.uint8), "label": 3}])["loss_cls"].backward()


def test_the_hidden_units_see_all_pixels() -> None:
    cfg = config()
    cfg.MODEL.MLP.merge_from_list(["SIZE", 4, "HIDDEN", 7])
    backbone = build_mlp_backbone(cfg, ShapeSpec(channels=3))
    assert backbone.output_shape() == {"hidden": ShapeSpec(channels=7, stride=4)}
    x = torch.randn(2, 3, 4, 4)
    weight, bias = backbone.hidden.weight, backbone.hidden.bias
    expected = torch.einsum("nchw,kchw->nk", x, weight.reshape(7, 3, 4, 4)) + bias
    torch.testing.assert_close(backbone(x)["hidden"], expected.relu().reshape(2, 7, 1, 1))


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 28, 28\], not \[1, 32, 28\]; set MODEL\.MLP\.SIZE"):
        build_mlp_backbone(config(), PICTURE)(torch.zeros(2, 1, 32, 28))


@pytest.mark.parametrize("key", ["SIZE", "HIDDEN"])
def test_counts_out_of_range_are_refused(key: str) -> None:
    cfg = config()
    cfg.MODEL.MLP[key] = 0
    with pytest.raises(ValueError, match="1 or more, not"):
        build_mlp_backbone(cfg, PICTURE)
