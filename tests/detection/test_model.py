import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ode_detect.backbones import discrete_names
from ode_detect.deploy.convert import convert_for_config, restore_for_config
from ode_detect.detection.data.datasets import train_data
from ode_detect.detection.model import ODERes5ROIHeads
from ode_detect.detection.optimize import optimize_detector
from ode_detect.engine.build import build_network
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.config import load_config
from ode_detect.engine.tasks import get_task
from ode_detect.engine.weights import CheckpointError
from ode_detect.ode import ODEBlock, record_solves, solver_override
from ode_detect.task import ConfigError

from ..conftest import ROOT, SMALL_R50, like_trained

C4, DC5, RETINANET = "faster_rcnn_r101_c4_ode", "faster_rcnn_r101_dc5_ode", "retinanet_r101_fpn_ode"
MASKS = ("MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
STOCK = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads")
SMALL = {
    **SMALL_R50,
    "MODEL.WEIGHTS": "",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "8",
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
    "MODEL.RETINANET.NUM_CLASSES": "3",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
    "TEST.DETECTIONS_PER_IMAGE": "10",
}


def config(name: str = C4, *more: str) -> CfgNode:
    small = [word for item in SMALL.items() for word in item]
    return load_config(ROOT / "configs" / "detection" / f"{name}.yaml", [*small, *more])


def example() -> list[dict[str, Any]]:
    objects = Instances((64, 64))
    objects.gt_boxes = Boxes(torch.tensor([[4.0, 8.0, 40.0, 44.0]]))
    objects.gt_classes = torch.tensor([1])
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 8:44, 4:40] = True
    objects.gt_masks = BitMasks(mask)
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    return [{"image": picture, "height": 64, "width": 64, "instances": objects}]


def detections(model: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        fields = model.eval()(example())[0]["instances"].get_fields()
    return {name: value.tensor if isinstance(value, Boxes) else value for name, value in fields.items()}


def losses(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # heads draw the regions that they learn from
    with EventStorage():
        return model.train()(example())


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    """Detectron2's own C4 detector with masks."""
    torch.manual_seed(0)
    return like_trained(build_model(config(C4, *MASKS, *STOCK)))


@pytest.fixture
def stock_file(stock: nn.Module, tmp_path: Path) -> Path:
    torch.save({"model": stock.state_dict()}, tmp_path / "stock.pth")
    return tmp_path / "stock.pth"


def test_the_head_is_registered() -> None:
    assert ROI_HEADS_REGISTRY.get("ODERes5ROIHeads") is ODERes5ROIHeads


def test_a_checkpoint_of_detectron2s_c4_gives_its_bits(stock: nn.Module, stock_file: Path) -> None:
    ours = build_model(config(C4, *MASKS))
    coverage = Checkpointer(ours).load_weights(str(stock_file), whole=True)
    assert coverage is not None
    assert (coverage.missing, coverage.unused) == ([], ())
    assert isinstance(ours.roi_heads.res5[1].flow, ODEBlock)

    a, b = detections(ours), detections(stock)
    assert set(a) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert len(b["scores"]) > 0
    assert all(torch.equal(a[name], b[name]) for name in b)

    ours.zero_grad()
    stock.zero_grad()
    mine, theirs = losses(ours), losses(stock)
    assert "loss_mask" in theirs
    assert {k: v.item() for k, v in mine.items()} == {k: v.item() for k, v in theirs.items()}
    sum(mine.values()).backward()
    sum(theirs.values()).backward()
    gradients = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    names = discrete_names(list(ours.state_dict()))
    trained = {names.get(n, n): p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert set(trained) == set(gradients)
    assert any(name.startswith("roi_heads.res5.2.") for name in trained)
    assert all(torch.equal(trained[name], gradients[name]) for name in gradients)


def test_weights_of_imagenet_fill_res5_in_the_head(stock: nn.Module, tmp_path: Path) -> None:
    numbers = {
        re.sub(r"^(backbone|roi_heads)\.", "", name): value.numpy()
        for name, value in stock.state_dict().items()
        if ".res" in name or ".stem." in name
    }
    content = {"model": numbers, "__author__": "MSRA", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    ours = build_model(config())
    coverage = Checkpointer(ours).load_weights(str(tmp_path / "R-50.pkl"), whole=False)
    assert coverage is not None
    assert coverage.unused == ()
    assert [name for name in coverage.missing if ".res" in name or ".stem." in name] == []
    flow = ours.roi_heads.res5[1].flow.field
    assert np.array_equal(flow.pieces[1].conv2.weight.detach().numpy(), numbers["res5.2.conv2.weight"])
    content["model"] = {name: value for name, value in numbers.items() if not name.startswith("res5.2.")}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"roi_heads\.res5\.1\.flow\.field\.pieces\.1\.conv1\.weight: not in the"):
        Checkpointer(ours).load_weights(str(tmp_path / "R-50.pkl"), whole=False)


def test_the_roles_of_the_head() -> None:
    names = {role: set(build_model(config(C4, "MODEL.ODE.ROLE", role)).state_dict()) for role in ("twin", "ablation")}
    assert names["twin"] == set(build_model(config(C4, *STOCK)).state_dict())
    assert {name.split(".")[2] for name in names["ablation"] if ".res5." in name} == {"0"}
    without = build_model(config(C4, "MODEL.ODE.STAGES", "['res4']"))
    assert [n for n, m in without.named_modules() if isinstance(m, ODEBlock)] == ["backbone.res4.1.flow"]
    assert any(".res5.2." in name for name in without.state_dict())


def test_the_head_is_solved_as_the_config_and_the_dial_say() -> None:
    model = build_network(config(C4, "MODEL.ODE.FLOWS", "[{'FLOW': 'res5', 'STEPS': 1, 'METHOD': 'midpoint'}]"))
    assert model.roi_heads.res5[1].flow.solver.steps == 1
    with record_solves(model, measure=False) as record:
        detections(model)
    # 2 + 3 + 5 Euler steps in the backbone, and one of midpoint in the head.
    assert record.total.forward_evaluations == 10 + 2
    with solver_override(model, steps={"roi_heads.res5.1.flow": 3}), record_solves(model, measure=False) as record:
        detections(model)
    assert record.total.forward_evaluations == 10 + 6


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("MODEL.ODE.METHOD", "bosh3", "MODEL.ODE.PROJECTION", "none", "MODEL.ODE.GRADIENT", "backprop"),
        ("MODEL.ODE.PIECES", "constant", "MODEL.ODE.NORM", "GN", "MODEL.ODE.GRADIENT", "auto"),
    ],
    ids=["converted", "adaptive", "shared"],
)
def test_a_picture_without_detections_has_no_masks(more: tuple[str, ...]) -> None:
    model = like_trained(build_model(config(C4, *MASKS, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", *more)))
    assert detections(model)["pred_masks"].shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (C4, ("MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']"), "Use build_ode_resnet_backbone and set"),
        (C4, ("MODEL.ROI_HEADS.IN_FEATURES", "['res5']"), "IN_FEATURES is ['res5']. Set it to [res4]"),
        (C4, ("MODEL.RESNETS.RES5_DILATION", "2"), "RES5_DILATION is 2. Set it to 1"),
        (C4, ("MODEL.KEYPOINT_ON", "True"), "MODEL.KEYPOINT_ON is True. Set it to False"),
        (C4, ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"), "Set MODEL.ROI_HEADS.NAME ODERes5ROIHeads"),
        (DC5, ("MODEL.ROI_HEADS.NAME", "ODERes5ROIHeads"), "IN_FEATURES is ['res5']"),
        ("faster_rcnn_r101_fpn_ode", ("MODEL.ROI_HEADS.NAME", "ODERes5ROIHeads"), "StandardROIHeads, which takes"),
        (
            "faster_rcnn_r101_fpn_ode",
            ("MODEL.ROI_HEADS.NAME", "ODERes5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
            "this one gives p2, p3, p4, p5, p6",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(name: str, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_network(config(name, *more))


@pytest.mark.parametrize("name", [C4, DC5, "faster_rcnn_r101_c4_shared", "faster_rcnn_r101_dc5_shared", RETINANET])
def test_a_detector_trains_and_infers(name: str) -> None:
    model = like_trained(build_network(config(name)))
    sum(losses(model).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert len(detections(model)["scores"]) > 0


@pytest.mark.parametrize("name", ["mask_rcnn_r101_fpn_ode", C4])
def test_masks_of_a_data_set_are_learnt_and_predicted(name: str, squares: Path, tmp_path: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (tmp_path / "masks.json").write_text(json.dumps(content))
    entry = {"NAME": f"masks_{name}", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(tmp_path / "masks.json")}
    names = ("DATASETS.TRAIN", f"('masks_{name}',)", "DATASETS.TEST", f"('masks_{name}',)")
    data = ("DATASETS.CUSTOM", json.dumps([entry]), *names)
    sizes = ("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.ROI_HEADS.NUM_CLASSES", "1")
    cfg = config(name, *MASKS, *data, *sizes)
    get_task(cfg)  # registers the data set
    dicts, mapper = train_data(cfg)
    model = like_trained(build_network(cfg)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    with EventStorage():
        terms = model([mapper(record) for record in dicts[:2]])
    assert terms["loss_mask"].item() > 0
    sum(terms.values()).backward()
    assert all(float(p.grad.abs().max()) > 0 for n, p in model.roi_heads.mask_head.named_parameters())
    optimizer.step()
    found = detections(model)
    assert found["pred_masks"].shape == (len(found["scores"]), 64, 64)
    assert found["pred_masks"].dtype == torch.bool
    assert len(found["scores"]) > 0


@pytest.mark.parametrize(("name", "last"), [(C4, "roi_heads.res5"), (DC5, "backbone.res5")])
def test_a_conversion_is_lossless_and_comes_back(name: str, last: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    twin = like_trained(build_network(config(name, "MODEL.ODE.ROLE", "twin")))
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "horse"), 1)]
    torch.save({"model": twin.state_dict(), "categories": categories}, tmp_path / "twin.pth")
    certificate = convert_for_config(str(tmp_path / "twin.pth"), config(name), tmp_path / "ode")
    assert certificate.lossless
    assert certificate.runs[-1].flow == f"{last}.1.flow"
    assert certificate.runs[-1].blocks == (f"{last}.1", f"{last}.2")
    file = restore_for_config(tmp_path / "ode" / "ode_model.pth", config(name), tmp_path / "back")
    assert torch.load(tmp_path / "ode" / "ode_model.pth", weights_only=True)["categories"] == categories
    assert torch.load(file, weights_only=True)["categories"] == categories
    back = torch.load(file, weights_only=True)["model"]
    assert set(back) == set(twin.state_dict())
    assert all(torch.equal(back[n], t) for n, t in twin.state_dict().items())


@pytest.mark.parametrize("name", [C4, DC5])
def test_an_optimised_detector_finds_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = like_trained(build_network(config(name, "TEST.DETECTIONS_PER_IMAGE", "3"))).eval()
    for parameter in model.parameters():
        if parameter.dim() == 4 and not parameter.any():
            nn.init.kaiming_normal_(parameter)  # a new flow is the identity
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    fast, _ = optimize_detector(model, example(), precision="float32")
    ours, theirs = detections(fast), detections(model)
    assert torch.equal(ours["pred_classes"], theirs["pred_classes"])
    assert torch.allclose(ours["scores"], theirs["scores"], atol=1e-4)
    assert torch.allclose(ours["pred_boxes"], theirs["pred_boxes"], atol=1e-2)


def test_a_retinanet_is_not_optimised_as_a_whole() -> None:
    with pytest.raises(ValueError, match="this is a RetinaNet; use optimize_for_inference on its backbone"):
        optimize_detector(build_network(config(RETINANET)), example())
