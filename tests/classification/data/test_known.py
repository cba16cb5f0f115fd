"""Data sets that are known by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data.known import known_sources
from ode_detect.media.errors import DatasetError

from .conftest import config

ROOT = Path(__file__).parents[3]


SHARED = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data"))


def test_a_missing_set_is_told_with_its_files_and_the_command(tmp_path: Path) -> None:
    cfg = config("mnist_train", "digits_test", classes=10)
    with pytest.raises(DatasetError) as error:
        data.train_data(cfg)
    for text in ("mnist_train", str(tmp_path / "mnist" / "train-images-idx3-ubyte.gz"), "datasets/download.py mnist"):
        assert text in str(error.value)
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte[\s\S]*python datasets/prepare_digits\.py"):
        data.check_test_data(cfg)
    with pytest.raises(DatasetError, match=r"cifar-100-python/meta[\s\S]*download\.py cifar100"):
        data.require_datasets(["cifar100_test"])
    with pytest.raises(DatasetError, match=r"imagenet/val[\s\S]*https://image-net\.org"):
        data.require_datasets(["imagenet_val"])


def test_an_unknown_set_is_told_with_its_neighbour() -> None:
    with pytest.raises(DatasetError, match=r"mnist_trian.*Did you mean 'mnist_train'.*DATASETS\.CUSTOM"):
        data.train_data(config("mnist_trian"))
    with pytest.raises(DatasetError, match=r"DATASETS\.TRAIN .* empty"):
        data.train_data(config())


def test_cifar_100_has_100_classes_in_order() -> None:
    config()
    names = MetadataCatalog.get("cifar100_train").source.class_names()
    assert len(set(names)) == 100
    assert list(names) == sorted(names)


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no shared data")
def test_the_real_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(SHARED))
    cfg = config("mnist_train", "mnist_test", classes=10)
    cfg.INPUT.FORMAT = "L"
    dicts, mapper = data.train_data(cfg)
    assert len(dicts) == 60_000
    assert mapper.pictures.images is not None
    # The published mean, which configs use.
    assert float(mapper.pictures.images.float().mean()) == pytest.approx(0.1307 * 255, abs=0.02)
    assert [record["label"] for record in dicts[:8]] == [5, 0, 4, 1, 9, 2, 1, 3]
    assert sum(len(batch) for batch in data.test_loader(cfg, "mnist_test")) == 10_000


def test_each_known_set_has_a_name_of_its_own_and_a_folder_below_the_root(tmp_path: Path) -> None:
    found = known_sources(tmp_path)
    names = [source.name for source in found]
    sets = ["cifar10", "cifar100", "digits", "fashion_mnist", "mnist"]
    assert sorted(names) == sorted(
        [*(f"{name}_{part}" for name in sets for part in ("train", "test")), "imagenet_train", "imagenet_val"]
    )
    for source in found:
        assert source.root.is_relative_to(tmp_path)
        assert source.missing(), "nothing is there"
        assert all(path.is_relative_to(source.root) for path in source.missing())


@pytest.mark.parametrize(
    ("name", "count", "number", "called"),
    [
        ("mnist", 10, 7, "7"),
        ("digits", 10, 0, "0"),
        ("fashion_mnist", 10, 9, "Ankle boot"),
        ("cifar10", 10, 3, "cat"),
        ("cifar100", 100, 98, "woman"),
    ],
)
def test_classes_are_known_before_the_pictures_are_there(
    name: str, count: int, number: int, called: str, tmp_path: Path
) -> None:
    found = {source.name: source.class_names() for source in known_sources(tmp_path)[:-2]}
    assert found[f"{name}_train"] == found[f"{name}_test"]
    assert len(set(found[f"{name}_train"])) == count
    assert found[f"{name}_train"][number] == called
