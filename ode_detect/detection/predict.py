"""Detections on any picture, as numbers: what goes into the network, what comes out, what it is called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from ode_detect.detection.data.mapper import at_least_a_pixel
from ode_detect.task import Predictor

from .drawing import draw_detections
from .model import head_name

logger = logging.getLogger("ode_detect.detection")

Category = dict[str, Any]


class DetectionPredictor(Predictor):
    """What a detector takes and gives, for pictures that belong to no data set.

    Args:
        cfg: for the size and format of pictures, and ``TEST.SCORE_THRESHOLD``.
        categories: id and name of each class of the network, in its order; [] calls them "class 0" and so on.

    Attributes:
        categories: id and name of each class.

    Raises:
        ValueError: there are other than ``NUM_CLASSES`` categories.
    """

    def __init__(self, cfg: CfgNode, categories: Sequence[Category]) -> None:
        count = number_of_classes(cfg)
        if categories and len(categories) != count:
            raise ValueError(f"a network with {count} classes needs as many categories, not {len(categories)}.")
        self.categories = tuple(categories) or tuple({"id": i, "name": f"class {i}"} for i in range(count))
        if not categories:
            logger.warning(
                "the names of the classes are neither in the checkpoint nor in a data set of the config that is on "
                "this machine; they are called class 0 to class %d.",
                count - 1,
            )
        self._threshold = float(cfg.TEST.SCORE_THRESHOLD)
        head = head_name(cfg)
        floor = cfg.MODEL[head].SCORE_THRESH_TEST
        if self._threshold < floor:
            logger.warning("the network gives no score below %g; lower MODEL.%s.SCORE_THRESH_TEST too.", floor, head)
        self._format = cfg.INPUT.FORMAT
        self._resize = T.AugmentationList(at_least_a_pixel(build_augmentation(cfg, is_train=False)))

    def example(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """What the network takes, as the test mapper makes it of a file.

        Args:
            image: RGB in 0..255, uint8, shape (H, W, 3).
        """
        given = T.AugInput(convert_PIL_to_numpy(Image.fromarray(image), self._format))
        self._resize(given)
        tensor = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}

    def numbers(self, output: dict[str, Any]) -> dict[str, Any]:
        """The detections that reach the threshold, best first.

        Args:
            output: of the network for one picture.

        Returns:
            ``boxes`` ((N, 4), pixels, corners), ``labels``, ``scores``, ``classes`` (indices into the categories), and
            ``masks`` ((N, H, W), bool; () if the network has none).
        """
        found = output["instances"].to("cpu")
        found = found[found.scores >= self._threshold]
        found = found[found.scores.argsort(descending=True, stable=True)]
        classes = found.pred_classes.tolist()
        return {
            "boxes": found.pred_boxes.tensor.double().numpy(),
            "labels": [str(self.categories[k]["name"]) for k in classes],
            "scores": found.scores.double().numpy(),
            "classes": classes,
            "masks": found.pred_masks.numpy() if found.has("pred_masks") else (),
        }

    def draw(self, image: NDArray[np.uint8], output: dict[str, Any]) -> NDArray[np.uint8]:
        """The picture with the detections."""
        return draw_detections(image, **self.numbers(output))

    def records(self, output: dict[str, Any]) -> list[dict[str, Any]]:
        """The detections as annotations of COCO with a score; a mask is run lengths, and ``area`` its pixels."""
        numbers, records = self.numbers(output), []
        for i, k in enumerate(numbers["classes"]):
            x0, y0, x1, y1 = numbers["boxes"][i].tolist()
            record = {
                "category_id": self.categories[k]["id"],
                "category_name": self.categories[k]["name"],
                "bbox": [round(v, 4) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(float(numbers["scores"][i]), 6),
                "area": round((x1 - x0) * (y1 - y0), 4),
                "iscrowd": 0,
            }
            if len(numbers["masks"]):
                coded = rle.encode(np.asfortranarray(numbers["masks"][i].astype(np.uint8)))
                record["area"] = int(rle.area(coded))
                record["segmentation"] = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
            records.append(record)
        return records


def number_of_classes(cfg: CfgNode) -> int:
    """Classes of the detector of a config."""
    return int(cfg.MODEL[head_name(cfg)].NUM_CLASSES)


def categories(cfg: CfgNode) -> list[Category]:
    """Id and name of each class, in the order of the network, from the data sets of a config.

    Ids are those of the annotation file; where there is none (VOC), the classes are counted from 1.

    Args:
        cfg: its data sets must be registered. They are read only if nothing else names their classes.

    Returns:
        The categories of the first data set of ``DATASETS.TRAIN`` and ``TEST`` that has as many classes as the network;
        [] if none has, or none is on this machine.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():
            continue
        metadata = MetadataCatalog.get(name)
        if not metadata.get("thing_classes"):
            try:
                DatasetCatalog.get(name)
            except Exception:  # data that is not there is not missed here, and loaders raise what they like
                continue
        names = list(metadata.get("thing_classes") or [])
        ids = {index: key for key, index in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items()}
        if len(names) == number_of_classes(cfg):
            return [{"id": ids.get(index, index + 1), "name": name} for index, name in enumerate(names)]
    return []
