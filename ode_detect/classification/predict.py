"""Classifying pictures that belong to no data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from ode_detect.classification.data.mapper import to_side
from ode_detect.task import Predictor

from .drawing import draw_classified

logger = logging.getLogger("ode_detect.classification")

Category = dict[str, Any]
# Classes that are shown of a picture, the most likely ones.
TOP = 5


class ClassificationPredictor(Predictor):
    """What the classifier of a config takes and gives, for pictures of any size.

    Args:
        cfg: of the classifier.
        categories: ids and names of its classes, in its order; [] if unknown: they are then called "class 0", ...

    Attributes:
        categories: the same, complete.

    Raises:
        ValueError: another number of classes than the classifier has.
    """

    def __init__(self, cfg: CfgNode, categories: Sequence[Category]) -> None:
        count = cfg.MODEL.CLASSIFIER.NUM_CLASSES
        if categories and len(categories) != count:
            raise ValueError(
                f"they are for {len(categories)} classes, and MODEL.CLASSIFIER.NUM_CLASSES of the config is {count}."
            )
        if not categories:
            logger.warning(
                'the names of the classes are unknown, so they are called "class 0" to "class %d".', count - 1
            )
        self.categories = list(categories) or [{"id": i, "name": f"class {i}"} for i in range(count)]
        self._cfg = cfg

    def example(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """What the classifier takes for a picture (RGB, uint8, (H, W, 3)): its middle, as in testing."""
        tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return {"image": to_side(tensor, self._cfg), "height": image.shape[0], "width": image.shape[1]}

    def records(self, output: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The most likely classes with their probabilities, in falling order.

        Each with "distance" and "unfamiliar" of the picture, where the classifier knows its training pictures.

        Raises:
            FloatingPointError: scores that are not numbers.
        """
        known = {}
        if "distance" in output:
            known = {"distance": round(float(output["distance"]), 3), "unfamiliar": bool(output["far"])}
        values, order = _top(output["logits"])
        return [
            {
                "category_id": self.categories[index]["id"],
                "category_name": self.categories[index]["name"],
                "score": round(value, 6),
                **known,
            }
            for value, index in zip(values, order, strict=True)
        ]

    def numbers(self, output: dict[str, Tensor]) -> dict[str, Any]:
        """The same for drawing: ``labels``, ``probabilities`` and ``far``."""
        values, order = _top(output["logits"])
        names = [str(self.categories[index]["name"]) for index in order]
        return {"labels": names, "probabilities": values, "far": bool(output.get("far", False))}

    def draw(self, image: NDArray[np.uint8], output: dict[str, Tensor]) -> NDArray[np.uint8]:
        """The picture with its most likely classes."""
        return draw_classified(image, **self.numbers(output))

    def words(self, output: dict[str, Tensor]) -> str:
        """The most likely classes in a line."""
        numbers = self.numbers(output)
        pairs = zip(numbers["labels"][:3], numbers["probabilities"], strict=False)
        classes = ", ".join(f"{label} {100 * value:.1f} %" for label, value in pairs)
        if not numbers["far"]:
            return classes
        return f"{classes}. UNLIKE the training pictures (distance {float(output['distance']):.3g}): not to be trusted"


def _top(logits: Tensor) -> tuple[list[float], list[int]]:
    """The highest probabilities and their classes; logits of shape (K,)."""
    if not logits.isfinite().all():
        raise FloatingPointError("the network's scores are not numbers; its weights are broken, or it diverged.")
    values, order = logits.float().softmax(0).topk(min(TOP, len(logits)))
    return values.clamp(max=1.0).tolist(), order.tolist()
