"""Detections in several copies of a picture, merged by Detectron2."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

import ode_detect.engine.tasks  # noqa: F401  registers what the configs name
from ode_detect.detection.augmentation import augmented
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config

from ..conftest import QUICKSTART, ROOT, SMALL_R50

KEYS = ["MODEL.DEVICE", "cpu", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
KEYS += ["TEST.DETECTIONS_PER_IMAGE", "10", "MODEL.RPN.POST_NMS_TOPK_TEST", "50"]


def detector(*more: str) -> tuple[CfgNode, nn.Module]:
    cfg = load_config(QUICKSTART, [*KEYS, *more])
    torch.manual_seed(0)
    model = build_network(cfg).eval()
    with torch.no_grad():
        for layer in (model.roi_heads.box_predictor.cls_score, model.proposal_generator.rpn_head.objectness_logits):
            layer.weight.mul_(80)  # scores that differ
    return cfg, model


def found(model: nn.Module, picture: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        instances = model([{"image": picture, "height": 64, "width": 96}])[0]["instances"]
    return instances.pred_boxes.tensor, instances.scores


def a_picture() -> Tensor:
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_one_copy_of_the_same_size_gives_what_the_detector_gives() -> None:
    cfg, model = detector("TEST.AUG.FLIP", "False")
    boxes, scores = found(model, a_picture())
    merged_boxes, merged_scores = found(augmented(cfg, model), a_picture())
    assert len(boxes) > 1
    torch.testing.assert_close(merged_scores, scores)
    torch.testing.assert_close(merged_boxes, boxes)


def test_with_mirrored_copies_a_mirrored_picture_has_mirrored_detections() -> None:
    cfg, model = detector()
    merging = augmented(cfg, model)
    boxes, scores = found(merging, a_picture())
    mirrored, same = found(merging, a_picture().flip(2))
    torch.testing.assert_close(same, scores, atol=1e-4, rtol=1e-4)
    back = torch.stack([96 - mirrored[:, 2], mirrored[:, 1], 96 - mirrored[:, 0], mirrored[:, 3]], dim=1)
    torch.testing.assert_close(back, boxes, atol=1e-2, rtol=1e-3)
    assert not torch.equal(found(model, a_picture())[1][: len(scores)], scores[:10])


def test_a_network_whose_predictions_cannot_be_merged_is_refused() -> None:
    words = [word for pair in SMALL_R50.items() for word in pair]
    cfg = load_config(ROOT / "configs" / "detection" / "retinanet_r101_fpn_ode.yaml", [*words, *KEYS[:6]])
    with pytest.raises(ValueError, match=r"this is a RetinaNet; set TEST\.AUG\.ENABLED False"):
        augmented(cfg, build_network(cfg))
    cfg, model = detector("MODEL.KEYPOINT_ON", "True")
    with pytest.raises(ValueError, match=r"MODEL\.KEYPOINT_ON is True"):
        augmented(cfg, model)
