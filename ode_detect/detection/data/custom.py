"""One's own data sets, by config alone: ``DATASETS.CUSTOM``."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ode_detect.media.errors import DatasetError, Problem
from ode_detect.media.text import is_ascii
from ode_detect.ode.names import UnknownNameError, check_name

from .annotations import Content, read_coco, refuse, repair, to_records
from .classes import Classes
from .formats import other_file
from .voc import read_voc, write_voc

_REQUIRED = ("NAME", "IMAGES", "ANNOTATIONS")
_OPTIONAL = ("SPLIT", "CLASSES", "EVALUATOR")
# By what a data set is evaluated, as metadata of Detectron2: type of the evaluator, and for VOC the year of its AP.
_EVALUATORS: dict[str, dict[str, Any]] = {
    "coco": {"evaluator_type": "coco"},
    "voc": {"evaluator_type": "pascal_voc", "year": 2012},
    "voc2007": {"evaluator_type": "pascal_voc", "year": 2007},
}


@dataclass(frozen=True)
class Source:
    """Where a data set of one's own is.

    Attributes:
        name: by which ``DATASETS.TRAIN`` and ``TEST`` name it.
        images: folder of the pictures.
        annotations: COCO JSON if a file, VOC XML if a folder.
        split: list of ids, for VOC XML; None takes all.
        classes: names in order, for VOC XML; empty takes all that occur, sorted.
        evaluator: "coco", "voc" (area under the curve, as since 2010) or "voc2007" (eleven points).
    """

    name: str
    images: Path
    annotations: Path
    split: Path | None = None
    classes: tuple[str, ...] = ()
    evaluator: str = "coco"

    def files(self) -> list[Path]:
        """What must be there."""
        return [self.annotations, self.images, *([self.split] if self.split else [])]

    def read(self) -> tuple[Content, list[Problem]]:
        """Read and repair the annotations.

        Returns:
            COCO content, and what was repaired in it.

        Raises:
            DatasetError: the annotations cannot be used.
        """
        raw, problems = self.read_raw()
        content, found = repair(raw, self.images)
        refuse([*problems, *found], self.annotations)
        return content, [*problems, *found]

    def read_raw(self) -> tuple[Content, list[Problem]]:
        """Read the annotations as they are, in COCO's form.

        Raises:
            DatasetError: they are not COCO JSON, or not VOC XML.
        """
        if self.annotations.is_dir():
            return read_voc(self.annotations, self.images, split=self.split, classes=self.classes)
        if self.split or self.classes:
            raise DatasetError(
                f"SPLIT and CLASSES belong to VOC XML, where ANNOTATIONS is a folder; {self.annotations} of "
                f"{self.name!r} is a file, and COCO JSON names its pictures and categories itself. Leave them out."
            )
        if other_file(self.annotations):
            raise DatasetError(f"{self.annotations} of {self.name!r} is no COCO JSON. {other_file(self.annotations)}")
        return read_coco(self.annotations), []


def source_of(name: str) -> Source:
    """Where a data set is, one's own or one of Detectron2's in the layout of COCO or VOC.

    Raises:
        DatasetError: it is of another kind.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("source") is not None:
        return metadata.source
    if metadata.get("evaluator_type") == "coco" and metadata.get("json_file"):
        return Source(name, Path(metadata.image_root), Path(metadata.json_file))
    if metadata.get("evaluator_type") == "pascal_voc":
        root, classes = Path(metadata.dirname), tuple(metadata.thing_classes)
        split = root / "ImageSets" / "Main" / f"{metadata.split}.txt"
        evaluator = "voc2007" if metadata.year == 2007 else "voc"
        return Source(name, root / "JPEGImages", root / "Annotations", split, classes, evaluator)
    raise DatasetError(
        f"a data set is checked if it is COCO JSON or VOC XML; {name} is {metadata.get('evaluator_type', 'neither')}. "
        "Convert its annotations to COCO JSON."
    )


def class_names(name: str) -> Classes | None:
    """The classes of a registered data set; None where they are not known before it is read."""
    metadata = MetadataCatalog.get(name)
    names, source = metadata.get("thing_classes"), metadata.get("source")
    xml = source is not None and source.annotations.is_dir()
    return None if names is None else Classes(name, tuple(names), xml)


def register(entry: Any) -> None:
    """Make an entry of ``DATASETS.CUSTOM`` known to Detectron2.

    Raises:
        DatasetError: it lacks a key, has an unknown one, or takes the name of another data set.
    """
    source = _source(entry)
    if source.name in DatasetCatalog.list():
        if MetadataCatalog.get(source.name).get("source") == source:
            return
        raise DatasetError(
            f"a data set named {source.name!r} is registered already; choose another NAME in DATASETS.CUSTOM."
        )
    DatasetCatalog.register(source.name, functools.partial(load, source))
    metadata = {"source": source, "image_root": str(source.images), **_EVALUATORS[source.evaluator]}
    if source.evaluator == "coco" and not source.annotations.is_dir():
        metadata["json_file"] = str(source.annotations)
    MetadataCatalog.get(source.name).set(**metadata)


def load(source: Source) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format; the metadata get ``thing_classes`` and what was repaired, ``problems``."""
    content, problems = source.read()
    _describe(source.name, content, problems)
    return to_records(content, source.images)


def load_with_truth(name: str) -> list[dict[str, Any]] | None:
    """Read a data set of one's own as `load` does, and write what it is evaluated against.

    COCO's and VOC's AP are computed from files. They get the repaired annotations, in a folder that is deleted when
    Python ends. None is needed where COCO JSON is in order and ASCII, which pycocotools reads as we do whatever the
    system's encoding, and for VOC XML evaluated by COCO's AP, which the evaluator converts from `load`.

    Returns:
        Dataset dicts in Detectron2's format; None for a data set that is not one's own.
    """
    source = MetadataCatalog.get(name).get("source")
    if source is None:
        return None
    content, problems = source.read()
    _describe(name, content, problems)
    if source.evaluator != "coco" or not source.annotations.is_dir():
        _write_truth(source, content, problems)
    return to_records(content, source.images)


def _write_truth(source: Source, content: Content, problems: list[Problem]) -> None:
    if source.evaluator == "coco" and not problems and is_ascii(source.annotations):
        _set(source.name, json_file=str(source.annotations))
        return
    # Named by what it holds, because Detectron2 remembers what it has read from a file.
    text = json.dumps(content)
    place = _truth_folder() / hashlib.sha256(text.encode()).hexdigest()[:16]
    if source.evaluator == "coco":
        place = place.with_suffix(".json")
        place.write_text(text)
        _set(source.name, json_file=str(place))
    else:
        write_voc(content, place, "truth")
        _set(source.name, dirname=str(place), split="truth")


def _source(entry: Any) -> Source:
    keys = set(entry) if isinstance(entry, dict) else set()
    if not keys.issuperset(_REQUIRED):
        raise DatasetError(
            f"an entry of DATASETS.CUSTOM has the keys NAME, IMAGES and ANNOTATIONS, and this one has "
            f"{', '.join(sorted(map(str, keys))) or 'none'}; write {{NAME: my_train, IMAGES: folder, ANNOTATIONS: "
            "file.json}, or a folder of VOC XML."
        )
    try:
        for key in keys:
            check_name(key, (*_REQUIRED, *_OPTIONAL), "key in DATASETS.CUSTOM")
        check_name(str(entry.get("EVALUATOR", "coco")), _EVALUATORS, "EVALUATOR in DATASETS.CUSTOM")
    except UnknownNameError as error:
        raise DatasetError(str(error)) from error
    classes = entry.get("CLASSES", ())
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        raise DatasetError(
            f"CLASSES is a list of names, and that of {entry['NAME']!r} is {classes!r}; write [cat, dog]."
        )
    if len(set(classes)) < len(classes):
        raise DatasetError(f"CLASSES names each class once, and that of {entry['NAME']!r} is {classes}; join them.")
    return Source(
        name=str(entry["NAME"]),
        images=Path(entry["IMAGES"]).expanduser(),
        annotations=Path(entry["ANNOTATIONS"]).expanduser(),
        split=Path(entry["SPLIT"]).expanduser() if entry.get("SPLIT") else None,
        classes=tuple(classes),
        evaluator=str(entry.get("EVALUATOR", "coco")),
    )


def _describe(name: str, content: Content, problems: list[Problem]) -> None:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    numbers = {category["id"]: i for i, category in enumerate(categories)}
    _set(
        name,
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=numbers,
        problems=tuple(problems),
    )


def _set(name: str, **values: Any) -> None:
    """Set metadata, also where the files have changed since: Detectron2 refuses another value."""
    metadata = MetadataCatalog.get(name)
    for key in values:
        metadata.__dict__.pop(key, None)
    metadata.set(**values)


@functools.cache
def _truth_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ode_detect_truth_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
