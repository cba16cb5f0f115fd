"""Predicted and true boxes of pictures, as numbers to draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode
from torch import nn

from ode_detect.detection.data.datasets import read_dataset
from ode_detect.detection.data.mapper import Mapper
from ode_detect.media.images import read_image
from ode_detect.media.names import printable


def detections(cfg: CfgNode, model: nn.Module, name: str, *, count: int) -> list[dict[str, Any]]:
    """Predict on pictures of a data set that are evenly spread over it: neighbours are often alike.

    Args:
        cfg: for reading pictures, and ``TEST.SCORE_THRESHOLD``: boxes below it count for AP and are noise to the eye.
        model: a Detectron2 detector.
        name: the data set.
        count: how many pictures, at most.

    Returns:
        For each picture: ``image`` (RGB, uint8, (H, W, 3)), ``boxes`` and ``truth`` ((N, 4), pixels, corners),
        ``scores``, ``labels``, ``truth_labels``, ``crowd``, ``name``.
    """
    records = read_dataset([name], tell=False)
    classes = MetadataCatalog.get(name).thing_classes
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    mapper = Mapper(cfg, is_train=False)
    shown: list[dict[str, Any]] = []
    with inference_context(model), torch.no_grad():
        for record in (records[i] for i in places.tolist()):
            found = model([mapper(record)])[0]["instances"].to("cpu")
            shown.append(_numbers(record, found[found.scores >= cfg.TEST.SCORE_THRESHOLD], classes))
    return shown


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
