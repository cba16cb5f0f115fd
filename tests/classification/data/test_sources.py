"""Sets of labelled pictures in the files of MNIST and CIFAR."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data import sources
from ode_detect.classification.data.mapper import BatchMapper
from ode_detect.classification.data.sources import to_format
from ode_detect.media.errors import DatasetError

from .conftest import RNG, config


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


@pytest.mark.parametrize("folder", ["mnist", "mnist/MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_read_where_it_lies_and_where_torchvision_puts_it(tmp_path: Path, folder: str, zipped: bool) -> None:
    images = mnist(tmp_path / folder, zipped=zipped)
    cfg = config("mnist_train", "mnist_test", classes=10)
    cfg.INPUT.FORMAT = "L"
    data.check_test_data(cfg)
    dicts, mapper = data.train_data(cfg)
    assert isinstance(mapper, BatchMapper)
    examples = mapper.map_batch(dicts, range(30), 30, torch.Generator())
    assert torch.equal(torch.stack([e["image"] for e in examples])[:, 0], torch.from_numpy(images))
    assert [e["label"] for e in examples] == [index % 10 for index in range(30)]
    assert MetadataCatalog.get("mnist_train").thing_classes == list("0123456789")
    assert data.categories(cfg)[3] == {"id": 3, "name": "3"}


def test_grey_pictures_are_read_as_colour_if_the_config_says_so(tmp_path: Path) -> None:
    images = mnist(tmp_path / "mnist")
    cfg = config("mnist_train", classes=10)
    dicts, mapper = data.train_data(cfg)
    assert torch.equal(mapper(dicts[2])["image"], torch.from_numpy(images[2]).expand(3, -1, -1))


def test_colour_becomes_grey_as_pillow_makes_it() -> None:
    pixels = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    found = to_format(torch.from_numpy(pixels).permute(0, 3, 1, 2), "L")
    for image, grey in zip(pixels, found, strict=True):
        np.testing.assert_array_equal(grey[0].numpy(), np.asarray(Image.fromarray(image).convert("L")))
    assert torch.equal(to_format(torch.from_numpy(pixels[0]).permute(2, 0, 1), "L"), found[0])


@pytest.mark.parametrize("damage", ["cut", "zip", "magic", "labels", "count"])
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    mnist(tmp_path / "mnist")
    images, labels = (tmp_path / "mnist" / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    if damage == "cut":
        images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-5]))
    elif damage == "zip":
        images.write_bytes(images.read_bytes()[:100])
    elif damage == "magic":
        images.write_bytes(gzip.compress(b"<html>404</html>"))
    else:
        wrong = np.full(30, 11, np.uint8) if damage == "labels" else np.zeros(29, np.uint8)
        idx(labels, wrong, zipped=True)
    with pytest.raises(DatasetError, match=r"ubyte\.gz.* get them? again|ubyte\.gz.* get it again: python datasets"):
        data.train_data(config("mnist_train", classes=10))


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The files of CIFAR-10 with two pictures each, of which the checksums are let pass."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = RNG.integers(0, 256, (12, 3072), dtype=np.uint8)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        content = {"data": rows[2 * number : 2 * number + 2], "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    label_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": label_names}))
    return rows.reshape(-1, 3, 32, 32)


def test_cifar_is_read_by_torchvision(cifar: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("cifar10_train", "cifar10_test", classes=10)
    dicts, mapper = data.train_data(cfg)
    assert len(dicts) == 10
    assert torch.equal(mapper(dicts[3])["image"], torch.from_numpy(cifar[3]))
    assert [record["label"] for record in dicts] == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    [batch] = data.test_loader(cfg, "cifar10_test")
    assert torch.equal(batch[0]["image"], torch.from_numpy(cifar[10]))
    assert data.categories(cfg)[9]["name"] == "truck"
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: False)
    sources.read_pictures.cache_clear()
    with pytest.raises(DatasetError, match=r"not those that were published.*download\.py cifar10"):
        data.train_data(cfg)
