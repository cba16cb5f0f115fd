"""Values of config keys: what is refused, and whether the keys of Detectron2 are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from ode_detect.engine.build import build_network, training_stream
from ode_detect.engine.config import default_values, flat, load_config
from ode_detect.engine.config_values import (
    CHOICES,
    INTERVALS,
    REFUSED,
    TASK_KEYS,
    UNUSED,
    Interval,
    check_values,
    unread,
)
from ode_detect.engine.optimizer import build_optimizer, build_scheduler
from ode_detect.engine.run import open_training
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import train
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART, ROOT, SMALL_R50, overrides_for

# Lists that hold no numbers, and have checks of their own.
_NO_NUMBERS = (
    *("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.CUSTOM", "MODEL.ODE.STAGES", "MODEL.ODE.FLOWS"),
    *("SOLVER.DIAL.METHODS", "TEST.EXPECTED_RESULTS", "MODEL.FPN.IN_FEATURES", "MODEL.RPN.IN_FEATURES"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "MODEL.RETINANET.IN_FEATURES"),
    *("MODEL.RESNETS.OUT_FEATURES", "MODEL.RESNETS.DEFORM_ON_PER_STAGE"),
)


def test_every_number_of_a_config_has_an_interval_that_its_default_lies_in() -> None:
    defaults = default_values()
    numbers = {
        key
        for key, value in defaults.items()
        if (isinstance(value, (int, float, list)) or value is None) and not isinstance(value, bool)
    }
    assert numbers - UNUSED.keys() - set(_NO_NUMBERS) - {"VERSION"} == INTERVALS.keys()
    assert (CHOICES.keys() | UNUSED.keys() | {key for key, _ in REFUSED}) <= defaults.keys()
    for keys in TASK_KEYS.values():
        assert set(keys) <= defaults.keys()
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert load_config(path)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, 0.999], [1, -1e-9, float("nan"), True, "0", None]),
        ("(0, inf)", [1e-300, 10**400], [0, float("inf"), -float("inf")]),
        ("(0, inf]", [float("inf")], [0.0]),
        ("(-inf, 4294967295]", [-(10**400), 2**32 - 1], [2**32, -float("inf")]),
    ],
)
def test_an_interval_is_what_mathematics_says(text: str, inside: list[Any], outside: list[Any]) -> None:
    interval = Interval.parse(text)
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in outside)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", "-5"),
        ("SOLVER.MAX_ITER", "0"),
        ("SOLVER.IMS_PER_BATCH", "0"),
        ("SOLVER.BASE_LR", "-0.1"),
        ("SOLVER.BASE_LR", "1e999"),
        ("SOLVER.CHECKPOINT_PERIOD", "0"),
        ("SOLVER.CHECKPOINT_PERIOD", "-1"),
        ("SOLVER.STEPS", "(30, -1)"),
        ("SOLVER.STEPS", "('a',)"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "-1.0"),
        ("SOLVER.EMA_DECAY", "1.0"),
        ("TEST.EVAL_PERIOD", "-1"),
        ("SEED", str(2**32)),
        ("MODEL.ODE.STEPS", str(10**9)),
        ("MODEL.ODE.NUM_PIECES", str(10**9)),
        ("MODEL.ODE.RTOL", "-1e-3"),
        ("MODEL.ODE.COUPLING", "1.0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("DATALOADER.NUM_WORKERS", "100000"),
        ("INPUT.MIN_SIZE_TRAIN", "(800, -1)"),
        ("INPUT.CROP.SIZE", "[0.5]"),
        ("INPUT.SCALE_JITTER", "[0.0, 1.0]"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "0"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [-1]]"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} (is a number|holds numbers|has 2 numbers)"):
        load_config(QUICKSTART, [key, value])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_rate_that_is_no_number_is_refused(value: float) -> None:
    values = {**default_values(), "SOLVER.BASE_LR": value}
    with pytest.raises(ValueError, match=rf"^SOLVER\.BASE_LR is a number in \[0, inf\), and it is {value}"):
        check_values(values, default_values())


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_that_nobody_knows_is_refused_with_the_nearest(key: str) -> None:
    word = CHOICES[key][-1]
    with pytest.raises(ConfigError, match=rf"^{key} is one of .*, and it is '{word}x'; did you mean {word}\?"):
        load_config(QUICKSTART, [key, f"{word}x"])


def other(value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    return [*value, "a"] if isinstance(value, list) else value + 1


@pytest.mark.parametrize("key", UNUSED)
def test_a_key_that_nothing_reads_is_refused(key: str) -> None:
    value = other(default_values()[key])
    with pytest.raises(ConfigError, match=rf"^{key} is not used, since .*; leave it out"):
        load_config(QUICKSTART, [key, str(tuple(value) if "FILES" in key else value)])


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_a_value_that_cannot_be_used_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} cannot be '{value}', since"):
        load_config(QUICKSTART, [key, value])


def test_a_threshold_of_repeating_without_its_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="set SAMPLER_TRAIN RepeatFactorTrainingSampler"):
        load_config(QUICKSTART, ["DATALOADER.REPEAT_THRESHOLD", "0.5"])


def test_keys_of_another_task_are_told() -> None:
    cfg = load_config(QUICKSTART, ["INPUT.SIDE", "32"])
    assert unread(flat(cfg), default_values()) == [
        "INPUT.SIDE is 32 and of classification only; detection does not read it."
    ]
    cfg = load_config(QUICKSTART, ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.MOMENTUM", "0.5"])
    assert unread(flat(cfg), default_values()) == ["SOLVER.MOMENTUM is 0.5 and of SGD only; AdamW does not read it."]
    cfg = load_config(ROOT / "configs" / "base" / "mnist.yaml", ["INPUT.MIN_VISIBLE", "0.5"])
    assert [line.partition(" ")[0] for line in unread(flat(cfg), default_values())] == ["INPUT.MIN_VISIBLE"]


class Reads:
    """The keys that are read of any config while it is on."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self._names: dict[int, tuple[CfgNode, str]] = {}

    def note(self, node: CfgNode, key: str, value: Any) -> None:
        name = f"{self._names.get(id(node), (node, ''))[1]}{key}"
        self.keys.add(name)
        if isinstance(value, CfgNode):
            self._names[id(value)] = (value, f"{name}.")  # the node is kept, or another would get its number


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()

    def get(node: CfgNode, key: str) -> Any:
        value = dict.__getitem__(node, key)
        found.note(node, key, value)
        return value

    monkeypatch.setattr(CfgNode, "__getitem__", get, raising=False)
    return found


def small(*more: str) -> list[str]:
    return [*(word for pair in SMALL_R50.items() for word in pair), "MODEL.WEIGHTS", "", *more]


def build_all_networks() -> None:
    """Detectron2's networks, each with what only it reads."""
    masks = ["MODEL.MASK_ON", "True"]
    fpn = str(ROOT / "configs" / "faster_rcnn_ode.yaml")
    build_network(load_config(ROOT / "configs" / "detection" / "retinanet_r101_fpn_ode.yaml", small()))
    cascade = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]
    build_network(load_config(fpn, small(*masks, *cascade)))
    keypoints = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)"]
    build_network(load_config(fpn, small(*keypoints)))
    panoptic = ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"]
    build_network(load_config(fpn, small(*masks, *panoptic)))
    MetadataCatalog.get("of_rare_classes").set(class_image_count=[{"id": i, "image_count": i + 1} for i in range(80)])
    rare = ["DATASETS.TRAIN", "('of_rare_classes',)", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True"]
    build_network(load_config(fpn, small(*rare, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")))
    build_model(load_config(fpn, small("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")))


def train_a_moment(squares: Path, folder: Path) -> None:
    """A run with all that is read in training and testing."""
    more = ["SOLVER.MAX_ITER", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "INPUT.MIN_SIZE_TEST", "64"]
    more += ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "0.5"]
    more += [
        "TEST.AUG.ENABLED",
        "True",
        "TEST.AUG.MIN_SIZES",
        "(48,)",
        "TEST.EXPECTED_RESULTS",
        "[['bbox', 'AP', 50.0, 50.0]]",
    ]
    cfg = load_config(QUICKSTART, overrides_for(squares, folder, *more))
    train(open_training(cfg, command="x", config_file=str(QUICKSTART), resume=False), resume=False)


def test_every_key_of_detectron2_is_read_or_refused(reads: Reads, squares: Path, tmp_path: Path) -> None:
    build_all_networks()
    train_a_moment(squares, tmp_path / "run")
    parameter = torch.nn.Linear(1, 1)
    for name in ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"):
        cfg = load_config(QUICKSTART, ["SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.OPTIMIZER", "SGD"])
        build_scheduler(cfg, build_optimizer(cfg, parameter))
    cfg = load_config(QUICKSTART, [*overrides_for(squares, tmp_path / "none"), "MODEL.KEYPOINT_ON", "True"])
    task = get_task(cfg)
    # Detectron2 asks for what the squares have none of: with no key point in any picture nothing is left.
    metadata = MetadataCatalog.get("squares").set(keypoint_names=["corner"], keypoint_flip_map=[])
    with pytest.raises(ConfigError, match="no picture to train on"):
        training_stream(cfg, task)
    del metadata.keypoint_names, metadata.keypoint_flip_map
    everything = flat(get_cfg()).keys() - {"VERSION"}  # which is read with the file
    assert everything - reads.keys <= UNUSED.keys()


def test_expected_results_are_compared(squares: Path, tmp_path: Path) -> None:
    more = ["SOLVER.MAX_ITER", "1", "INPUT.MIN_SIZE_TEST", "64", "TEST.EXPECTED_RESULTS"]
    for number, (expected, error) in enumerate(
        [("[['bbox', 'AP', 200.0, 1.0]]", SystemExit), ("[['box', 'AP', 1.0, 1.0]]", ConfigError)]
    ):
        cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path / str(number), *more, expected))
        run = open_training(cfg, command="x", config_file=str(QUICKSTART), resume=False)
        with pytest.raises(error):
            train(run, resume=False)
        assert json.loads((tmp_path / str(number) / "results.json").read_text())["rows"]
