"""Weights of ResNets reach the flows by any checkpointer, Detectron2's own among them."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_backbone, build_model
from torch import nn

from ode_detect.engine.config import load_config
from ode_detect.ode import ODEBlock

from ..conftest import ROOT, like_trained

ODE, STOCK = "build_ode_resnet_fpn_backbone", "build_resnet_fpn_backbone"
BRANCHES = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
KINDS = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}


def config(backbone: str = ODE, *more: object) -> CfgNode:
    overrides = ["MODEL.RESNETS.DEPTH", "50", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", backbone, *map(str, more)]
    return load_config(ROOT / "configs" / "faster_rcnn_ode.yaml", overrides)


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    torch.manual_seed(0)
    return like_trained(build_model(config(STOCK)).eval())


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items() if "pixel" not in name}


def zoo_detector(stock: nn.Module) -> dict:
    return {"model": arrays(stock), "__author__": "Detectron2 Model Zoo"}


def zoo_backbone(stock: nn.Module) -> dict:
    model = arrays(stock.backbone.bottom_up) | {"stem.fc.weight": np.zeros((10, 2048), np.float32)}
    return {"model": model, "__author__": "torchvision", "matching_heuristics": True}


def caffe2_backbone(stock: nn.Module) -> dict:
    blobs = {}
    for name, value in arrays(stock.backbone.bottom_up).items():
        stage, *rest = name.split(".", 3)
        kind = KINDS.get(name.removeprefix("stem.conv1.") if stage == "stem" else rest[2])
        if kind is None:
            continue  # the statistics are folded
        if stage == "stem":
            blobs["conv1_w" if kind == "w" else f"res_conv1_{kind}"] = value
        else:
            blobs[f"{stage}_{rest[0]}_{BRANCHES[rest[1]]}_{kind}"] = value
    return blobs


def inside_flows(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.named_parameters() if ".flow.field." in n and n.endswith(".weight")}


def features(model: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.eval().backbone.bottom_up(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))


def same_features(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = features(ours), features(theirs)
    return all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("content", [zoo_detector, zoo_backbone, caffe2_backbone])
def test_detectron2s_checkpointer_fills_all_convolutions_in_flows(content, stock: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content(stock)))
    torch.manual_seed(1)
    ours, theirs = build_model(config()), build_model(config(STOCK))
    before = {name: weight.clone() for name, weight in inside_flows(ours).items()}
    incompatible = DetectionCheckpointer(ours).load(str(path))
    DetectionCheckpointer(theirs).load(str(path))
    assert len(before) == 36
    assert [name for name, weight in inside_flows(ours).items() if torch.equal(weight, before[name])] == []
    assert same_features(ours, theirs)
    assert "model" not in incompatible


def test_detectron2s_trainer_begins_with_the_weights_of_the_zoo(stock: nn.Module, tmp_path: Path) -> None:
    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> list:
            return []

    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(zoo_backbone(stock)))
    cfg = config(ODE, "MODEL.WEIGHTS", path, "OUTPUT_DIR", tmp_path / "run")
    (tmp_path / "run").mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    for writer in trainer._hooks[-1]._writers:
        writer.close()
    assert same_features(trainer.model, stock)


def test_a_checkpoint_of_the_twin_loads_strictly(stock: nn.Module) -> None:
    ours = build_model(config())
    ours.load_state_dict(stock.state_dict(), strict=True)
    assert same_features(ours, stock)
    # And so it does into a copy, and its own into itself.
    clone = copy.deepcopy(build_model(config()))
    clone.load_state_dict(stock.state_dict(), strict=True)
    assert same_features(clone, stock)
    ours.load_state_dict(clone.state_dict(), strict=True)


def test_what_is_missing_or_does_not_fit_is_refused_by_a_strict_load(stock: nn.Module) -> None:
    backbone, weights = build_backbone(config()), stock.backbone.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*res4\.1\.flow\.field\.pieces\.2\.conv2\.weight"):
        backbone.load_state_dict({n: v for n, v in weights.items() if "res4.3.conv2.weight" not in n})
    other = weights | {"bottom_up.res4.3.conv2.weight": torch.zeros(7, 7, 3, 3)}
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*pieces\.2\.conv2\.weight.*Unexpected.*up\.res4\.3\.conv2"):
        backbone.load_state_dict(other)
    assert "bottom_up.res4.3.conv2.weight" in weights


@pytest.mark.parametrize("heuristics", [True, False])
def test_a_block_of_another_shape_is_left_out_and_the_rest_filled(heuristics, stock: nn.Module, tmp_path: Path) -> None:
    content = zoo_backbone(stock) if heuristics else zoo_detector(stock)
    name = next(n for n in content["model"] if n.endswith("res4.3.conv2.weight"))
    content["model"][name] = np.zeros((7, 7, 3, 3), np.float32)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content))
    ours = build_model(config())
    before = {name: weight.clone() for name, weight in inside_flows(ours).items()}
    DetectionCheckpointer(ours).load(str(tmp_path / "weights.pkl"))
    same = [name for name, weight in inside_flows(ours).items() if torch.equal(weight, before[name])]
    assert same == ["backbone.bottom_up.res4.1.flow.field.pieces.2.conv2.weight"]


def test_res5_in_the_head_is_filled(tmp_path: Path) -> None:
    def build(role: str) -> nn.Module:
        keys = ["MODEL.RESNETS.DEPTH", "50", "MODEL.DEVICE", "cpu", "MODEL.ODE.ROLE", role]
        return build_model(load_config(ROOT / "configs" / "detection" / "faster_rcnn_r101_c4_ode.yaml", keys))

    torch.manual_seed(2)
    twin, ours = like_trained(build("twin")), build("ode")
    names = {name.removeprefix("backbone.").removeprefix("roi_heads."): v for name, v in arrays(twin).items()}
    content = {"model": names, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    DetectionCheckpointer(ours).load(str(tmp_path / "R-50.pkl"))
    field = ours.roi_heads.res5[1].flow.field
    assert torch.equal(field.pieces[1].conv2.weight, twin.roi_heads.res5[2].conv2.weight)
    state = torch.randn(1, 1024, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours.eval().roi_heads.res5(state), twin.eval().roi_heads.res5(state))


def test_a_flow_of_constant_weights_takes_its_first_block() -> None:
    shared = build_backbone(config(ODE, "MODEL.ODE.PIECES", "constant"))
    twin = build_backbone(config(ODE, "MODEL.ODE.ROLE", "twin"))
    shared.load_state_dict(twin.state_dict(), strict=False)
    assert torch.equal(shared.bottom_up.res4[1].flow.field.conv2.weight, twin.bottom_up.res4[1].conv2.weight)
    assert sum(isinstance(m, ODEBlock) for m in shared.modules()) == 4
