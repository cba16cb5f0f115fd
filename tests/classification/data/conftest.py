"""Data sets of pictures that several tests use."""

import gzip
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


def idx(path: Path, values: np.ndarray, *, zipped: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


def mnist(folder: Path, *, zipped: bool = True, count: int = 30) -> np.ndarray:
    images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    suffix = ".gz" if zipped else ""
    for part in ("train", "t10k"):
        idx(folder / f"{part}-images-idx3-ubyte{suffix}", images, zipped=zipped)
        idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count).astype(np.uint8) % 10, zipped=zipped)
    return images
