"""Evaluators of boxes: COCO AP by pycocotools, VOC AP by Detectron2."""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator


def build_evaluator(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator of a data set.

    Args:
        cfg: for the tasks (box, mask) and the number of detections per picture.
        name: the data set.
        output_dir: where predictions are written.
    """
    if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    # The compiled COCOeval gives the same numbers and is not there without a compiler.
    return COCOEvaluator(name, output_dir=output_dir, use_fast_impl=False, allow_cached_coco=False)


def metrics(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Metrics as fractions, from an evaluator's percents.

    One that does not exist (no large object, say) is left out, and so are those of single classes.

    Args:
        results: ``{"bbox": {"AP": 31.4, ...}}``.
    """
    boxes = results.get("bbox", {})
    return {key: value / 100 for key, value in boxes.items() if math.isfinite(value) and not key.startswith("AP-")}
