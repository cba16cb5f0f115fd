"""Sets of pictures with a folder for each class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from PIL import Image

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data import folders, sources
from ode_detect.classification.data.mapper import BatchMapper
from ode_detect.media.errors import DatasetError

from .conftest import config, picture


def test_a_folder_per_class_is_held_whole(pets: Path) -> None:
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    dicts, mapper = data.train_data(cfg)
    assert isinstance(mapper, BatchMapper)
    assert [Path(record["file_name"]).relative_to(pets).as_posix() for record in dicts] == [
        f"train/{name}/{index}.png" for name in ("cat", "dog") for index in range(3)
    ]
    for record in dicts:
        expected = np.asarray(Image.open(record["file_name"])).transpose(2, 0, 1)
        np.testing.assert_array_equal(mapper(record)["image"].numpy(), expected)
    assert [record["label"] for record in dicts] == [0, 0, 0, 1, 1, 1]
    assert MetadataCatalog.get("a").thing_classes == ["cat", "dog"]
    assert data.categories(cfg) == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]


@pytest.mark.parametrize("side", [0, 8])
def test_every_kind_of_picture_is_converted(tmp_path: Path, side: int) -> None:
    folder = tmp_path / "kinds" / "one"
    pixels = picture(folder / "colour.png")
    picture(folder / "grey.png", mode="L")
    picture(folder / "palette.gif", mode="P")
    picture(folder / "alpha.png", mode="RGBA")
    picture(folder / "cmyk.jpg", mode="CMYK")
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    picture(tmp_path / "kinds" / "two" / "a.png")
    dicts, mapper = data.train_data(config("a", side=side, a=tmp_path / "kinds"))
    images = {Path(record["file_name"]).name: mapper(record)["image"] for record in dicts}
    assert {tuple(image.shape) for image in images.values()} == {(3, 8, 8)}
    assert images["deep.png"].unique().tolist() == [128]
    assert images["moving.gif"].amin((1, 2)).tolist() == images["moving.gif"].amax((1, 2)).tolist() == [255, 0, 0]
    np.testing.assert_array_equal(images["turned.png"].numpy(), np.rot90(pixels, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("side", [0, 6, 8])
@pytest.mark.parametrize("read", [lambda cfg: data.train_data(cfg), lambda cfg: data.check_test_data(cfg)])
def test_damaged_pictures_are_listed_before_training(pets: Path, side: int, read: Callable[[CfgNode], Any]) -> None:
    for name in ("cat/0.png", "dog/2.png"):
        path = pets / "train" / name
        path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(DatasetError) as error:
        read(config("a", "a", side=side, a=pets / "train"))
    message = str(error.value)
    assert message.startswith("2 of the 6 pictures of a cannot be read:")
    assert "cat/0.png" in message
    assert "dog/2.png" in message
    assert message.endswith("Delete them, or put whole ones in their place.")


def test_of_large_sets_damaged_pictures_are_met_on_the_way(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_TRIED", 5)
    (pets / "train" / "dog" / "1.png").write_bytes(b"nothing")
    dicts, mapper = data.train_data(config("a", side=6, a=pets / "train"))
    with pytest.raises(DatasetError, match=r"dog/1\.png cannot be read as a picture"):
        mapper(dicts[4])


def test_a_link_into_its_own_folder_repeats_no_picture(pets: Path) -> None:
    before = len(data.train_data(config("a", a=pets / "train"))[0])
    (pets / "train" / "dog" / "loop").symlink_to(pets / "train" / "dog")
    sources.read_pictures.cache_clear()
    assert len(data.train_data(config("a", a=pets / "train"))[0]) == before


def test_a_class_without_a_picture_is_named(pets: Path) -> None:
    (pets / "train" / "bird").mkdir()
    (pets / "train" / "bird" / "notes.txt").touch()
    with pytest.raises(DatasetError, match=r"each class of a has a picture.*none in: bird\. Add pictures"):
        data.train_data(config("a", classes=3, a=pets / "train"))


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "1.png")
    with pytest.raises(DatasetError, match=r"a folder for each class in .*flat.* there is none"):
        data.train_data(config("a", a=tmp_path / "flat"))


def test_an_empty_folder_is_no_fault_of_other_sets(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    dicts, _ = data.train_data(config("a", a=pets / "train"))
    assert len(dicts) == 6


def test_composed_and_decomposed_names_are_one_class(pets: Path) -> None:
    for part, name in (("train", "\xe9mu"), ("test", "e\u0301mu")):
        (pets / part / "cat").rename(pets / part / name)
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    data.check_test_data(cfg)
    assert MetadataCatalog.get("b").thing_classes == ["dog", "\xe9mu"]
    (pets / "test" / "\xe9mu").mkdir()
    with pytest.raises(DatasetError, match="the name of another one looks the same"):
        data.check_test_data(cfg)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"NAME": "x"}, r"NAME and IMAGES, and this one has NAME; write"),
        ("x", "this one has none"),
        ({"NAME": "x", "IMAGES": "y", "ANNOTATIONS": "z"}, r"unknown key .*'ANNOTATIONS'; known are IMAGES, NAME"),
    ],
)
def test_wrong_entries_of_custom_are_refused(entry: Any, message: str) -> None:
    cfg = config()
    cfg.DATASETS.CUSTOM = [entry]
    with pytest.raises(DatasetError, match=message):
        data.register_datasets(cfg)
