"""Config keys of classification."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_classification_config(cfg: CfgNode) -> None:
    """Add the keys of classifiers, with their defaults, to a Detectron2 config."""
    # The head of a classifier: pooling and a linear layer.
    cfg.MODEL.CLASSIFIER = CfgNode()
    # Number of classes.
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 10
    # Which feature map of the backbone; "" is the last.
    cfg.MODEL.CLASSIFIER.IN_FEATURE = ""
    # Normalisation and relu before the pooling, for backbones of pre-activated blocks: "BN", "GN", "LN"; "": neither.
    cfg.MODEL.CLASSIFIER.NORM = ""
    # Dropout before the linear layer, in [0, 1).
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    # Share of the target that is spread over all classes, in [0, 1).
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0

    # Share of the training pictures that a classifier is not trained on: they show what is like the training pictures
    # and new all the same (TEST.FAMILIAR_SHARE).
    cfg.DATASETS.HELD_OUT = 0.02

    # Pixels by which a training picture of a classifier is padded (by its border) before it is cropped to its size.
    cfg.INPUT.PAD_CROP = 0
    # Random rotation of a training picture of a classifier: at most so many degrees to each side.
    cfg.INPUT.ROTATION = 0.0
    # Side of a random square in a training picture of a classifier that is made grey; 0 for none.
    cfg.INPUT.CUTOUT = 0
    # Side in pixels of the pictures that a classifier gets. Those of another size are cropped: a random part of at
    # least 8 % of the picture in training, the middle in testing. 0 takes pictures as they are, which have one size.
    cfg.INPUT.SIDE = 0
    # Share of the shorter side of a picture that its middle has in testing, in (0, 1]: 0.875 is usual for ImageNet.
    cfg.INPUT.CENTER_SHARE = 1.0

    # Pictures of a classifier that are tested together.
    cfg.TEST.BATCH = 250
    # A picture counts as unlike the training pictures if its features are farther from those of all classes than this
    # share of the held-out pictures is, in (0, 1).
    cfg.TEST.FAMILIAR_SHARE = 0.99
