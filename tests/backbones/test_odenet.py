import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

import ode_detect.classification.model  # noqa: F401  registers the classifier
from ode_detect.backbones import build_odenet_backbone
from ode_detect.backbones.build import ROLES
from ode_detect.backbones.odenet import NORMS, STEMS
from ode_detect.engine.config import add_ode_config
from ode_detect.ode.fields import FIELDS, PREACTIVATED
from ode_detect.ode.names import UnknownNameError

PICTURE = ShapeSpec(channels=1)


def config(field: str = "concat", *net: object, **ode: object) -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.ODE_NET.merge_from_list(["CHANNELS", [8], "BLOCKS", [2], "NORM", "GN", *net])
    projection = "none" if field in PREACTIVATED else "relu"
    for key, value in {"FIELD": field, "PROJECTION": projection, **ode}.items():
        cfg.MODEL.ODE[key] = value
    return cfg


def chen(**ode: object) -> CfgNode:
    cfg = config("concat", "STEM", "chen", "CHANNELS", [64], "BLOCKS", [6], PIECES="constant", **ode)
    cfg.MODEL.merge_from_list(["META_ARCHITECTURE", "Classifier", "DEVICE", "cpu", "PIXEL_MEAN", [0.0]])
    cfg.MODEL.PIXEL_STD, cfg.MODEL.CLASSIFIER.NORM, cfg.INPUT.FORMAT = [255.0], "GN", "L"
    cfg.MODEL.BACKBONE.NAME = "build_odenet_backbone"
    return cfg


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_name_is_registered() -> None:
    assert BACKBONE_REGISTRY.get("build_odenet_backbone") is build_odenet_backbone


@pytest.mark.parametrize(("role", "parameters"), [("ode", 208_266), ("ablation", 132_874), ("twin", 576_778)])
def test_the_network_of_the_paper_has_its_parameters(role: str, parameters: int) -> None:
    # Chen et al. 2018, table 1: 0.22 M for the ODE-Net, 0.60 M for its ResNet; the digits are torchdiffeq's.
    assert size(build_model(chen(ROLE=role))) == parameters


def test_the_stem_of_the_paper_is_three_convolutions() -> None:
    torch.manual_seed(0)
    stem = build_odenet_backbone(chen(ROLE="ablation"), PICTURE).stem.layers
    first, norm, _, second, other, _, third = stem
    for layer in (norm, other):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 1, 28, 28)

    def normalised(h: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return F.group_norm(h, 32, layer.weight, layer.bias).relu()

    h = normalised(F.conv2d(x, first.weight, first.bias), norm)
    h = normalised(F.conv2d(h, second.weight, second.bias, stride=2, padding=1), other)
    expected = F.conv2d(h, third.weight, third.bias, stride=2, padding=1)
    assert expected.shape == (2, 64, 6, 6)
    assert torch.equal(stem(x), expected)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("field", ["auto", *FIELDS])
@pytest.mark.parametrize("stem", STEMS)
def test_outputs_have_the_shapes_that_are_promised(stem: str, field: str, role: str) -> None:
    cfg = config(field, "STEM", stem, "CHANNELS", [8, 12, 16], "BLOCKS", [2, 0, 1], ROLE=role)
    backbone = build_odenet_backbone(cfg, PICTURE)
    outputs = backbone(torch.randn(2, 1, 32, 48))
    stride = 1 if stem == "conv" else 4
    assert [(n, s.channels, s.stride) for n, s in backbone.output_shape().items()] == [
        ("s1", 8, stride),
        ("s2", 12, 2 * stride),
        ("s3", 16, 4 * stride),
    ]
    assert [x.shape[1] for x in outputs.values()] == [8, 12, 16]
    if stem == "conv":
        assert [tuple(x.shape[2:]) for x in outputs.values()] == [(32, 48), (16, 24), (8, 12)]
    else:
        # The first convolution has no padding: 30 x 46, 15 x 23, 7 x 11, and then halves of that, rounded up.
        assert [tuple(x.shape[2:]) for x in outputs.values()] == [(7, 11), (4, 6), (2, 3)]
    outputs["s3"].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize("field", FIELDS)
def test_a_new_ode_network_is_its_ablation(field: str) -> None:
    networks = {}
    for role in ("ode", "ablation"):
        cfg = config(field, "CHANNELS", [8, 16], "BLOCKS", [2, 1], ROLE=role)
        networks[role] = build_odenet_backbone(cfg, PICTURE).eval()
    missing, unexpected = networks["ode"].load_state_dict(networks["ablation"].state_dict(), strict=False)
    assert unexpected == []
    assert all(".flow." in name for name in missing)
    x = torch.randn(2, 1, 8, 8)
    for a, b in zip(networks["ode"](x).values(), networks["ablation"](x).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("field", ["basic", "bottleneck", "preact"])
def test_pieces_with_the_weights_of_the_twins_blocks_give_its_bits(field: str, norm: str) -> None:
    torch.manual_seed(0)
    net = ("NORM", norm, "CHANNELS", [8, 16], "BLOCKS", [2, 1])
    twin = build_odenet_backbone(config(field, *net, ROLE="twin"), PICTURE)
    ode = build_odenet_backbone(config(field, *net), PICTURE)
    for parameter in twin.parameters():
        nn.init.normal_(parameter, std=0.3)

    def twins(name: str) -> str:
        return re.sub(
            r"s(\d)\.(\d)\.flow\.field\.pieces\.(\d+)",
            lambda m: f"s{m[1]}.{int(m[2]) + int(m[3])}" + (".field" if field == "preact" else ""),
            name,
        )

    ode.load_state_dict({name: twin.state_dict()[twins(name)] for name in ode.state_dict()})
    x = torch.randn(4, 1, 8, 8)
    for training in (True, False):
        a, b = ode.train(training)(x), twin.train(training)(x)
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert all(torch.equal(value, twin.state_dict()[twins(name)]) for name, value in ode.state_dict().items())


def test_extra_channels_reach_the_next_transition_and_the_output() -> None:
    cfg = config("preact", "CHANNELS", [8, 16], "BLOCKS", [2, 2], EXTRA_CHANNELS=3, STACK=2)
    backbone = build_odenet_backbone(cfg, PICTURE)
    outputs = backbone(torch.randn(1, 1, 8, 8))
    assert [x.shape[1] for x in outputs.values()] == [11, 19]
    assert [shape.channels for shape in backbone.output_shape().values()] == [11, 19]
    # Twin and ablation have none.
    for role in ("twin", "ablation"):
        cfg.MODEL.ODE.ROLE = role
        assert [s.channels for s in build_odenet_backbone(cfg, PICTURE).output_shape().values()] == [8, 16]


def test_a_classifier_trains() -> None:
    torch.manual_seed(0)
    for role in ROLES:
        model = build_model(chen(ROLE=role, METHOD="rk4", STEPS=1))
        model([{"image": torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8), "label": label} for label in range(2)])[
            "loss_cls"
        ].backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("channels", "blocks"), [([], []), ([8], [1, 2]), ([0], [1]), ([8], [-1])])
def test_stages_that_cannot_be_are_refused(channels: list[int], blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"write CHANNELS .* for two stages"):
        build_odenet_backbone(config("concat", "CHANNELS", channels, "BLOCKS", blocks), PICTURE)


def test_a_projection_before_a_preactivated_field_is_refused() -> None:
    for field, role in itertools.product(PREACTIVATED, ROLES):
        with pytest.raises(ValueError, match=r"set MODEL\.ODE\.PROJECTION none, or FIELD basic"):
            build_odenet_backbone(config(field, PROJECTION="relu", ROLE=role), PICTURE)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="chen, conv"):
        build_odenet_backbone(config("basic", "STEM", "con"), PICTURE)
    with pytest.raises(UnknownNameError, match=r"BN, GN, LN.*Did you mean 'GN'"):
        build_odenet_backbone(config("basic", "NORM", "gn"), PICTURE)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("field", ["auto", "preact"])
def test_a_backbone_becomes_a_script(field: str, role: str) -> None:
    backbone = build_odenet_backbone(config(field, "CHANNELS", [8, 16], "BLOCKS", [2, 2], ROLE=role), PICTURE).eval()
    picture = torch.randn(2, 1, 16, 24)
    found, expected = torch.jit.script(backbone)(picture), backbone(picture)
    assert list(found) == list(expected) == ["s1", "s2"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
