"""Registered with Detectron2 for detection, in addition to the backbones: the head of C4 detectors."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from ode_detect.backbones import build_stage


@ROI_HEADS_REGISTRY.register()
class ODERes5ROIHeads(Res5ROIHeads):
    """Detectron2's C4 head with the tail of res5 as a flow, as its twin or as its ablation.

    The regions of res4 go through res5: its transition, then what ``MODEL.ODE.ROLE`` says if ``MODEL.ODE.STAGES`` names
    res5. The weights are called as in Detectron2's C4 detectors, ``roi_heads.res5.0.conv1.weight`` and so on; those of
    the flow are ``roi_heads.res5.1.flow.field...``. Boxes and masks share the features, as in Detectron2.

    The backbone is `ode_detect.backbones.build_ode_resnet_backbone` with ``MODEL.RESNETS.OUT_FEATURES [res4]``. An
    adaptive method takes one step size for all regions of a batch.

    Source: He et al. 2016, appendix A.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        """Read the config.

        Args:
            cfg: keys of Detectron2's ``Res5ROIHeads``, and ``MODEL.ODE``.
            input_shape: of the backbone's feature maps.

        Raises:
            ValueError: the regions are not those of res4, the backbone has a res5 of its own, res5 would be dilated, or
                keypoints are asked for.
        """
        _check(cfg, input_shape)
        return super().from_config(cfg, input_shape)

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        return build_stage(cfg, "res5")


def head_name(cfg: CfgNode) -> str:
    """Which node of ``MODEL`` holds the number of classes and the score threshold: "RETINANET" or "ROI_HEADS"."""
    return "RETINANET" if "Retina" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"


def _check(cfg: CfgNode, input_shape: dict[str, Any]) -> None:
    features = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    if features != ["res4"]:
        raise ValueError(
            f"ODERes5ROIHeads makes res5 of the regions of res4, and MODEL.ROI_HEADS.IN_FEATURES is {features}. Set it "
            "to [res4], or MODEL.ROI_HEADS.NAME to StandardROIHeads, which takes other feature maps."
        )
    if "res4" not in input_shape or "res5" in input_shape:
        raise ValueError(
            f"ODERes5ROIHeads takes a backbone that gives res4 and has no res5, since it has one itself, and this one "
            f"gives {', '.join(input_shape)}. Use build_ode_resnet_backbone and set MODEL.RESNETS.OUT_FEATURES [res4]."
        )
    if cfg.MODEL.RESNETS.RES5_DILATION != 1:
        raise ValueError(
            f"the res5 of ODERes5ROIHeads is not dilated, and MODEL.RESNETS.RES5_DILATION is "
            f"{cfg.MODEL.RESNETS.RES5_DILATION}. Set it to 1; DC5 is res5 in the backbone and StandardROIHeads."
        )
    if cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "ODERes5ROIHeads predicts boxes and masks, and MODEL.KEYPOINT_ON is True. Set it to False, or use "
            "StandardROIHeads for keypoints."
        )
