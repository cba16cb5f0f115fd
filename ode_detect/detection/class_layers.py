"""Where in a detector the classes are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import nn


def class_rows(model: nn.Module, order: Sequence[int]) -> dict[str, list[int]]:
    """The rows of the class layers of a detector, with its classes in another order.

    Args:
        model: a detector of Detectron2: R-CNN (with boxes or masks of each class or of all), Cascade R-CNN, RetinaNet.
        order: which class comes first, second, ...

    Returns:
        The numbers of the rows in the new order, for each tensor with rows of single classes, by name.
    """
    classes = len(order)
    rows: dict[str, list[int]] = {}
    for path, module in model.named_modules():
        part: Any = module  # Detectron2's modules come without types
        layers: dict[str, list[int]] = {}
        if isinstance(module, FastRCNNOutputLayers):
            # The last row is the background's.
            layers["cls_score"] = [*order, classes]
            coordinates = len(part.box2box_transform.weights)
            if part.bbox_pred.out_features == classes * coordinates:
                layers["bbox_pred"] = [coordinates * one + i for one in order for i in range(coordinates)]
            if hasattr(part, "fed_loss_cls_weights"):
                rows[f"{path}.fed_loss_cls_weights"] = list(order)
        elif isinstance(module, MaskRCNNConvUpsampleHead) and part.predictor.out_channels == classes:
            layers["predictor"] = list(order)
        elif isinstance(module, RetinaNetHead):
            anchors = part.cls_score.out_channels // classes
            layers["cls_score"] = [anchor * classes + one for anchor in range(anchors) for one in order]
        rows |= {f"{path}.{layer}.{kind}": index for layer, index in layers.items() for kind in ("weight", "bias")}
    return rows
