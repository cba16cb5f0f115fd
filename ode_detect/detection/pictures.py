"""Predicted and true boxes of pictures, as numbers to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode
from torch import nn

from ode_detect.media import printable
from ode_detect.media.images import read_image

from .data import test_loader


def detections(cfg: CfgNode, model: nn.Module, name: str, *, count: int) -> list[dict[str, Any]]:
    """Predict on the first pictures of a data set.

    Args:
        cfg: for reading pictures, and ``TEST.SCORE_THRESHOLD``: boxes below it count for AP and are noise to the eye.
        model: a Detectron2 detector.
        name: the data set.
        count: how many pictures.

    Returns:
        For each picture: ``image`` (RGB, uint8, (H, W, 3)), ``boxes`` and ``truth`` ((N, 4), pixels, corners),
        ``scores``, ``labels``, ``truth_labels``, ``crowd``, ``name``.
    """
    truth = {record["file_name"]: record for record in DatasetCatalog.get(name)}
    classes = MetadataCatalog.get(name).thing_classes
    shown: list[dict[str, Any]] = []
    with inference_context(model), torch.no_grad():
        for batch in test_loader(cfg, name):
            for example, output in zip(batch, model(batch), strict=True):
                found = output["instances"].to("cpu")
                found = found[found.scores >= cfg.TEST.SCORE_THRESHOLD]
                shown.append(_numbers(truth[example["file_name"]], found, classes))
            if len(shown) >= count:
                break
    return shown[:count]


def _numbers(record: dict[str, Any], predicted: Any, classes: list[str]) -> dict[str, Any]:
    objects = record.get("annotations", [])
    corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return {
        "image": read_image(record["file_name"], "RGB"),
        "boxes": predicted.pred_boxes.tensor.numpy(),
        "scores": predicted.scores.numpy(),
        "labels": [classes[i] for i in predicted.pred_classes.tolist()],
        "truth": np.asarray(corners, dtype=np.float64).reshape(-1, 4),
        "truth_labels": [classes[a["category_id"]] for a in objects],
        "crowd": [bool(a.get("iscrowd", 0)) for a in objects],
        "name": printable(record["file_name"].rsplit("/", 1)[-1]),
    }
