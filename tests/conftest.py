"""Small data and small networks that several tests use."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


# A ResNet-50 detector with few channels.
SMALL_R50 = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": "50",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.FPN.OUT_CHANNELS": "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
}


# A classifier with a ResNet-20 for CIFAR.
CIFAR_R20 = {
    "TASK": "classification",
    "MODEL.META_ARCHITECTURE": "Classifier",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_ode_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.RESNETS.DEPTH": "20",
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.RESNETS.OUT_FEATURES": "['res4']",
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": "[123.675, 116.28, 103.53]",
    "MODEL.PIXEL_STD": "[58.395, 57.12, 57.375]",
}


def like_trained(model: nn.Module) -> nn.Module:
    """With statistics like those of a trained network, under which features neither vanish nor explode."""
    for name, buffer in model.named_buffers():
        if "running_mean" in name:
            buffer.normal_(0, 0.1)
        elif "running_var" in name or "norm.weight" in name:
            buffer.uniform_(0.4, 0.8)
    return model


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What we log, also after a run in this process, which sends it to its own files only."""
    monkeypatch.setattr(logging.getLogger("ode_detect"), "propagate", True)
    return caplog


def our_configs(root: Path = ROOT) -> list[Path]:
    """The configs of the project, sorted; a user's own may lie beside them, in whatever state.

    They are those that git knows, or, without git, those whose headers state a claim or say that they are bases.
    """
    listed = subprocess.run(["git", "ls-files", "-z", "configs"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return sorted(root / name for name in listed.stdout.split("\0") if name.endswith(".yaml"))
    header = re.compile(rb"^#.*(Claim: |Not to\s+be run by itself)", re.MULTILINE)
    bases = sorted((root / "configs" / "base").glob("*.yaml"))
    return sorted({*bases, *(path for path in (root / "configs").rglob("*.yaml") if header.search(path.read_bytes()))})


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of 96x80 with bright squares on noise, in COCO JSON; every third has none."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "squares"
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(8):
        picture = rng.integers(60, 120, (80, 96, 3), dtype=np.uint8)
        for _ in range(0 if index % 3 == 2 else 3):
            size, x, y = int(rng.integers(16, 30)), int(rng.integers(0, 66)), int(rng.integers(0, 50))
            cv2.rectangle(picture, (x, y), (x + size, y + size), (255, 255, 255), -1)
            box = [x, y, size, size]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "bbox": box,
                    "area": size * size,
                    "iscrowd": 0,
                    "category_id": 1,
                }
            )
        cv2.imwrite(str(folder / "images" / f"{index}.png"), picture)
        images.append({"id": index + 1, "file_name": f"{index}.png", "width": 96, "height": 80})
    content = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def overrides_for(squares: Path, output: Path, *more: str) -> list[str]:
    """Config overrides that train the quickstart network on the squares for a moment."""
    entry = {"NAME": "squares", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
    return [
        *("DATASETS.CUSTOM", json.dumps([entry])),
        *("DATASETS.TRAIN", "('squares',)"),
        *("DATASETS.TEST", "('squares',)"),
        *("INPUT.CROP.SIZE", "[64, 64]"),
        *("SOLVER.MAX_ITER", "6"),
        *("SOLVER.IMS_PER_BATCH", "2"),
        *("SOLVER.CHECKPOINT_PERIOD", "2"),
        *("TEST.EVAL_PERIOD", "3"),
        *("OUTPUT_DIR", str(output)),
        *("SEED", "7"),
        *more,
    ]


@pytest.fixture
def squares_run(squares: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides for a run in a folder of that name."""
    return lambda output, *more: overrides_for(squares, tmp_path / output, *more)


@pytest.fixture(scope="session")
def whole_run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for the run that several tests look at."""
    return overrides_for(squares, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Level and upright bars of 28x28 on noise, 40 of each to train and 10 to test."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shapes")
    for part, count in (("train", 40), ("test", 10)):
        for name in ("level", "upright"):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                picture = rng.integers(0, 40, (28, 28), dtype=np.uint8)
                at = int(rng.integers(6, 18))
                picture[at : at + 4, 3:25] = 255
                picture = picture if name == "level" else picture.T
                cv2.imwrite(str(folder / part / name / f"{index}.png"), picture)
    return folder


def overrides_for_shapes(shapes: Path, output: Path, *more: str) -> list[str]:
    """Overrides of configs/base/mnist.yaml for a small network on `shapes`."""
    entries = [{"NAME": f"shapes_{part}", "IMAGES": str(shapes / part)} for part in ("train", "test")]
    settings = {
        "DATASETS.CUSTOM": str(entries),
        "DATASETS.TRAIN": "('shapes_train',)",
        "DATASETS.TEST": "('shapes_test',)",
        "DATASETS.HELD_OUT": "0.1",
        "MODEL.CLASSIFIER.NUM_CLASSES": "2",
        "MODEL.ODE_NET.CHANNELS": "[8]",
        "MODEL.ODE_NET.NORM": "GN",
        "MODEL.CLASSIFIER.NORM": "GN",
        "MODEL.ODE.METHOD": "midpoint",
        "MODEL.ODE.STEPS": "2",
        "SOLVER.IMS_PER_BATCH": "16",
        "SOLVER.MAX_ITER": "40",
        "SOLVER.WARMUP_ITERS": "10",
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": "0.02",
        "SOLVER.EMA_DECAY": "0.9",
        "SOLVER.AMP.ENABLED": "False",
        "SOLVER.CHECKPOINT_PERIOD": "10",
        "TEST.EVAL_PERIOD": "10",
        "TEST.BATCH": "8",
        "OUTPUT_DIR": str(output),
    }
    return [*(word for pair in settings.items() for word in pair), *more]
