from pathlib import Path

import pytest
from detectron2.config import CfgNode

from ode_detect.detection.data.datasets import register_datasets
from ode_detect.engine.config import load_config

from ..conftest import ROOT


@pytest.fixture
def cfg(squares: Path) -> CfgNode:
    """The quickstart, trained on crops of the squares."""
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["INPUT.CROP.SIZE", "[48, 48]"])
    cfg.DATASETS.CUSTOM = [
        {"NAME": "squares", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
    ]
    cfg.DATASETS.TRAIN = ("squares",)
    register_datasets(cfg)
    return cfg
