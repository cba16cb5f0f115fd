"""Data sets of labelled pictures: registered with Detectron2, checked before they are used."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from numpy.typing import NDArray

from ode_detect.media.errors import DatasetError
from ode_detect.media.places import datasets_root
from ode_detect.ode.names import UnknownNameError, check_name

from .folders import FolderSource, from_entry
from .known import known_sources
from .mapper import Example, Mapper, build_mapper
from .sources import FORMATS, Pictures, Source, read_pictures


def register_datasets(cfg: CfgNode) -> None:
    """Make the data sets of ode_detect, and those of ``DATASETS.CUSTOM``, known to Detectron2.

    Raises:
        DatasetError: an entry of CUSTOM lacks a key, or takes the name of another data set.
    """
    for source in known_sources(datasets_root()):
        _register(source)
    for entry in cfg.DATASETS.CUSTOM:
        source = from_entry(entry)
        if source.name in DatasetCatalog.list() and MetadataCatalog.get(source.name).get("source") != source:
            raise DatasetError(
                f"a data set named {source.name!r} is registered already; choose another NAME in DATASETS.CUSTOM."
            )
        _register(source)


def require_datasets(names: Sequence[str]) -> None:
    """Check that data sets are known and their files are there.

    Raises:
        DatasetError: in one message, every data set that is missing, the files it expects, and how to get it.
    """
    missing: list[str] = []
    advice: list[str] = []
    for source in map(_source_of, names):
        paths = source.missing()
        missing += [f"  {source.name}: {path}" for path in paths]
        advice += [f"  {source.advice}"] if paths and f"  {source.advice}" not in advice else []
    if missing:
        raise DatasetError(
            "data that the config asks for is not there. Expected:\n"
            + "\n".join(missing)
            + "\nTo get it:\n"
            + "\n".join(advice)
            + f"\nData sets are looked for in {str(datasets_root())!r}; DETECTRON2_DATASETS names another place. "
            "datasets/README.md says more."
        )


def train_data(cfg: CfgNode) -> tuple[list[Example], Mapper]:
    """The training pictures and what makes examples of them.

    Returns:
        A dict for each picture ("index", "label", "height" and "width" of its example, "file_name" if it has a file of
        its own), and the mapper from them to training examples.

    Raises:
        DatasetError: files are missing, cannot be read, or have other classes than the network or one another.
        ValueError: a key of ``INPUT`` has a value that it cannot have.
    """
    pictures = _training_pictures(cfg)
    trained_on, _ = _split(cfg, pictures)
    return trained_on, build_mapper(cfg, pictures, is_train=True)


def reference_data(cfg: CfgNode) -> tuple[list[Example], list[Example], Mapper]:
    """The training pictures as they are tested.

    Returns:
        Dicts of those that are trained on; those that are held out (`DATASETS.HELD_OUT`), or the same if none are; and
        the mapper from them to examples as in testing.

    Raises:
        DatasetError: as for `train_data`.
    """
    pictures = _training_pictures(cfg)
    trained_on, held_out = _split(cfg, pictures)
    return trained_on, held_out or trained_on, build_mapper(cfg, pictures, is_train=False)


def test_loader(cfg: CfgNode, name: str) -> Iterable[list[Example]]:
    """A data set in order, in lists of ``TEST.BATCH`` examples, without augmentation; each process gets its part.

    Raises:
        DatasetError: as for `train_data`.
    """
    _check_classes(cfg, [name])
    pictures = _read(cfg, name)
    workers = cfg.DATALOADER.NUM_WORKERS if pictures.images is None else 0
    mapper = build_mapper(cfg, pictures, is_train=False)
    loader: Iterable[list[Example]] = build_detection_test_loader(
        _dicts(cfg, pictures), mapper=mapper, batch_size=cfg.TEST.BATCH, num_workers=workers
    )
    return loader


def spread_examples(cfg: CfgNode, name: str, count: int) -> list[Example]:
    """So many examples of a data set as in testing, each with its "index", evenly spread: it often lies class by class.

    Raises:
        DatasetError: as for `train_data`.
    """
    pictures = _read(cfg, name)
    dicts, mapper = _dicts(cfg, pictures), build_mapper(cfg, pictures, is_train=False)
    places = np.linspace(0, len(dicts) - 1, min(count, len(dicts))).round().astype(int)
    return [{"index": i, **mapper(dicts[i])} for i in places.tolist()]


def images(cfg: CfgNode, name: str, indices: Iterable[int]) -> dict[int, NDArray[np.uint8]]:
    """Pictures of a data set as the network is tested on them, to be drawn.

    Returns:
        Index -> RGB, uint8, shape (H, W, 3).

    Raises:
        DatasetError: as for `train_data`.
    """
    pictures = _read(cfg, name)
    mapper = build_mapper(cfg, pictures, is_train=False)
    found = {}
    for index in indices:
        image = mapper({"index": index, "label": pictures.labels[index]})["image"]
        found[index] = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return found


def check_test_data(cfg: CfgNode) -> None:
    """Read the data sets of ``DATASETS.TEST`` before hours of training, not after.

    Raises:
        DatasetError: as for `train_data`.
    """
    # What is trained on need not be there to be tested.
    trained = [name for name in cfg.DATASETS.TRAIN if not _source_of(name).missing()]
    _check_classes(cfg, [*trained, *cfg.DATASETS.TEST])
    for name in cfg.DATASETS.TEST:
        _read(cfg, name)


def categories(cfg: CfgNode) -> list[dict[str, Any]]:
    """Ids (from 0) and names of the classes, in the order of the network.

    Args:
        cfg: its data sets must be registered.

    Returns:
        The classes of the first data set of ``DATASETS.TRAIN`` and ``TEST`` that has as many as the network; [] if none
        has, or none is on this machine.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        try:
            names = _source_of(name).class_names()
        except DatasetError:
            continue
        if len(names) == cfg.MODEL.CLASSIFIER.NUM_CLASSES:
            return [{"id": number, "name": name} for number, name in enumerate(names)]
    return []


def _register(source: Source) -> None:
    if source.name in DatasetCatalog.list():
        DatasetCatalog.remove(source.name)
        MetadataCatalog.remove(source.name)
    DatasetCatalog.register(source.name, functools.partial(_load, source))
    metadata = MetadataCatalog.get(source.name).set(source=source)
    # A folder that is not in order is no fault of a run that does without it.
    with contextlib.suppress(DatasetError):
        metadata.set(thing_classes=list(source.class_names()))


def _load(source: Source) -> list[Example]:
    pictures = read_pictures(source, "RGB", 0)
    return [{"index": index, "label": label} for index, label in enumerate(pictures.labels)]


def _source_of(name: str) -> Source:
    known = [each for each in DatasetCatalog.list() if isinstance(MetadataCatalog.get(each).get("source"), Source)]
    try:
        source: Source = MetadataCatalog.get(check_name(name, known, "data set of labelled pictures")).source
    except UnknownNameError as error:
        raise DatasetError(f"{error} One's own are added by DATASETS.CUSTOM.") from error
    return source


def _read(cfg: CfgNode, name: str) -> Pictures:
    format = check_name(cfg.INPUT.FORMAT, FORMATS, "INPUT.FORMAT of a classifier")
    return read_pictures(_source_of(name), format, cfg.INPUT.SIDE)


def _dicts(cfg: CfgNode, pictures: Pictures) -> list[Example]:
    side = cfg.INPUT.SIDE
    images = pictures.images
    height, width = (side, side) if side or images is None else images.shape[2:]
    dicts = [
        {"index": index, "label": label, "height": height, "width": width}
        for index, label in enumerate(pictures.labels)
    ]
    for record, file in zip(dicts, pictures.files, strict=False):
        record["file_name"] = file
    return dicts


def _training_pictures(cfg: CfgNode) -> Pictures:
    names = list(cfg.DATASETS.TRAIN)
    if not names:
        raise DatasetError("DATASETS.TRAIN names the data sets to train on, and it is empty; give it one.")
    _check_classes(cfg, names)
    pictures = _joined(names, [_read(cfg, name) for name in names], cfg.INPUT.SIDE)
    source = _source_of(names[0])
    if isinstance(source, FolderSource):
        source.require_pictures(pictures.labels)
    return pictures


def _split(cfg: CfgNode, pictures: Pictures) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out: the same in every run, whatever its seed."""
    share = cfg.DATASETS.HELD_OUT
    if not 0 <= share < 1:
        raise DatasetError(f"DATASETS.HELD_OUT is a share in [0, 1), and it is {share}; 0.02 is usual.")
    dicts = _dicts(cfg, pictures)
    order = torch.randperm(len(dicts), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = set(order[: round(share * len(dicts))])
    if dicts and len(held_out) == len(dicts):
        raise DatasetError(
            f"DATASETS.HELD_OUT {share:g} of {len(dicts)} training pictures leaves none to train on; lower it, 0 holds "
            "out none."
        )
    return [d for d in dicts if d["index"] not in held_out], [dicts[index] for index in sorted(held_out)]


def _joined(names: Sequence[str], sets: Sequence[Pictures], side: int) -> Pictures:
    """Several sets as one."""
    if len(sets) == 1:
        return sets[0]
    labels = list(itertools.chain.from_iterable(each.labels for each in sets))
    files = list(itertools.chain.from_iterable(each.files for each in sets))
    images = [each.images for each in sets if each.images is not None]
    sizes = {image.shape[1:] for image in images}
    if len(images) == len(sets) and len(sizes) == 1:
        return Pictures(labels, torch.cat(images), files if len(files) == len(labels) else (), sets[0].format)
    if side == 0 and len(sizes) > 1:
        raise DatasetError(
            f"INPUT.SIDE 0 takes pictures as they are, which then have one size, and those of {', '.join(names)} have "
            f"{_listed([f'{width}x{height}' for _, height, width in sorted(sizes)])}. Set INPUT.SIDE to the side in "
            "pixels that the network is to see."
        )
    if len(files) == len(labels):
        return Pictures(labels, None, files, sets[0].format)
    raise DatasetError(
        f"sets that are trained on together have pictures of one size, or a file for each picture, and "
        f"{', '.join(names)} have neither; train on one of them."
    )


def _check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """The sets must be there and have the same classes, as many as the network."""
    require_datasets(names)
    classes = {name: _source_of(name).class_names() for name in names}
    known = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    for name, found in classes.items():
        first = next(iter(classes))
        lacking = [each for each in classes[first] if each not in found]
        additional = [each for each in found if each not in classes[first]]
        if lacking or additional:
            wrong = [
                *([f"lacks {_listed(lacking)}"] if lacking else []),
                *([f"also has {_listed(additional)}"] if additional else []),
            ]
            raise DatasetError(
                f"training and test data have the same classes; compared with {first}, {name} {' and '.join(wrong)}. "
                "Rename, add or delete folders until both have the same; in test data, that of a class without a "
                "picture is empty."
            )
        if found != classes[first]:
            raise DatasetError(
                f"the classes of training and test data have one order, and {name} has those of {first} in another "
                f"({_listed(found)}; {_listed(classes[first])}). Use two data sets of one kind."
            )
        if len(found) != known:
            raise DatasetError(
                f"{name} has {len(found)} classes and the network {known}; set MODEL.CLASSIFIER.NUM_CLASSES "
                f"{len(found)} to train on these ({_listed(found)}). Test data without a picture of some class of the "
                "network have an empty folder for it."
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
