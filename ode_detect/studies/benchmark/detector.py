"""Sections ``detector`` and ``dial``: Faster R-CNN on ResNet-101-FPN, stock against ours, and the cost of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import Tensor, nn

from ode_detect.detection.optimize import optimize_detector
from ode_detect.ode import FixedStep, solver_override, to_ode
from ode_detect.ode.flows import find_flow, flows_of
from ode_detect.ode.inference.optimize import relative_errors
from ode_detect.studies.timing import Case, Ratio, Side

FULL_AIM, HALF_AIM, FEATURES_AIM = 1 / 4, 1 / 6, 0.01
LEVELS = ("p2", "p3", "p4", "p5", "p6")
SIZE, QUICK_SIZE = (480, 640), (64, 64)
DIAL = (22, 11, 6, 3)
# Residual branches of a trained ResNet are small compared with the state; so are these.
_BRANCH = 0.2
_RCNN = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": list(LEVELS),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
_QUICK = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
}


def cases(*, quick: bool) -> Iterator[Case]:
    """The whole detector: stock, and ours optimised, at full and at half the steps of res4."""
    stock, batch = stock_detector(quick=quick)
    ours, _ = to_ode(stock, example=batch)
    sides = {
        "stock Detectron2": Side("baseline", partial(_infer, stock, batch)),
        "stock Detectron2, bfloat16 autocast": Side(
            "baseline",
            partial(_in_autocast, stock, batch),
            metrics={"feature_difference": _autocast_error(stock, batch)},
        ),
    }
    ratios = []
    for precision in ("float32", "bfloat16"):
        # How far the features are off is measured and stated here, not refused.
        fast, done = optimize_detector(ours, batch, precision=precision, tolerance=0.999)
        error = max(error for name, error in done.errors.items() if name in LEVELS)
        steps = _steps(fast)
        for name, count in (("", steps), (", half the steps of res4", steps // 2)):
            ours_name = f"optimised, {precision}{name}"
            sides[ours_name] = Side(
                "ode",
                partial(_infer, fast, batch, count),
                cost={"steps": count},
                metrics={"feature_difference": error} if count == steps else {},
            )
            aim = FULL_AIM if count == steps else HALF_AIM
            ratios.append(Ratio(ours_name, "stock Detectron2", aim if precision == "bfloat16" else None))
            if count == steps:
                ratios.append(Ratio(ours_name, "stock Detectron2", FEATURES_AIM, "feature_difference"))
    ratios.append(Ratio("optimised, bfloat16", "stock Detectron2, bfloat16 autocast"))
    ratios.append(Ratio("stock Detectron2, bfloat16 autocast", "stock Detectron2", quantity="feature_difference"))
    height, width = batch[0]["image"].shape[-2:]
    yield Case(f"R-101-FPN Faster R-CNN, 1x3x{height}x{width}", sides, ratios)


def dial_cases(*, quick: bool) -> Iterator[Case]:
    """The backbone as it is, by the steps of its res4."""
    stock, batch = stock_detector(quick=quick)
    backbone, _ = to_ode(stock.backbone.bottom_up, example=stock.preprocess_image(batch).tensor)
    image = stock.preprocess_image(batch).tensor
    full = _steps(backbone)
    counts = [full, *(steps for steps in DIAL if steps < full)]
    sides = {
        f"{steps} steps": Side("ode", partial(_features, backbone, image, steps), cost={"steps": steps})
        for steps in counts
    }
    first, *others = sides
    yield Case(
        f"R-101 backbone, 1x3x{image.shape[-2]}x{image.shape[-1]}, by the steps of res4",
        sides,
        [Ratio(name, first) for name in others],
    )


def stock_detector(*, quick: bool) -> tuple[Any, list[dict[str, Any]]]:
    """Detectron2's Faster R-CNN with random weights that keep every layer in range, and a batch of one picture."""
    cfg: CfgNode = get_cfg()
    for key, value in {**_RCNN, **(_QUICK if quick else {})}.items():
        cfg.merge_from_list([key, value])
    height, width = QUICK_SIZE if quick else SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = build_model(cfg).eval()
        batch = [{"image": _picture(height, width), "height": height, "width": width}]
        _set_in_range(detector, batch)
    return detector, batch


@torch.no_grad()
def _set_in_range(detector: Any, batch: list[dict[str, Any]]) -> None:
    """Give the frozen normalisations the statistics of a picture, and the heads outputs as wide as trained ones."""

    def measure(norm: Any, arguments: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(arguments[0].mean((0, 2, 3)))
        norm.running_var.copy_(arguments[0].var((0, 2, 3), correction=0) + 1e-3)

    blocks = [m for m in detector.modules() if isinstance(getattr(m, "conv2", None), nn.Module)]
    for block in blocks:
        last = getattr(block, "conv3", block.conv2)
        last.norm.weight.fill_(_BRANCH if block.shortcut is None else 1.0)
    hooks = [
        m.register_forward_pre_hook(measure) for m in detector.backbone.modules() if isinstance(m, FrozenBatchNorm2d)
    ]
    images = detector.preprocess_image(batch)
    features = detector.backbone(images.tensor)
    for hook in hooks:
        hook.remove()
    rpn, heads = detector.proposal_generator, detector.roi_heads
    hidden = F.relu(rpn.rpn_head.conv(features["p3"]))
    _widen(rpn.rpn_head.objectness_logits, hidden, 2.0)
    _widen(rpn.rpn_head.anchor_deltas, hidden, 0.3)
    proposals, _ = rpn(images, features, None)
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], [p.proposal_boxes for p in proposals])
    hidden = heads.box_head(pooled)
    _widen(heads.box_predictor.cls_score, hidden, 1.5)
    _widen(heads.box_predictor.bbox_pred, hidden, 0.5)
    heads.box_predictor.cls_score.bias[-1] = 6.0  # mostly background, as in a picture


def _widen(layer: Any, inputs: Tensor, deviation: float) -> None:
    layer.weight.mul_(deviation / layer(inputs).std())


def _picture(height: int, width: int) -> Tensor:
    """Smooth shapes of several sizes, BGR in 0..255, uint8, shape (3, H, W)."""
    picture = torch.full((1, 3, height, width), 110.0)
    for share, contrast in ((80, 30.0), (20, 30.0), (5, 25.0), (2, 20.0)):
        coarse = torch.randn(1, 3, max(height // share, 1), max(width // share, 1))
        picture += contrast * F.interpolate(coarse, size=(height, width), mode="bilinear")
    return picture[0].clamp(0, 255).round().to(torch.uint8)


def _steps(model: nn.Module) -> int:
    """The steps of res4."""
    flows = flows_of(model)
    solver = flows[find_flow(flows, "res4")].solver
    assert isinstance(solver, FixedStep), "a converted flow is solved in fixed steps"
    return solver.steps


@torch.no_grad()
def _infer(detector: nn.Module, batch: list[dict[str, Any]], steps: int | None = None) -> object:
    if steps is None:
        return detector(batch)
    with solver_override(detector, steps={"res4": steps}):
        return detector(batch)


@torch.no_grad()
def _in_autocast(detector: nn.Module, batch: list[dict[str, Any]]) -> object:
    with torch.autocast("cpu", torch.bfloat16):
        return detector(batch)


@torch.no_grad()
def _autocast_error(detector: Any, batch: list[dict[str, Any]]) -> float:
    """What bfloat16 does to the feature maps of the stock detector: how much these random weights enlarge rounding."""
    image = detector.preprocess_image(batch).tensor
    expected = detector.backbone(image)
    with torch.autocast("cpu", torch.bfloat16):
        features = detector.backbone(image)
    return max(relative_errors(expected, {name: part.float() for name, part in features.items()}).values())


@torch.no_grad()
def _features(backbone: nn.Module, image: Tensor, steps: int) -> object:
    with solver_override(backbone, steps={"res4": steps}):
        return backbone(image)
