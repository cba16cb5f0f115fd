"""Pictures of two classes, and configs of data sets of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data import sources
from ode_detect.engine.config import add_ode_config

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _registries_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Data sets of a folder of the test's own, forgotten afterwards."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = set(DatasetCatalog.list())
    sources.read_pictures.cache_clear()
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(train: str = "", test: str = "", *, classes: int = 2, side: int = 0, **custom: Path) -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.SIDE = "RGB", "none", side
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.HELD_OUT = 0.0
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = classes
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,) if train else (), (test,) if test else ()
    cfg.DATASETS.CUSTOM = [{"NAME": name, "IMAGES": str(folder)} for name, folder in custom.items()]
    data.register_datasets(cfg)
    return cfg


def picture(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, three pictures each, and files that are none."""
    for part in ("train", "test"):
        for name in ("dog", "cat"):
            for index in range(3):
                picture(tmp_path / "pets" / part / name / f"{index}.png")
        (tmp_path / "pets" / part / "cat" / "notes.txt").write_text("not a picture")
        (tmp_path / "pets" / part / "cat" / ".hidden.png").write_text("not a picture")
        (tmp_path / "pets" / part / ".cache").mkdir()
    return tmp_path / "pets"
