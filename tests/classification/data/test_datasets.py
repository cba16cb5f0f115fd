from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data import folders, sources
from ode_detect.classification.data.mapper import BatchMapper
from ode_detect.media.errors import DatasetError

from .conftest import config, picture


def test_the_test_loader_gives_batches_in_order(pets: Path) -> None:
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    cfg.TEST.BATCH = 4
    cfg.INPUT.PAD_CROP = 3  # of training only
    batches = list(data.test_loader(cfg, "b"))
    assert [len(batch) for batch in batches] == [4, 2]
    for example in (example for batch in batches for example in batch):
        expected = np.asarray(Image.open(example["file_name"])).transpose(2, 0, 1)
        np.testing.assert_array_equal(example["image"].numpy(), expected)
        assert (example["height"], example["width"]) == (8, 8)


def test_pictures_are_decoded_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = folders.read_image
    monkeypatch.setattr(folders, "read_image", lambda path, format: (read.append(path), original(path, format))[1])
    cfg = config("a", a=pets / "train")
    first = data.train_data(cfg)
    count = len(read)
    assert set(read) == {record["file_name"] for record in first[0]}
    data.train_data(cfg)
    assert len(read) == count


def test_pictures_of_different_sizes_need_a_side(pets: Path) -> None:
    picture(pets / "train" / "dog" / "9.png", size=(12, 10))
    with pytest.raises(DatasetError, match=r"INPUT\.SIDE 0 .*0\.png is 8x8, and .*9\.png 12x10.*Set INPUT\.SIDE"):
        data.train_data(config("a", a=pets / "train"))


@pytest.mark.parametrize("side", [6, 8])
def test_with_a_side_pictures_are_read_from_their_files(pets: Path, side: int) -> None:
    picture(pets / "train" / "dog" / "9.png", size=(12, 10))
    cfg = config("a", side=side, a=pets / "train")
    dicts, mapper = data.train_data(cfg)
    assert not isinstance(mapper, BatchMapper)
    assert (dicts[-1]["height"], dicts[-1]["width"]) == (side, side)
    for record in dicts:
        example = mapper(record)
        assert example["image"].shape == (3, side, side)
        assert example["image"].dtype == torch.uint8
    [batch] = data.test_loader(cfg, "a")
    assert torch.equal(batch[-1]["image"], next(iter(data.test_loader(cfg, "a")))[-1]["image"])
    assert batch[-1]["image"].shape == (3, side, side)


def test_sets_that_do_not_fit_into_memory_stay_files(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_WHOLE_BYTES", 6 * 192 - 1)
    _, mapper = data.train_data(config("a", a=pets / "train"))
    assert mapper.pictures.images is None
    monkeypatch.setattr(folders, "_WHOLE_BYTES", 6 * 192)
    sources.read_pictures.cache_clear()
    _, mapper = data.train_data(config("a", a=pets / "train"))
    assert mapper.pictures.images is not None


def test_train_and_test_have_the_same_classes(pets: Path) -> None:
    (pets / "test" / "dog").rename(pets / "test" / "horse")
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    with pytest.raises(DatasetError, match=r"compared with a, b lacks dog and also has horse\. Rename"):
        data.check_test_data(cfg)
    picture(pets / "train" / "horse" / "1.png")
    cfg = config("a", "b", classes=3, a=pets / "train", b=pets / "test")
    with pytest.raises(DatasetError, match=r"b lacks dog\. Rename.*that of a class without a picture is empty"):
        data.check_test_data(cfg)
    (pets / "test" / "dog").mkdir()
    data.check_test_data(cfg)
    assert [example["label"] for batch in data.test_loader(cfg, "b") for example in batch] == [0, 0, 0, 2, 2, 2]
    with pytest.raises(DatasetError, match="each class of b has a picture"):
        data.train_data(config("b", classes=3, b=pets / "test"))


def test_examples_are_spread_over_the_classes(pets: Path) -> None:
    examples = data.spread_examples(config("a", a=pets / "test"), "a", 3)
    assert [(e["index"], e["label"]) for e in examples] == [(0, 0), (2, 0), (5, 1)]


def test_a_test_set_can_do_without_the_training_set(pets: Path) -> None:
    data.check_test_data(config("a", "b", a=pets / "nowhere", b=pets / "test"))


def test_the_number_of_classes_is_compared(pets: Path) -> None:
    cfg = config("a", "a", classes=10, a=pets / "train")
    for read in (data.train_data, data.check_test_data, lambda cfg: data.test_loader(cfg, "a")):
        with pytest.raises(DatasetError, match=r"a has 2 classes and the network 10; set .*NUM_CLASSES 2"):
            read(cfg)
    assert data.categories(cfg) == []


def test_a_name_is_taken_once(pets: Path) -> None:
    config("a", a=pets / "train")
    config("a", a=pets / "train")
    with pytest.raises(DatasetError, match="'a' is registered already"):
        config("a", a=pets / "test")
    with pytest.raises(DatasetError, match="'mnist_train' is registered already"):
        config("a", mnist_train=pets / "test")


def test_two_sets_are_trained_on_as_one(pets: Path, tmp_path: Path) -> None:
    cfg = config("a", a=pets / "train", b=pets / "test")
    cfg.DATASETS.TRAIN = ("a", "b")
    for side in (0, 6):
        cfg.INPUT.SIDE = side
        dicts, mapper = data.train_data(cfg)
        assert len(dicts) == 12
        assert isinstance(mapper, BatchMapper) == (side == 0)
        if side == 0:
            expected = np.asarray(Image.open(dicts[8]["file_name"])).transpose(2, 0, 1)
            np.testing.assert_array_equal(mapper(dicts[8])["image"].numpy(), expected)


def test_sets_of_different_sizes_are_one_only_with_a_side(pets: Path, tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        picture(tmp_path / "large" / name / "0.png", size=(12, 10))
    cfg = config("a", a=pets / "train", b=tmp_path / "large")
    cfg.DATASETS.TRAIN = ("a", "b")
    with pytest.raises(DatasetError, match=r"those of a, b have 8x8, 12x10\. Set INPUT\.SIDE"):
        data.train_data(cfg)
    cfg.INPUT.SIDE = 8
    dicts, mapper = data.train_data(cfg)
    assert {mapper(record)["image"].shape for record in dicts} == {(3, 8, 8)}


def test_train_and_test_have_their_classes_in_one_order(pets: Path) -> None:
    class Reversed(folders.FolderSource):
        def class_names(self) -> tuple[str, ...]:
            return super().class_names()[::-1]

    cfg = config("a", "b", a=pets / "train")
    source = Reversed("b", pets / "test", "get it")
    DatasetCatalog.register("b", list)
    MetadataCatalog.get("b").set(source=source)
    with pytest.raises(DatasetError, match=r"b has those of a in another \(dog, cat; cat, dog\)"):
        data.check_test_data(cfg)


def test_the_format_is_colour_or_grey(pets: Path) -> None:
    cfg = config("a", a=pets / "train")
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT of a classifier 'BGR'; known are L, RGB"):
        data.train_data(cfg)
    cfg.INPUT.FORMAT = "L"
    dicts, mapper = data.train_data(cfg)
    expected = np.asarray(Image.open(dicts[0]["file_name"]).convert("L"))
    np.testing.assert_array_equal(mapper(dicts[0])["image"][0].numpy(), expected)


def test_pictures_that_are_held_out_are_not_trained_on_whatever_the_seed(pets: Path) -> None:
    cfg = config("a", a=pets / "train")
    cfg.DATASETS.HELD_OUT = 0.34
    trained_on, mapper = data.train_data(cfg)
    cfg.SEED = 7
    again, held_out, tested = data.reference_data(cfg)
    assert [d["index"] for d in again] == [d["index"] for d in trained_on]
    assert sorted(d["index"] for d in [*trained_on, *held_out]) == list(range(6))
    assert len(held_out) == 2
    assert torch.equal(mapper(trained_on[0])["image"], tested(trained_on[0])["image"])
    cfg.DATASETS.HELD_OUT = 0.0
    everything, familiar, _ = data.reference_data(cfg)
    assert len(everything) == 6
    assert familiar == everything


def test_a_share_that_is_held_out_is_below_1(pets: Path) -> None:
    cfg = config("a", a=pets / "train")
    cfg.DATASETS.HELD_OUT = 1.0
    with pytest.raises(DatasetError, match=r"HELD_OUT is a share in \[0, 1\), and it is 1.0"):
        data.train_data(cfg)


def test_holding_out_every_picture_is_refused(pets: Path) -> None:
    cfg = config("a", a=pets / "train")
    cfg.DATASETS.HELD_OUT = 0.95
    with pytest.raises(DatasetError, match=r"HELD_OUT 0\.95 of 6 training pictures leaves none"):
        data.train_data(cfg)


def test_pictures_to_be_drawn_are_rgb(pets: Path) -> None:
    cfg = config("a", "a", side=6, a=pets / "train")
    cfg.INPUT.FORMAT = "L"
    found = data.images(cfg, "a", [4, 1])
    assert list(found) == [4, 1]
    assert {image.shape for image in found.values()} == {(6, 6, 3)}
    assert (found[4][..., 0] == found[4][..., 2]).all()
