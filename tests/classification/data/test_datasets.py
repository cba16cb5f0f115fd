import gzip
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ode_detect.classification.data import datasets as data
from ode_detect.classification.data import folders, sources
from ode_detect.classification.data.mapper import BatchMapper
from ode_detect.classification.data.sources import to_format
from ode_detect.engine.config import add_ode_config
from ode_detect.media.errors import DatasetError

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data"))
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


def test_cifar_100_has_100_classes_in_order() -> None:
    config()
    names = MetadataCatalog.get("cifar100_train").source.class_names()
    assert len(set(names)) == 100
    assert list(names) == sorted(names)


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


def test_train_and_test_have_the_same_classes(pets: Path) -> None:
    (pets / "test" / "dog").rename(pets / "test" / "horse")
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    with pytest.raises(DatasetError, match=r"beside a, b lacks dog and also has horse\. Rename"):
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


def test_composed_and_decomposed_names_are_one_class(pets: Path) -> None:
    for part, name in (("train", "\xe9mu"), ("test", "e\u0301mu")):
        (pets / part / "cat").rename(pets / part / name)
    cfg = config("a", "b", a=pets / "train", b=pets / "test")
    data.check_test_data(cfg)
    assert MetadataCatalog.get("b").thing_classes == ["dog", "\xe9mu"]
    (pets / "test" / "\xe9mu").mkdir()
    with pytest.raises(DatasetError, match="the name of another one looks the same"):
        data.check_test_data(cfg)


def test_a_test_set_can_do_without_the_training_set(pets: Path) -> None:
    data.check_test_data(config("a", "b", a=pets / "nowhere", b=pets / "test"))


def test_the_number_of_classes_is_compared(pets: Path) -> None:
    cfg = config("a", "a", classes=10, a=pets / "train")
    for read in (data.train_data, data.check_test_data, lambda cfg: data.test_loader(cfg, "a")):
        with pytest.raises(DatasetError, match=r"a has 2 classes and the network 10; set .*NUM_CLASSES 2"):
            read(cfg)
    assert data.categories(cfg) == []


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
