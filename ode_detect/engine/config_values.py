"""What values config keys may have: intervals, words, and keys of Detectron2 that nothing here reads.

Only Python's own library is imported, so that the documentation is built without torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Iterations, pictures, detections: more are a slip of the finger.
_COUNT = "[1, 1000000000]"
_COUNT_OR_0 = "[0, 1000000000]"
_PIXELS = "[1, 100000]"
_PIXELS_OR_0 = "[0, 100000]"
_WIDTH = "[1, 1000000]"
_SHARE = "[0, 1]"
_FACTOR = "[0, inf)"
_ABOVE_0 = "(0, inf)"
_ANY = "(-inf, inf)"
_LABEL = "[-1, 1]"

# Of a number, or of every number in a list of lists. A bracket belongs to the interval, a parenthesis does not.
INTERVALS = {
    "SEED": "(-inf, 4294967295]",
    "VIS_PERIOD": _COUNT_OR_0,
    "DATASETS.HELD_OUT": "[0, 1)",
    "DATALOADER.NUM_WORKERS": "[0, 1024]",
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "INPUT.MIN_SIZE_TRAIN": _PIXELS_OR_0,
    "INPUT.MAX_SIZE_TRAIN": _PIXELS,
    "INPUT.MIN_SIZE_TEST": _PIXELS_OR_0,
    "INPUT.MAX_SIZE_TEST": _PIXELS,
    "INPUT.CROP.SIZE": "(0, 100000]",
    "INPUT.SCALE_JITTER": "(0, 1000]",
    "INPUT.COLOR_JITTER": _SHARE,
    "INPUT.PAD_CROP": _PIXELS_OR_0,
    "INPUT.ROTATION": "[0, 180]",
    "INPUT.CUTOUT": _PIXELS_OR_0,
    "INPUT.SIDE": _PIXELS_OR_0,
    "INPUT.CENTER_SHARE": "(0, 1]",
    "INPUT.MIN_VISIBLE": _SHARE,
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.BASE_LR": _FACTOR,
    "SOLVER.BASE_LR_END": _FACTOR,
    "SOLVER.MOMENTUM": "[0, 1)",
    "SOLVER.WEIGHT_DECAY": _FACTOR,
    "SOLVER.WEIGHT_DECAY_NORM": _FACTOR,
    "SOLVER.WEIGHT_DECAY_BIAS": _FACTOR,
    "SOLVER.GAMMA": _FACTOR,
    "SOLVER.STEPS": _COUNT_OR_0,
    "SOLVER.NUM_DECAYS": "[0, 1000]",
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _COUNT_OR_0,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.IMS_PER_BATCH": "[1, 1000000]",
    "SOLVER.REFERENCE_WORLD_SIZE": "[0, 1000000]",
    "SOLVER.BIAS_LR_FACTOR": _FACTOR,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _ABOVE_0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": "(0, inf]",
    "SOLVER.EMA_DECAY": "[0, 1)",
    "SOLVER.DIAL.STEPS": "[1, 100000]",
    "SOLVER.DIAL.WEIGHT": _FACTOR,
    "SOLVER.DIAL.TASK_WEIGHT": _FACTOR,
    "SOLVER.DIAL.STATISTICS_BATCHES": "[0, 1000000]",
    "TEST.EVAL_PERIOD": _COUNT_OR_0,
    "TEST.KEYPOINT_OKS_SIGMAS": _ABOVE_0,
    "TEST.DETECTIONS_PER_IMAGE": "[1, 1000000]",
    "TEST.AUG.MIN_SIZES": _PIXELS,
    "TEST.AUG.MAX_SIZE": _PIXELS,
    "TEST.SCORE_THRESHOLD": _SHARE,
    "TEST.BATCH": "[1, 1000000]",
    "TEST.FAMILIAR_SHARE": "(0, 1)",
    "MODEL.PIXEL_MEAN": _ANY,
    "MODEL.PIXEL_STD": _ABOVE_0,
    "MODEL.ODE.NUM_PIECES": "[0, 10000]",
    "MODEL.ODE.DURATION": "[0, 1000000]",
    "MODEL.ODE.STEPS": "[0, 100000]",
    "MODEL.ODE.RTOL": _ABOVE_0,
    "MODEL.ODE.ATOL": _ABOVE_0,
    "MODEL.ODE.MAX_EVALUATIONS": _COUNT,
    "MODEL.ODE.CHECKPOINT_EVERY": "[1, 100000]",
    "MODEL.ODE.CHECKPOINT_STATES": "[0, 100000]",
    "MODEL.ODE.COUPLING": "(0, 1)",
    "MODEL.ODE.MEMORY_BUDGET": "(0, 1000000000]",
    "MODEL.ODE.STACK": "[1, 1000]",
    "MODEL.ODE.EXTRA_CHANNELS": "[0, 100000]",
    "MODEL.ODE_NET.CHANNELS": "[1, 100000]",
    "MODEL.ODE_NET.BLOCKS": "[0, 1000]",
    "MODEL.MLP.SIZE": _PIXELS,
    "MODEL.MLP.HIDDEN": _WIDTH,
    "MODEL.CLASSIFIER.NUM_CLASSES": "[2, 1000000]",
    "MODEL.CLASSIFIER.DROPOUT": "[0, 1)",
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": "[0, 1)",
    "MODEL.BACKBONE.FREEZE_AT": "[0, 5]",
    "MODEL.FPN.OUT_CHANNELS": _WIDTH,
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": _FACTOR,
    "MODEL.ANCHOR_GENERATOR.SIZES": "(0, 100000]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _ABOVE_0,
    "MODEL.ANCHOR_GENERATOR.OFFSET": "[0, 1)",
    "MODEL.RPN.BOUNDARY_THRESH": "[-1, inf)",
    "MODEL.RPN.IOU_THRESHOLDS": _SHARE,
    "MODEL.RPN.IOU_LABELS": _LABEL,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "[1, 1000000]",
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _FACTOR,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _ABOVE_0,
    "MODEL.RPN.SMOOTH_L1_BETA": _FACTOR,
    "MODEL.RPN.LOSS_WEIGHT": _FACTOR,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "[1, 1000000]",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "[1, 1000000]",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "[1, 1000000]",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "[1, 1000000]",
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.CONV_DIMS": "[-1, 1000000]",
    "MODEL.ROI_HEADS.NUM_CLASSES": _WIDTH,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _SHARE,
    "MODEL.ROI_HEADS.IOU_LABELS": _LABEL,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "[1, 1000000]",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _FACTOR,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _ABOVE_0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _FACTOR,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "[1, 1000]",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": "[0, 1000]",
    "MODEL.ROI_BOX_HEAD.NUM_FC": "[0, 1000]",
    "MODEL.ROI_BOX_HEAD.FC_DIM": _WIDTH,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "[0, 1000]",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _WIDTH,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": _ANY,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": _WIDTH,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": _ABOVE_0,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": _SHARE,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": "[1, 1000]",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": "[0, 1000]",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "[0, 1000]",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _WIDTH,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": "[1, 1000]",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": "[0, 1000]",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": _WIDTH,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "[1, 10000]",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": "[0, 1000000]",
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": _FACTOR,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": _ANY,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _WIDTH,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _WIDTH,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": "[1, 1000]",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _FACTOR,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": _FACTOR,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": _SHARE,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": _FACTOR,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": _SHARE,
    "MODEL.RETINANET.NUM_CLASSES": _WIDTH,
    "MODEL.RETINANET.NUM_CONVS": "[0, 1000]",
    "MODEL.RETINANET.IOU_THRESHOLDS": _SHARE,
    "MODEL.RETINANET.IOU_LABELS": _LABEL,
    "MODEL.RETINANET.PRIOR_PROB": "(0, 1)",
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "[1, 1000000]",
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _ABOVE_0,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _FACTOR,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": "[-1, 1]",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _FACTOR,
    "MODEL.RESNETS.DEPTH": "[1, 10000]",
    "MODEL.RESNETS.NUM_GROUPS": "[1, 100000]",
    "MODEL.RESNETS.WIDTH_PER_GROUP": _WIDTH,
    "MODEL.RESNETS.RES5_DILATION": "[1, 2]",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _WIDTH,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _WIDTH,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": "[1, 100000]",
}
# Lists that have one of these lengths.
LENGTHS = {
    "INPUT.CROP.SIZE": (2,),
    "INPUT.SCALE_JITTER": (0, 2),
    "MODEL.RPN.BBOX_REG_WEIGHTS": (4,),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (4,),
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (4,),
}
# Words of Detectron2's that nobody looks up by name before they are used.
CHOICES = {
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
}
_PROPOSALS = "proposals come from the network's own RPN"
_STATISTICS = (
    "statistics of BatchNorm are its running averages; tools/dial.py estimates them by SOLVER.DIAL.STATISTICS_BATCHES"
)
# Keys of Detectron2 that nothing here reads, and why. Another value than the default would do nothing.
UNUSED = {
    "MODEL.LOAD_PROPOSALS": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TEST": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _PROPOSALS,
    "MODEL.ANCHOR_GENERATOR.ANGLES": "boxes are upright",
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": "Detectron2 does not read it either",
    "TEST.PRECISE_BN.ENABLED": _STATISTICS,
    "TEST.PRECISE_BN.NUM_ITER": _STATISTICS,
    "GLOBAL.HACK": "it is for experiments in Detectron2's own code",
}
_UPRIGHT = "boxes are upright here"
# Values of Detectron2 that cannot be used, and why.
REFUSED = {
    ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"): _PROPOSALS,
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"): _UPRIGHT,
    ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"): _UPRIGHT,
    ("MODEL.ROI_HEADS.NAME", "RROIHeads"): _UPRIGHT,
}
# Keys of data and tests that only one task reads.
_OF_DETECTION = (
    *("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MAX_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"),
    *("INPUT.MAX_SIZE_TEST", "INPUT.CROP.ENABLED", "INPUT.CROP.TYPE", "INPUT.CROP.SIZE", "INPUT.MASK_FORMAT"),
    *("INPUT.ANY_ORIENTATION", "INPUT.MIN_VISIBLE", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "TEST.SCORE_THRESHOLD"),
    *("TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS", "VIS_PERIOD"),
)
_OF_CLASSIFICATION = (
    *("INPUT.PAD_CROP", "INPUT.ROTATION", "INPUT.CUTOUT", "INPUT.SIDE", "INPUT.CENTER_SHARE", "DATASETS.HELD_OUT"),
    *("TEST.BATCH", "TEST.FAMILIAR_SHARE"),
)
TASK_KEYS = {"detection": _OF_DETECTION, "classification": _OF_CLASSIFICATION}


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, which belong to it or not."""

    low: float
    high: float
    with_low: bool
    with_high: bool

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read an interval as mathematics writes it: "[0, 1)", "(0, inf)"."""
        found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        assert found, text
        return cls(float(found[2]), float(found[3]), found[1] == "[", found[4] == "]")

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        above = self.low <= value if self.with_low else self.low < value
        below = value <= self.high if self.with_high else value < self.high
        return above and below


def check_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check the values of a config.

    Args:
        values: key -> value, keys of sections joined by dots.
        defaults: the same of the config before anything was set.

    Raises:
        ValueError: a value is out of range, no word that is known, or of a key that nothing reads; names the key.
    """
    for key, value in values.items():
        default = defaults.get(key)
        if key in UNUSED and value != default:
            raise ValueError(f"{key} is not used, since {UNUSED[key]}, and it is {value!r}; leave it out.")
        if (key, value if isinstance(value, str) else None) in REFUSED:
            raise ValueError(f"{key} cannot be {value!r}, since {REFUSED[key, value]}; its default is {default!r}.")
        if key in CHOICES and value not in CHOICES[key]:
            near = difflib.get_close_matches(str(value), CHOICES[key], n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else f"; its default is {default}."
            raise ValueError(f"{key} is one of {', '.join(CHOICES[key])}, and it is {value!r}{hint}")
        _check_numbers(key, value, default)
    threshold, sampler = values.get("DATALOADER.REPEAT_THRESHOLD"), values.get("DATALOADER.SAMPLER_TRAIN")
    if threshold and sampler != "RepeatFactorTrainingSampler":
        raise ValueError(
            f"DATALOADER.REPEAT_THRESHOLD is of the RepeatFactorTrainingSampler, and it is {threshold} while "
            f"DATALOADER.SAMPLER_TRAIN is {sampler}; set SAMPLER_TRAIN RepeatFactorTrainingSampler, or leave it out."
        )


def unread(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """A line for each key that was set and that only other tasks, or optimizers, than the config's read."""
    readers = [(values["TASK"], other, keys) for other, keys in TASK_KEYS.items()]
    readers.append((values["SOLVER.OPTIMIZER"], "SGD", ("SOLVER.MOMENTUM", "SOLVER.NESTEROV")))
    return [
        f"{key} is {values[key]!r} and of {other} only; {this} does not read it."
        for this, other, keys in readers
        for key in keys
        if other != this and values[key] != defaults[key]
    ]


def _check_numbers(key: str, value: Any, default: Any) -> None:
    if value is None and default is None:
        return
    numbers = list(_flat(value))
    if key in LENGTHS and len(numbers) not in LENGTHS[key]:
        allowed = " or ".join(map(str, LENGTHS[key]))
        raise ValueError(f"{key} has {allowed} numbers, and it is {value!r}; its default is {default!r}.")
    what = "holds numbers" if isinstance(value, list) else "is a number"
    if key not in INTERVALS:
        return
    interval = Interval.parse(INTERVALS[key])
    if not all(number in interval for number in numbers):
        raise ValueError(f"{key} {what} in {INTERVALS[key]}, and it is {_short(value)}; its default is {default!r}.")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "longer than can be written"
    return text if len(text) <= 80 else f"{text[:80]}..."
