import copy
from typing import Any

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

import ode_detect.backbones  # noqa: F401  registers the backbones
from ode_detect.detection import optimize
from ode_detect.detection.optimize import CachedAnchors, optimize_detector
from ode_detect.detection.pooler import RowPooler
from ode_detect.engine.config import load_config
from ode_detect.ode import ODEBlock, solver_override
from ode_detect.ode.inference.optimize import OptimizationError
from ode_detect.ode.inference.packing import can_pack

from ..conftest import ROOT


def detector(*overrides: str, config: str = "faster_rcnn_ode.yaml") -> nn.Module:
    """A narrow detector with weights under which it finds things."""
    torch.manual_seed(0)
    small = [
        *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
        *(
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "16",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            "8",
            "MODEL.FPN.OUT_CHANNELS",
            "16",
        ),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "50"),
    ]
    model = build_model(load_config(ROOT / "configs" / config, [*small, *overrides])).eval()
    for name, parameter in model.backbone.named_parameters():
        if ".flow." in name and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)  # a new flow is the identity
    for name, module in model.backbone.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.mul_(0.1)  # as trained blocks, these change the state a little; random ones amplify rounding
    for norm in (
        m for m in model.modules() if isinstance(m, FrozenBatchNorm2d) or type(m).__name__ == "FrozenBatchNorm2d"
    ):
        norm.register_forward_pre_hook(_take_statistics)
    with torch.no_grad():
        model.backbone(model.preprocess_image([batch()[0]]).tensor)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    predictor = getattr(model.roi_heads, "box_predictor", None)
    if isinstance(predictor, nn.Module) and hasattr(predictor, "cls_score"):
        nn.init.normal_(predictor.cls_score.weight, std=0.5)
        nn.init.normal_(predictor.bbox_pred.weight, std=0.2)
    return model


def _take_statistics(norm: Any, args: tuple[torch.Tensor]) -> None:
    norm.running_mean.copy_(args[0].mean((0, 2, 3)))
    norm.running_var.copy_(args[0].var((0, 2, 3)) + 0.01)


def batch() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    coarse = [torch.rand(1, 3, *size, generator=generator) * 255 for size in ((6, 8), (5, 9))]
    pictures = [
        nn.functional.interpolate(c, size=s, mode="bilinear")[0]
        for c, s in zip(coarse, ((96, 120), (90, 128)), strict=True)
    ]
    return [{"image": pictures[0], "height": 96, "width": 120}, {"image": pictures[1], "height": 180, "width": 256}]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return detector()


def check_same_detections(expected: list[dict[str, Any]], given: list[dict[str, Any]], at_least: int = 5) -> None:
    for one, other in zip(expected, given, strict=True):
        a, b = one["instances"], other["instances"]
        assert len(a) == len(b) >= at_least
        assert a.image_size == b.image_size
        torch.testing.assert_close(b.pred_boxes.tensor, a.pred_boxes.tensor, rtol=1e-3, atol=0.05)
        torch.testing.assert_close(b.scores, a.scores, rtol=1e-3, atol=1e-4)
        assert torch.equal(a.pred_classes, b.pred_classes)


# --- value ---


def test_the_detections_are_the_same(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    fast, report = optimize_detector(model, batch(), precision="float32")
    with torch.no_grad():
        check_same_detections(model(batch()), fast(batch()))
        check_same_detections(model(batch()[1:]), fast(batch()[1:]))  # other sizes, other anchors
    norms = sum(type(m).__name__ == "FrozenBatchNorm2d" for m in model.modules())
    assert (report.folded, report.kept) == (norms, {})
    assert max(report.errors.values()) < 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(fast.roi_heads.box_pooler, RowPooler)
    assert isinstance(fast.proposal_generator.anchor_generator, CachedAnchors)
    assert report.packed == 0


def test_bfloat16_is_used_all_the_way(model: nn.Module) -> None:
    fast, report = optimize_detector(model, batch(), precision="bfloat16", tolerance=0.2)
    if can_pack():
        assert report.packed == sum(isinstance(m, nn.Conv2d) for m in model.modules())
        assert all("Packed" in type(m).__name__ for m in fast.backbone.lateral_convs + fast.backbone.output_convs)
    seen = {}
    for name in (
        "roi_heads.box_pooler",
        "roi_heads.box_head",
        "roi_heads.box_predictor",
        "proposal_generator.rpn_head",
    ):
        fast.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        (first, _) = fast(batch())
    assert seen["roi_heads.box_pooler"].dtype == seen["roi_heads.box_head"].dtype == torch.bfloat16
    logits, _ = seen["proposal_generator.rpn_head"]
    scores, _ = seen["roi_heads.box_predictor"]
    assert logits[0].dtype == scores.dtype == first["instances"].scores.dtype == torch.float32
    assert set(report.errors) == {
        *("p2", "p3", "p4", "p5", "p6", "objectness", "proposal deltas", "class scores", "box deltas")
    }
    assert 1e-4 < report.errors["p5"] < 0.2


@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"],
        ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
        ["MODEL.ROI_BOX_HEAD.NUM_CONV", "1", "MODEL.ROI_BOX_HEAD.CONV_DIM", "8"],
    ],
    ids=["masks", "cascade", "convolutions in the box head"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_heads(precision: str, overrides: list[str]) -> None:
    model = detector(*overrides)
    fast, _ = optimize_detector(model, batch()[:1], precision=precision, tolerance=0.3)
    with torch.no_grad():
        expected, given = model(batch()[:1]), fast(batch()[:1])
    if precision == "float32":
        check_same_detections(expected, given, at_least=0)
    assert given[0]["instances"].scores.dtype == torch.float32


def test_the_original_stays_in_the_mode_of_each_part(model: nn.Module) -> None:
    original = copy.deepcopy(model).train()
    original.backbone.eval()  # as one trains the heads alone
    before = {name: module.training for name, module in original.named_modules()}
    optimize_detector(original, batch()[:1], precision="float32")
    assert {name: module.training for name, module in original.named_modules()} == before


def test_flows_can_be_solved_in_another_way(model: nn.Module) -> None:
    fast, _ = optimize_detector(model, batch(), precision="float32")
    with torch.no_grad():
        at_full = model(batch())
        with solver_override(model, steps=2), solver_override(fast, steps=2):
            at_two = model(batch())
            check_same_detections(at_two, fast(batch()), at_least=0)
    assert any(isinstance(m, ODEBlock) for m in fast.modules())
    a, b = at_full[0]["instances"].scores, at_two[0]["instances"].scores
    assert len(a) != len(b) or not torch.allclose(a, b, rtol=1e-3)


# --- contract ---


def test_anchors_are_computed_once_for_each_size(model: nn.Module) -> None:
    generator = model.proposal_generator.anchor_generator
    cached = CachedAnchors(generator)
    levels = [torch.zeros(1, 1, 24 // 2**i, 32 // 2**i) for i in range(5)]
    first = cached(levels)
    assert cached([level + 1 for level in levels])[0] is first[0]
    for ours, theirs in zip(first, generator(levels), strict=True):
        assert torch.equal(ours.tensor, theirs.tensor)
    assert len(cached([level[..., :-1] for level in levels[:1]] + levels[1:])[0]) < len(first[0])


def test_an_example_is_made_where_none_is_given(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(optimize, "select", lambda *args, outputs, **kwargs: seen.append(outputs(model)))
    optimize_detector(model)
    assert seen[0]["p2"].shape == (1, 16, 120, 160)


def test_a_wrong_detector_is_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(module: nn.Module, precision: str, *, packed: bool) -> None:
        for parameter in module.parameters():
            parameter.data.mul_(1.01)

    monkeypatch.setattr(optimize, "compute_in", worse)
    with pytest.raises(OptimizationError, match=r"within 0.0001, and in float32 .* differs by"):
        optimize_detector(model, batch())


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="this is a Conv2d; use optimize_for_inference"):
        optimize_detector(nn.Conv2d(3, 3, 1))
