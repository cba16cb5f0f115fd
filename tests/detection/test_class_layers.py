"""A detector whose classes are put in another order finds the same under the same names."""

import copy

import pytest
import torch
from torch import nn

import ode_detect.engine.tasks  # noqa: F401  registers what the configs name
from ode_detect.detection.class_layers import class_rows
from ode_detect.engine.build import build_network
from ode_detect.engine.classes import put_in_rows
from ode_detect.engine.config import load_config

from ..conftest import ROOT, SMALL_R50, like_trained

SMALL = {
    **SMALL_R50,
    "MODEL.WEIGHTS": "",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "8",
    "MODEL.ROI_HEADS.NUM_CLASSES": "3",
    "MODEL.RETINANET.NUM_CLASSES": "3",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
    "TEST.DETECTIONS_PER_IMAGE": "20",
}
MASKS = {"MODEL.MASK_ON": "True", "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead"}
AGNOSTIC = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": "True"}
CASES = {
    "C4 with masks": ("faster_rcnn_r101_c4_ode", MASKS, {"cls_score", "bbox_pred", "predictor"}),
    "boxes and masks of all classes": (
        "faster_rcnn_r101_c4_ode",
        MASKS | AGNOSTIC | {"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": "True"},
        {"cls_score"},
    ),
    "RetinaNet": ("retinanet_r101_fpn_ode", {}, {"cls_score"}),
    "Cascade": ("faster_rcnn_r101_dc5_ode", AGNOSTIC | {"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}, {"cls_score"}),
}


def detector(config: str, keys: dict[str, str]) -> nn.Module:
    words = [word for pair in {**SMALL, **keys}.items() for word in pair]
    torch.manual_seed(0)
    model = like_trained(build_network(load_config(ROOT / "configs" / "detection" / f"{config}.yaml", words))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("cls_score.weight") or "predictor.weight" in name or "bbox_pred.weight" in name:
                parameter.mul_(30)  # classes that differ
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_classes_change_places_and_nothing_else(case: str) -> None:
    config, keys, layers = CASES[case]
    model = detector(config, keys)
    order = [2, 0, 1]  # no inverse of itself
    rows = class_rows(model, order)
    assert {name.split(".")[-2] for name in rows} == layers
    other = copy.deepcopy(model)
    put_in_rows(other, rows)
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    example = [{"image": picture, "height": 64, "width": 64}]
    with torch.no_grad():
        before, after = (m(example)[0]["instances"] for m in (model, other))
    assert len(before.pred_classes.unique()) > 1
    # Which comes first of equal scores is nobody's promise.
    one, two = (found.scores.argsort(stable=True, descending=True) for found in (before, after))
    torch.testing.assert_close(after.scores[two], before.scores[one])
    torch.testing.assert_close(after.pred_boxes.tensor[two], before.pred_boxes.tensor[one])
    assert torch.tensor(order)[after.pred_classes[two]].tolist() == before.pred_classes[one].tolist()
    if before.has("pred_masks"):
        assert torch.equal(after.pred_masks[two], before.pred_masks[one])
