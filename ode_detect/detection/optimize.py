"""A detector of Detectron2 made ready for inference: its networks, and what stands between them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ode_detect.ode.inference.optimize import (
    PRECISIONS,
    Optimization,
    Prepared,
    compute_in,
    copy_for_inference,
    named_tensors,
    require_compiler,
    select,
    take_and_give,
)

from .pooler import RowPooler

Example = list[dict[str, Any]]
Detector = Any  # Detectron2's modules come without types


def optimize_detector(
    model: nn.Module,
    example: Example | None = None,
    *,
    precision: str = "auto",
    tolerance: float = 0.01,
    compile: bool = False,
) -> tuple[nn.Module, Optimization]:
    """Make a copy of a detector that computes the same, faster. For inference only.

    Backbone, RPN head and box head are treated as by `ode_detect.ode.optimize_for_inference`; feature maps stay in
    their precision on the way from one to the next. Boxes, scores and other heads (masks, keypoints) are computed in
    float32. On a CPU, ROIAlign is computed by `RowPooler`. Anchors are kept for each size of feature maps.

    Args:
        model: a `GeneralizedRCNN`. It is not changed.
        example: a batch as the detector takes it, to compare and measure on; None takes one picture of noise, 480x640.
        precision: "float32", "bfloat16", or "auto": the faster one that is within the tolerance.
        tolerance: the largest relative error, in the norm, of a feature map and of what the RPN head and the box head
            give for it, the box head on the original's proposals; for float32 at most 1e-4 is allowed.
        compile: try torch.compile on the three networks too, and take it if it is faster. That takes minutes and needs
            a C++ compiler.

    Returns:
        The copy, and what was done.

    Raises:
        OptimizationError: an output differs by more than the tolerance.
        ValueError: another kind of model, an unknown precision, or a tolerance out of range.
        RuntimeError: compilation was asked for, and there is no C++ compiler.
    """
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(
            f"the parts of a GeneralizedRCNN are known here, and this is a {type(model).__name__}; "
            "use optimize_for_inference on its backbone."
        )
    batch = _noise(model) if example is None else example
    with torch.no_grad():
        proposals = _proposals(copy.deepcopy(model).eval(), batch)
    return select(
        model,
        prepare=lambda kind: _prepare(model, kind, compiled=False),
        outputs=lambda m: _outputs(m, batch, proposals),
        run=lambda m: m(batch),
        precision=precision,
        tolerance=tolerance,
        compiled=(lambda kind: _prepare(model, kind, compiled=True)) if compile else None,
    )


class CachedAnchors(nn.Module):
    """An anchor generator that computes the anchors of each size of feature maps once.

    Args:
        generator: Detectron2's.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.box_dim = generator.box_dim
        self._known: dict[tuple[tuple[int, ...], ...], list[Boxes]] = {}

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """The anchors of these feature maps, (N, C, H, W) each."""
        sizes = tuple(tuple(feature.shape[-2:]) for feature in features)
        if sizes not in self._known:
            if len(self._known) >= 16:
                self._known.clear()  # pictures of many sizes, as in COCO, must not fill the memory
            self._known[sizes] = self.generator(features)
        return self._known[sizes]


class FlattenRows(nn.Module):
    """Flatten (M, C, H, W) in the order in which channels-last memory has it: without a copy."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, H * W * C)."""
        return x.permute(0, 2, 3, 1).flatten(1)


def _prepare(model: Detector, precision: str, *, compiled: bool) -> Prepared:
    prepared = copy_for_inference(model)
    dtype = PRECISIONS[precision]
    detector: Detector = prepared.model
    if compiled:
        require_compiler(detector)
    networks = [detector.backbone]
    take_and_give(detector.backbone, takes=dtype, gives=None)
    if isinstance(detector.proposal_generator, RPN):
        rpn = detector.proposal_generator
        rpn.anchor_generator = CachedAnchors(rpn.anchor_generator)
        networks.append(rpn.rpn_head)
        take_and_give(rpn.rpn_head, takes=dtype, gives=torch.float32)
    elif detector.proposal_generator is not None:
        take_and_give(detector.proposal_generator, takes=torch.float32, gives=None)
    networks += _prepare_heads(detector.roi_heads, dtype, on_cpu=detector.device.type == "cpu")
    for network in networks:
        compute_in(network, precision, packed=not compiled)
        if compiled:
            network.compile()
    return prepared


def _prepare_heads(heads: Detector, dtype: torch.dtype, *, on_cpu: bool) -> list[nn.Module]:
    """Make the networks of the box head take and give the right dtypes; returns them."""
    if type(heads) is not StandardROIHeads:
        take_and_give(heads, takes=torch.float32, gives=None)
        return []
    for name in ("box_pooler", "mask_pooler", "keypoint_pooler"):
        pooler = getattr(heads, name, None)
        if isinstance(pooler, ROIPooler) and on_cpu and RowPooler.fits(pooler):
            setattr(heads, name, RowPooler(pooler))
        elif pooler is not None:
            take_and_give(pooler, takes=torch.float32, gives=None)
    for name in ("mask_head", "keypoint_head"):
        if getattr(heads, name, None) is not None:
            take_and_give(getattr(heads, name), takes=torch.float32, gives=None)
    if isinstance(heads.box_head, FastRCNNConvFCHead) and hasattr(heads.box_head, "flatten"):
        _flatten_rows(heads.box_head, heads.box_pooler.output_size)
    take_and_give(heads.box_head, takes=dtype, gives=None)
    take_and_give(heads.box_predictor, takes=dtype, gives=torch.float32)
    return [heads.box_head, heads.box_predictor]


@torch.no_grad()
def _flatten_rows(head: Detector, size: tuple[int, int]) -> None:
    """Put the columns of the first matrix in the order of `FlattenRows`."""
    weight = head.fc1.weight
    columns = weight.view(weight.shape[0], -1, *size).permute(0, 2, 3, 1).reshape(weight.shape)
    head.fc1.weight = nn.Parameter(columns.contiguous(), requires_grad=False)
    head.flatten = FlattenRows()


def _noise(model: Detector) -> Example:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 480, 640, generator=generator)
    picture = noise * model.pixel_std.cpu().float() + model.pixel_mean.cpu().float()
    return [{"image": picture.clamp(0, 255), "height": 480, "width": 640}]


def _proposals(model: Detector, batch: Example) -> list[Instances]:
    """The proposals of the original, on which the box heads are compared."""
    images = model.preprocess_image(batch)
    if model.proposal_generator is None:
        proposals = [example["proposals"] for example in batch]
    else:
        proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    return proposals


def _outputs(model: Detector, batch: Example, proposals: list[Instances]) -> dict[str, Tensor]:
    """Feature maps, and what the heads give for them, in float32."""
    features = model.backbone(model.preprocess_image(batch).tensor)
    compared: dict[str, Any] = dict(features)
    if isinstance(model.proposal_generator, RPN):
        logits, deltas = model.proposal_generator.rpn_head([features[f] for f in model.proposal_generator.in_features])
        # A level alone can be a handful of numbers; all levels compete with each other, and are compared together.
        compared["objectness"] = torch.cat([level.flatten() for level in logits])
        compared["proposal deltas"] = torch.cat([level.flatten() for level in deltas])
    heads = model.roi_heads
    if type(heads) is StandardROIHeads:
        pooled = heads.box_pooler([features[f] for f in heads.box_in_features], [p.proposal_boxes for p in proposals])
        compared["class scores"], compared["box deltas"] = heads.box_predictor(heads.box_head(pooled))
    return {name: tensor.float() for name, tensor in named_tensors(compared)}
