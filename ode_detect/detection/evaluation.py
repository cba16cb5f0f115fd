"""Evaluators of boxes: AP by pycocotools or Detectron2's VOC code, and what is right at IoU 0.5."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec, voc_ap, voc_eval
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.cocoeval import COCOeval

from ode_detect.media.errors import DatasetError

from .matching import Matches, complete, load_detections, match

logger = logging.getLogger("ode_detect.detection")

Record = Callable[[Matches], Mapping[str, float]]


def build_evaluator(cfg: CfgNode, name: str, output_dir: str, record: Record = lambda matches: {}) -> DatasetEvaluator:
    """The evaluator of a data set.

    Its results are ``bbox`` (AP in percent, as Detectron2 gives it), ``segm`` where the network has masks, and
    ``scores``: what ``record`` makes of the matches at IoU 0.5.

    Args:
        cfg: for the tasks (box, mask), the number of detections per picture and ``TEST.SCORE_THRESHOLD``.
        name: the data set.
        output_dir: where predictions are written.
        record: is given the matches, on the main process, and returns further metrics.

    Raises:
        DatasetError: an XML file of a VOC data set cannot be read.
    """
    kind = VOCEvaluator if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc" else BoxEvaluator
    return kind(cfg, name, output_dir, record)


def protocol(cfg: CfgNode) -> tuple[str, ...]:
    """How the metrics are computed, in a few words."""
    return (
        f"AP by pycocotools (VOC: by Detectron2), at most {_most_detections(cfg)} detections a picture",
        f"precision, recall and f1 over all classes together at IoU 0.5 and a score of {cfg.TEST.SCORE_THRESHOLD:g} or "
        "more, matched as by pycocotools",
        "best_f1 is an upper bound, its threshold chosen on the same data",
    )


def metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Metrics as fractions, from an evaluator's percents.

    One that does not exist (no large object, say) is left out, and so are those of single classes.

    Args:
        results: ``{"bbox": {"AP": 31.4, ...}, "segm": {...}, "scores": {"f1": 0.5, ...}}``.
    """
    values = {key: value / 100 for key, value in results.get("bbox", {}).items() if not key.startswith("AP-")}
    masks = results.get("segm", {})
    values |= {f"mask_{key}": masks[key] / 100 for key in ("AP", "AP50", "AP75") if key in masks}
    values |= results.get("scores", {})
    return {key: value for key, value in values.items() if math.isfinite(value)}


class BoxEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator, which also hands on what pycocotools matched.

    For any data set: annotations that are not COCO JSON are converted again each time. An object marked ``difficult``
    is ignored. A detection with a score or box that is not finite is left out. A detector that finds nothing has AP 0.

    The arguments are those of `build_evaluator`.
    """

    def __init__(self, cfg: CfgNode, name: str, output_dir: str, record: Record) -> None:
        metadata = MetadataCatalog.get(name)
        converts = not hasattr(metadata, "json_file")
        tasks = ("bbox", "segm", *(["keypoints"] if cfg.MODEL.KEYPOINT_ON else [])) if cfg.MODEL.MASK_ON else None
        try:
            super().__init__(
                name,
                tasks=tasks,
                output_dir=output_dir,
                max_dets_per_image=_most_detections(cfg),
                # The compiled COCOeval gives the same numbers, but not the matches, and needs a compiler.
                use_fast_impl=False,
                allow_cached_coco=False,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            )
        finally:
            # Detectron2 would take the conversion for the data set's own file from now on, whatever becomes of it.
            if converts and hasattr(metadata, "json_file"):
                del metadata.json_file
        # Detectron2's conversion leaves out an empty list of annotations.
        if converts and "annotations" not in self._coco_api.dataset:
            self._do_evaluation, self._kpt_oks_sigmas = True, cfg.TEST.KEYPOINT_OKS_SIGMAS
            self._coco_api.dataset["annotations"] = []
        if converts:
            for annotation, difficult in zip(self._coco_api.dataset["annotations"], _difficult(name), strict=True):
                annotation["difficult"] = difficult
        if self._do_evaluation:
            complete(self._coco_api)
        self._threshold = cfg.TEST.SCORE_THRESHOLD
        self._record = record
        self._boxes: COCOeval | None = None

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of a batch."""
        super().process(inputs, [{**output, "instances": _finite(output["instances"])} for output in outputs])

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Any = None) -> None:
        super()._eval_predictions(predictions, img_ids)
        if self._boxes is not None:
            self._results["scores"] = dict(self._record(self._matches(self._boxes)))

    def _matches(self, evaluated: COCOeval) -> Matches:
        return match(evaluated, self._metadata.thing_classes, self._threshold)

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Any = None
    ) -> dict[str, Any]:
        if coco_eval is None:
            coco_eval = COCOeval(self._coco_api, load_detections(self._coco_api, []), iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        if iou_type == "bbox":
            self._boxes = coco_eval
        results: dict[str, Any] = super()._derive_coco_results(coco_eval, iou_type, class_names)
        return results


class VOCEvaluator(BoxEvaluator):
    """AP as PASCAL VOC defines it, and what is right at IoU 0.5 as for any other data set.

    AP, AP50 and AP75 are those of Detectron2's ``PascalVOCDetectionEvaluator``, by the rule of the data set's year, as
    means over the classes with an object. AP50_2007 (mean precision at 11 recalls) and AP50_2010 (area under the
    curve, the rule from 2010 on) are both given. A difficult object is ignored: for VOC's AP any number of detections
    may lie on it, for precision one, as with pycocotools.

    The arguments are those of `build_evaluator`.

    Raises:
        DatasetError: an XML file cannot be read.
    """

    def __init__(self, cfg: CfgNode, name: str, output_dir: str, record: Record) -> None:
        super().__init__(cfg, name, output_dir, record)
        self._voc = VOCAveragePrecision(name)
        self._ap: dict[str, dict[str, float]] = {}

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._voc.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of a batch."""
        super().process(inputs, outputs)
        self._voc.process(inputs, [{"instances": _finite(output["instances"])} for output in outputs])

    def evaluate(self, img_ids: Any = None) -> dict[str, Any]:
        """Evaluate the predictions of all processes; the results come on the main one, the others get ``{}``."""
        self._ap = self._voc.evaluate()
        results: dict[str, Any] = super().evaluate(img_ids)
        return results

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: Any = None
    ) -> dict[str, Any]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if iou_type != "bbox":
            return results
        rules = dict.fromkeys(rule for ap in self._ap.values() for rule in ap)
        return {rule: 100 * float(np.mean([ap[rule] for ap in self._ap.values()])) for rule in rules}

    def _matches(self, evaluated: COCOeval) -> Matches:
        matches = super()._matches(evaluated)
        return replace(matches, ap50=tuple(self._ap.get(name, {}).get("AP50", math.nan) for name in matches.names))


class VOCAveragePrecision(PascalVOCDetectionEvaluator):
    """Detectron2's VOC evaluator, giving the average precision of each class instead of the mean."""

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Average precision by both rules.

        Returns:
            For each class with an object that is not difficult: AP, AP50, AP75, AP50_2007, AP50_2010, in [0, 1]; on the
            main process, ``{}`` on others.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return {}
        ids = Path(self._image_set_path).read_text().split()
        objects = list(chain.from_iterable(parse_rec(self._anno_file_template.format(one)) for one in ids))
        present = {one["name"] for one in objects if not one["difficult"]}
        return {
            name: self._class_ap(name, [line for lines in gathered for line in lines.get(index, [])])
            for index, name in enumerate(self._class_names)
            if name in present
        }

    def _class_ap(self, name: str, lines: list[str]) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="voc_") as folder:
            # Not named by the class, whose name may hold what the name of a file may not.
            found = Path(folder) / "found.txt"
            found.write_text("\n".join(lines))
            files = str(found), self._anno_file_template, self._image_set_path
            curves = [voc_eval(*files, name, iou / 100, self._is_2007) for iou in range(50, 100, 5)]
        recall, precision, ap50 = curves[0]
        ap = {"AP": np.mean([curve[2] for curve in curves]), "AP50": ap50, "AP75": curves[5][2]}
        both = {f"AP50_{year}": voc_ap(recall, precision, year == 2007) for year in (2007, 2010)}
        return {rule: float(value) for rule, value in (ap | both).items()}


def _most_detections(cfg: CfgNode) -> int:
    """COCO's limit for a picture, or what the network is let to give if that is more."""
    return max(100, cfg.TEST.DETECTIONS_PER_IMAGE)


def _finite(instances: Instances) -> Instances:
    finite = torch.isfinite(instances.scores) & torch.isfinite(instances.pred_boxes.tensor).all(dim=1)
    if finite.all():
        return instances
    logger.warning("left out: %d detections with a score or box that is not finite", int((~finite).sum()))
    return instances[finite]


def _difficult(name: str) -> list[bool]:
    """For each object of a data set, in order, whether it is marked as difficult."""
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return [bool(one.get("difficult")) for record in records for one in record.get("annotations", [])]
    flags = []
    for record in records:
        file = Path(metadata.dirname) / "Annotations" / f"{record['image_id']}.xml"
        try:
            # Detectron2's reader of data sets leaves the mark out; the order of objects is that of the file in both.
            flags += [bool(one["difficult"]) for one in parse_rec(str(file))]
        except (AttributeError, ValueError) as error:
            raise DatasetError(
                f"VOC's AP needs pose, truncated, difficult and a box in whole numbers for each object, and {file} is "
                f"another ({error}). Correct it, or register the folder by DATASETS.CUSTOM, which evaluates as COCO."
            ) from error
    return flags
