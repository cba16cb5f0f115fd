from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data.known import known_sources
from ode_detect.media.errors import DatasetError

from .conftest import config


def test_of_a_missing_set_its_files_and_the_command_are_named(tmp_path: Path) -> None:
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


def test_cifar_100_has_100_classes_in_order() -> None:
    config()
    names = MetadataCatalog.get("cifar100_train").source.class_names()
    assert len(set(names)) == 100
    assert list(names) == sorted(names)


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
