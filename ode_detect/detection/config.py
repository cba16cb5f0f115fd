"""Config keys of detection, beyond those of Detectron2."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_detection_config(cfg: CfgNode) -> None:
    """Add the keys of detectors, with their defaults, to a Detectron2 config."""
    # Leave pictures without an object out of training. Detectron2's default is True; here they are kept as negatives.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False

    # Turn a training picture by 0, 90, 180 or 270 degrees and mirror it: for pictures without an up, like maps.
    cfg.INPUT.ANY_ORIENTATION = False
    # An object of which less than this share of its box is left after cropping is not trained on.
    cfg.INPUT.MIN_VISIBLE = 0.0

    # Precision, recall, F1 and the confusion matrix count detections with a score of this or more, in [0, 1]; pictures
    # show those.
    cfg.TEST.SCORE_THRESHOLD = 0.5
