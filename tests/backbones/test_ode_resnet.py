import importlib
import re

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model

from ode_detect.backbones import (
    build_cifar_resnet,
    build_ode_resnet_backbone,
    build_ode_resnet_fpn_backbone,
    build_ode_resnet_fpn_p6p7_backbone,
    build_stage,
    discrete_names,
)
from ode_detect.backbones.build import ROLES
from ode_detect.backbones.ode_resnet import BLOCKS_PER_STAGE, STAGES
from ode_detect.engine.config import add_ode_config
from ode_detect.ode import Adaptive, Adjoint, Auto, Backprop, Checkpoint, ODEBlock, Reversible, record_solves
from ode_detect.ode.names import UnknownNameError

PICTURE = ShapeSpec(channels=3)


def config(depth: int = 18, **ode: object) -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.merge_from_list(["DEPTH", depth, "NORM", "GN", "OUT_FEATURES", ["res2", "res3", "res4", "res5"]])
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    for key, value in ode.items():
        cfg.MODEL.ODE[key] = value
    return cfg


def fpn(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.BACKBONE.NAME = "build_ode_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    return cfg


def flows(model: torch.nn.Module) -> dict[str, ODEBlock]:
    return {name: m for name, m in model.named_modules() if isinstance(m, ODEBlock)}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_outputs_have_the_shapes_that_are_promised(depth: int, role: str) -> None:
    backbone = build_ode_resnet_backbone(config(depth, ROLE=role), PICTURE).eval()
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, 64, 96))
    assert set(outputs) == set(STAGES)
    for name, shape in backbone.output_shape().items():
        assert outputs[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_the_names_are_registered() -> None:
    assert BACKBONE_REGISTRY.get("build_ode_resnet_backbone") is build_ode_resnet_backbone
    assert BACKBONE_REGISTRY.get("build_ode_resnet_fpn_backbone") is build_ode_resnet_fpn_backbone
    assert BACKBONE_REGISTRY.get("build_ode_resnet_fpn_p6p7_backbone") is build_ode_resnet_fpn_p6p7_backbone


def test_resnet_101_has_29_of_its_33_blocks_in_flows() -> None:
    backbone = build_ode_resnet_backbone(config(101), PICTURE)
    pieces = [len(block.field.pieces) for block in flows(backbone).values()]
    assert pieces == [2, 3, 22, 2]
    assert sum(BLOCKS_PER_STAGE[101]) == 33
    with record_solves(backbone) as record, torch.no_grad():
        backbone(torch.randn(1, 3, 32, 32))
    assert record.total.forward_evaluations == 29


@pytest.mark.parametrize("stages", [[], ["res4"], ["res2", "res5"], list(STAGES)])
def test_any_subset_of_stages_is_made_of_flows(stages: list[str]) -> None:
    backbone = build_ode_resnet_backbone(config(STAGES=stages), PICTURE)
    assert sorted(flows(backbone)) == [f"{stage}.1.flow" for stage in stages]


def test_the_twin_is_detectron2s_resnet() -> None:
    twin = build_ode_resnet_backbone(config(50, ROLE="twin"), PICTURE)
    theirs = config(50)
    theirs.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    resnet = build_backbone(theirs, PICTURE)
    assert {n: p.shape for n, p in twin.state_dict().items()} == {n: p.shape for n, p in resnet.state_dict().items()}


def test_the_ablation_is_the_network_without_its_flows() -> None:
    ode = build_ode_resnet_backbone(config(), PICTURE)
    ablation = build_ode_resnet_backbone(config(ROLE="ablation"), PICTURE)
    assert set(ablation.state_dict()) == {n for n in ode.state_dict() if ".flow." not in n}
    ablation.load_state_dict(ode.state_dict(), strict=False)
    pictures = torch.rand(2, 3, 64, 64)
    # New flows are the identity, but the transitions end in relu as do projected flows: nothing changes.
    for a, b in zip(ode.eval()(pictures).values(), ablation.eval()(pictures).values(), strict=True):
        assert torch.equal(a, b)


def test_flows_with_the_weights_of_a_resnet_give_its_bits() -> None:
    cfg = config(50, STAGES=["res3", "res4"])
    ode = build_ode_resnet_backbone(cfg, PICTURE).eval()
    resnet = build_ode_resnet_backbone(config(50, ROLE="twin"), PICTURE).eval()
    for parameter in resnet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    names = discrete_names(list(ode.state_dict()))
    ode.load_state_dict({n: resnet.state_dict()[names.get(n, n)] for n in ode.state_dict()})
    pictures = torch.rand(2, 3, 64, 64)
    ours, theirs = ode(pictures), resnet(pictures)
    assert all(torch.equal(ours[name], theirs[name]) for name in STAGES)
    loss = lambda outputs: sum(x.square().mean() for x in outputs.values())  # noqa: E731
    loss(ours).backward()
    loss(theirs).backward()
    gradients = dict(resnet.named_parameters())
    assert all(torch.equal(p.grad, gradients[names.get(n, n)].grad) for n, p in ode.named_parameters())


@pytest.mark.parametrize("pieces", ["constant", "piecewise", "hat"])
@pytest.mark.parametrize("field", ["auto", "basic", "bottleneck", "concat"])
def test_every_field_with_every_kind_of_weights_trains(field: str, pieces: str) -> None:
    cfg = config(34, STAGES=["res3"], FIELD=field, PIECES=pieces, METHOD="midpoint", STEPS=2, ACTIVATION="silu")
    backbone = build_ode_resnet_backbone(cfg, PICTURE)
    sum(x.square().mean() for x in backbone(torch.rand(1, 3, 32, 32)).values()).backward()
    last = [p for n, p in backbone.named_parameters() if ".flow." in n][-2]
    assert last.grad is not None


def test_an_adaptive_method_takes_its_tolerances_from_the_config() -> None:
    cfg = config(STAGES=["res4"], METHOD="bosh3", PROJECTION="none", RTOL=0.01, ATOL=0.02, MAX_EVALUATIONS=50)
    (block,) = flows(build_ode_resnet_backbone(cfg, PICTURE)).values()
    assert block.solver == Adaptive("bosh3", rtol=0.01, atol=0.02, max_evaluations=50)


@pytest.mark.parametrize(
    ("keys", "gradient"),
    [
        ({}, Backprop()),
        ({"GRADIENT": "checkpoint"}, Checkpoint()),
        ({"GRADIENT": "checkpoint", "CHECKPOINT_EVERY": 3}, Checkpoint(every=3)),
        ({"GRADIENT": "checkpoint", "CHECKPOINT_STATES": 2}, Checkpoint(states=2)),
        ({"GRADIENT": "reversible", "PROJECTION": "none"}, Reversible()),
        ({"GRADIENT": "reversible", "PROJECTION": "none", "COUPLING": 0.5}, Reversible(coupling=0.5)),
        ({"GRADIENT": "adjoint", "PROJECTION": "none"}, Adjoint()),
        ({"GRADIENT": "auto"}, Auto(memory_budget=512 * 2**20)),
        ({"GRADIENT": "auto", "MEMORY_BUDGET": 3}, Auto(memory_budget=3 * 2**20)),
    ],
)
def test_the_gradient_is_what_the_config_says(keys: dict[str, object], gradient: object) -> None:
    (block,) = flows(build_ode_resnet_backbone(config(STAGES=["res3"], **keys), PICTURE)).values()
    assert block.gradient == gradient
    block(torch.rand(1, 128, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"GRADIENT": "reversible"}, "set MODEL.ODE.PROJECTION none, or GRADIENT checkpoint"),
        ({"GRADIENT": "adjoint"}, "set MODEL.ODE.PROJECTION none, or GRADIENT checkpoint"),
        ({"GRADIENT": "reversible", "PROJECTION": "none", "COUPLING": 1.0}, "between 0 and 1, not at 1.0"),
        ({"GRADIENT": "checkpoint", "CHECKPOINT_EVERY": 0}, "integer of 1 or more, not 0"),
        ({"GRADIENT": "checkpoint", "CHECKPOINT_STATES": -1}, "integer of 1 or more, not -1"),
        ({"GRADIENT": "auto", "MEMORY_BUDGET": 0}, "memory_budget must be an integer of 1 or more, not 0"),
    ],
)
def test_a_gradient_that_cannot_be_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_ode_resnet_backbone(config(STAGES=["res3"], **keys), PICTURE)


def test_freezing_reaches_into_flows() -> None:
    cfg = config()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_ode_resnet_backbone(cfg, PICTURE)
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert any("res2.1.flow" in n for n in frozen)
    assert not any(n.startswith("res3") for n in frozen)


def test_a_pyramid_that_ends_before_res5_has_no_p6() -> None:
    cfg = fpn(config())
    assert set(build_backbone(cfg, PICTURE).output_shape()) == {"p2", "p3", "p4", "p5", "p6"}
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    assert set(build_backbone(cfg, PICTURE).output_shape()) == {"p3", "p4"}


@pytest.mark.parametrize(
    ("ode", "message"),
    [
        ({"ROLE": "odd"}, "did you mean|ode"),
        ({"STAGES": ["res6"]}, "res5"),
        ({"FIELD": "basics"}, "basic"),
        ({"METHOD": "eulr", "PROJECTION": "none"}, "euler"),
        ({"PIECES": "piece"}, "piecewise"),
        ({"GRADIENT": "backprob"}, "backprop"),
        ({"ACTIVATION": "rellu"}, "relu"),
    ],
)
def test_an_unknown_name_tells_the_nearest(ode: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        build_ode_resnet_backbone(config(**ode), PICTURE)


# --- the ResNets of CIFAR ---

CIFAR = sorted(depth for depth, counts in BLOCKS_PER_STAGE.items() if len(counts) == 3)


def cifar(depth: int = 20, **ode: object) -> CfgNode:
    cfg = config(depth, **ode)
    cfg.MODEL.RESNETS.merge_from_list(["NORM", "BN", "STEM_OUT_CHANNELS", 16, "RES2_OUT_CHANNELS", 16])
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4"]
    return cfg


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("depth", CIFAR)
def test_a_resnet_of_cifar_has_three_stages_and_no_pooling(depth: int, role: str) -> None:
    backbone = build_ode_resnet_backbone(cifar(depth, ROLE=role), PICTURE).eval()
    outputs = backbone(torch.rand(2, 3, 32, 32))
    assert {n: tuple(x.shape[1:]) for n, x in outputs.items()} == {
        "res2": (16, 32, 32),
        "res3": (32, 16, 16),
        "res4": (64, 8, 8),
    }
    assert [(s.channels, s.stride) for s in backbone.output_shape().values()] == [(16, 1), (32, 2), (64, 4)]
    blocks = len([n for n in backbone.state_dict() if re.search(r"res\d\..*conv1\.weight", n)])
    assert blocks == (3 if role == "ablation" else (depth - 2) // 2)
    # What the paper counts, up to the linear layer (650) that the head has.
    expected = sum(p.numel() for p in build_cifar_resnet(f"resnet{depth}").parameters()) - 650
    assert role == "ablation" or sum(p.numel() for p in backbone.parameters()) == expected


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_a_resnet_of_cifar_is_that_of_the_experiments_bit_for_bit(gradient: str) -> None:
    torch.manual_seed(0)
    reference = build_cifar_resnet("resnet20")
    ode = build_ode_resnet_backbone(cifar(GRADIENT=gradient), PICTURE)
    names = {name: cifar_name(plain) for name, plain in plain_names(ode).items()}
    ode.load_state_dict({name: reference.state_dict()[theirs] for name, theirs in names.items()})
    pictures = torch.rand(4, 3, 32, 32)
    for training in (True, False):
        ode.train(training), reference.train(training)
        ours = reference.linear(ode(pictures)["res4"].mean((2, 3)))
        theirs = reference(pictures)
        assert torch.equal(ours, theirs)
        for logits, model in ((ours, ode), (theirs, reference)):
            reference.linear.zero_grad()
            model.zero_grad()
            logits.square().mean().backward()
        parameters = dict(reference.named_parameters())
        assert all(torch.equal(p.grad, parameters[names[n]].grad) for n, p in ode.named_parameters())
    # The running statistics were updated once by each block, also where the backward pass evaluates again.
    state = ode.state_dict()
    assert all(torch.equal(state[name], reference.state_dict()[theirs]) for name, theirs in names.items())


def plain_names(model: torch.nn.Module) -> dict[str, str]:
    discrete = discrete_names(list(model.state_dict()))
    return {name: discrete.get(name, name) for name in model.state_dict()}


def cifar_name(name: str) -> str:
    name = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", name.removeprefix("stem."))
    return re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)


# --- flows behind one another ---


def test_stacked_flows_have_names_and_weights_of_their_own_and_no_counterpart() -> None:
    cfg = config(34, STAGES=["res3", "res4"], STACK=2)
    backbone = build_ode_resnet_backbone(cfg, PICTURE)
    named = {path: block.name for path, block in flows(backbone).items()}
    assert named == {
        "res3.1.flow": "res3.flow",
        "res3.2.flow": "res3.flow2",
        "res4.1.flow": "res4.flow",
        "res4.2.flow": "res4.flow2",
    }
    assert discrete_names(list(backbone.state_dict())) == {}
    assert [len(block.field.pieces) for block in flows(backbone).values()] == [3, 3, 5, 5]
    names = [*backbone.state_dict(), "backbone.res5.1.flow.field.conv1.weight"]
    assert discrete_names(names) == {"backbone.res5.1.flow.field.conv1.weight": "backbone.res5.1.conv1.weight"}


def test_what_cannot_be_built_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="one of 18, 20, 32, 34, 44, 50, 56, 101, 152, not 19"):
        build_ode_resnet_backbone(config(19), PICTURE)
    with pytest.raises(ValueError, match="Set PROJECTION to 'none'"):
        build_ode_resnet_backbone(config(METHOD="dopri5"), PICTURE)
    with pytest.raises(ValueError, match=r"EXTRA_CHANNELS is 4.* or MODEL\.BACKBONE\.NAME to build_odenet_backbone"):
        build_ode_resnet_backbone(config(EXTRA_CHANNELS=4), PICTURE)
    with pytest.raises(ValueError, match=r"a ResNet-56 ends with res4; set it to \[res4\]"):
        build_ode_resnet_backbone(config(56), PICTURE)
    cfg = config(34)
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    with pytest.raises(ValueError, match=r"a ResNet-34 has basic ones\. Set RES5_DILATION to 1"):
        build_ode_resnet_backbone(cfg, PICTURE)
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    with pytest.raises(ValueError, match="or 2 for DC5, not 4"):
        build_ode_resnet_backbone(cfg, PICTURE)
    cfg = config(50)
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, True]
    with pytest.raises(ValueError, match="Use build_resnet_fpn_backbone for those"):
        build_ode_resnet_backbone(cfg, PICTURE)
    cfg = fpn(config())
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.ODE.STAGES = ["res3"]
    with pytest.raises(ValueError, match="add res5, or use build_ode_resnet_fpn_backbone"):
        build_ode_resnet_fpn_p6p7_backbone(cfg, PICTURE)


def test_a_stage_that_the_head_would_build_without_its_flow_is_refused() -> None:
    cfg = config(50)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    for role in ("ode", "ablation"):
        cfg.MODEL.ODE.ROLE = role
        with pytest.raises(
            ValueError, match=r"Set MODEL\.ROI_HEADS\.NAME ODERes5ROIHeads, or leave res5 out of STAGES"
        ):
            build_ode_resnet_backbone(cfg, PICTURE)
    cfg.MODEL.ODE.ROLE = "twin"
    assert set(build_ode_resnet_backbone(cfg, PICTURE).output_shape()) == {"res4"}
    cfg.MODEL.ODE.ROLE, cfg.MODEL.ODE.STAGES = "ode", ["res3", "res4"]
    assert sorted(flows(build_ode_resnet_backbone(cfg, PICTURE))) == ["res3.1.flow", "res4.1.flow"]


def test_a_stage_alone_is_that_of_the_backbone() -> None:
    cfg = config(50)
    backbone = build_ode_resnet_backbone(cfg, PICTURE).eval()
    stage, channels = build_stage(cfg, "res5")
    stage.load_state_dict(backbone.res5.state_dict())
    x = torch.rand(1, 1024, 4, 6)
    assert torch.equal(stage(x), backbone.res5(x))
    assert stage(x).shape == (1, channels, 2, 3)
    with pytest.raises(UnknownNameError, match="res5"):
        build_stage(cfg, "res6")


def narrow(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.RESNETS.merge_from_list(["STEM_OUT_CHANNELS", 8, "RES2_OUT_CHANNELS", 16, "WIDTH_PER_GROUP", 4])
    return cfg


def dilated() -> CfgNode:
    cfg = config(50)
    cfg.MODEL.RESNETS.merge_from_list(["RES5_DILATION", 2, "OUT_FEATURES", ["res4", "res5"], "NORM", "FrozenBN"])
    return narrow(cfg)


def test_a_dilated_flow_with_the_weights_of_a_resnet_gives_its_bits() -> None:
    torch.manual_seed(0)
    theirs = dilated()
    theirs.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    resnet = build_backbone(theirs, PICTURE).eval()
    ode = build_ode_resnet_backbone(dilated(), PICTURE).eval()
    names = discrete_names(list(ode.state_dict()))
    ode.load_state_dict({n: resnet.state_dict()[names.get(n, n)] for n in ode.state_dict()})
    pictures = torch.rand(2, 3, 64, 96)
    a, b = ode(pictures), resnet(pictures)
    assert a["res5"].shape == (2, 128, 4, 6)  # the stride of res4
    assert torch.equal(a["res5"], b["res5"])
    a["res5"].square().mean().backward()
    b["res5"].square().mean().backward()
    gradients = dict(resnet.named_parameters())
    assert all(torch.equal(p.grad, gradients[names.get(n, n)].grad) for n, p in ode.named_parameters())


def test_the_pyramid_of_retinanet_is_detectron2s() -> None:
    cfg = narrow(config(50, ROLE="twin"))
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    theirs = build_backbone(cfg, PICTURE).eval()
    cfg.MODEL.BACKBONE.NAME = "build_ode_resnet_fpn_p6p7_backbone"
    twin = build_backbone(cfg, PICTURE).eval()
    cfg.MODEL.ODE.ROLE = "ode"
    ode = build_backbone(cfg, PICTURE).eval()
    twin.load_state_dict(theirs.state_dict())
    names = discrete_names(list(ode.state_dict()))
    ode.load_state_dict({n: theirs.state_dict()[names.get(n, n)] for n in ode.state_dict()})
    pictures = torch.rand(1, 3, 64, 64)
    a, b, c = twin(pictures), ode(pictures), theirs(pictures)
    assert set(c) == {"p3", "p4", "p5", "p6", "p7"}
    assert all(torch.equal(a[name], c[name]) and torch.equal(b[name], c[name]) for name in c)
    assert (twin.output_shape(), ode.output_shape()) == (theirs.output_shape(), theirs.output_shape())


def test_a_normalisation_of_another_kind_has_no_counterpart() -> None:
    names = {}
    for norm in ("GN", ""):
        cfg = narrow(config(50, STAGES=["res3"], PIECES="constant", NORM=norm))
        cfg.MODEL.RESNETS.NORM = "FrozenBN"
        names[norm] = discrete_names(list(build_ode_resnet_backbone(cfg, PICTURE).state_dict()))
    assert set(names["GN"].values()) == {f"res3.1.conv{k}.weight" for k in (1, 2, 3)}
    assert "res3.1.conv3.norm.weight" in names[""].values()
    with torch.device("meta"):
        both = build_ode_resnet_backbone(config(50, STAGES=["res3"], NORM="GN"), PICTURE)
    assert "res3.2.conv3.norm.weight" in discrete_names(list(both.state_dict())).values()


def test_fewer_pieces_may_last_as_long_as_the_blocks_they_stand_for() -> None:
    for pieces in ("constant", "piecewise", "hat"):
        count = 1 if pieces == "constant" else 2
        cfg = config(34, PIECES=pieces, NUM_PIECES=count, DURATION=5, STEPS=5, STAGES=["res4"])
        (block,) = flows(build_ode_resnet_backbone(cfg, PICTURE)).values()
        assert (block.duration, block.solver.steps) == (5.0, 5)
        assert pieces == "constant" or block.field.duration == 5.0
    with pytest.raises(ValueError, match="number above 0, not -1"):
        build_ode_resnet_backbone(config(DURATION=-1), PICTURE)


def test_a_detector_is_built_and_trains() -> None:
    cfg = fpn(config(STAGES=["res3"]))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.merge_from_list(["NAME", "StandardROIHeads", "IN_FEATURES", ["p2", "p3", "p4", "p5"]])
    cfg.MODEL.ROI_BOX_HEAD.merge_from_list(["NAME", "FastRCNNConvFCHead", "NUM_FC", 1, "POOLER_RESOLUTION", 7])
    model = build_model(cfg).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 64, "width": 64}])
    assert output["instances"].image_size == (64, 64)


# --- TorchScript ---


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("depth", [18, 50])
def test_a_backbone_becomes_a_script_as_detectron2s_does(depth: int, role: str) -> None:
    importlib.import_module("detectron2.export")  # which makes Detectron2's own ResNet and pyramid scriptable
    cfg = config(depth, ROLE=role)
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_ode_resnet_fpn_backbone(cfg, PICTURE).eval()
    picture = torch.randn(1, 3, 64, 96)
    script = torch.jit.script(backbone)
    with torch.no_grad():
        found, expected = script(picture), backbone(picture)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
