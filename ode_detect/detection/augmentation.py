"""Test-time augmentation of detectors: Detectron2's, where it fits."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, PanopticFPN
from torch import nn


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A detector that merges what a detector finds in resized and mirrored copies of a picture.

    Args:
        cfg: ``TEST.AUG`` names the sizes, and whether there are mirrored copies.
        model: a `GeneralizedRCNN` with boxes, or boxes and masks.

    Returns:
        Detectron2's `GeneralizedRCNNWithTTA` of the model, which takes and gives the same.

    Raises:
        ValueError: another kind of model.
    """
    if not isinstance(model, GeneralizedRCNN) or isinstance(model, PanopticFPN):
        raise ValueError(
            f"the detections in copies of a picture are merged for a GeneralizedRCNN, and this is a "
            f"{type(model).__name__}; set TEST.AUG.ENABLED False."
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "the keypoints in copies of a picture are not merged, and MODEL.KEYPOINT_ON is True; set TEST.AUG.ENABLED "
            "False."
        )
    return GeneralizedRCNNWithTTA(cfg, model)
