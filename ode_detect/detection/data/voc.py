"""PASCAL VOC XML as COCO content."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

from ode_detect.media.errors import DatasetError, Problem
from ode_detect.media.inputs import PICTURES
from ode_detect.media.names import by_stem, is_file, other_spellings, same_name
from ode_detect.media.text import read_text, read_xml

from .formats import other_folder, other_xml


def read_voc(
    annotations: Path, images: Path, *, split: Path | None = None, classes: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Read one XML file for each picture.

    VOC counts pixels from 1 and a box ends with its last pixel, so ``xmin`` 1 is the left edge, 0. An object marked
    ``difficult`` becomes a crowd box, which evaluation ignores, and keeps its mark so that it can be trained on.

    Args:
        annotations: folder of the XML files.
        images: folder of the pictures, named as their XML files, or as these say.
        split: text file with one id (name of an XML file without ``.xml``) per line; None takes all.
        classes: names in the order of their numbers; empty takes all that occur, sorted.

    Returns:
        Content in COCO's form, images numbered from 1 in the order of the split, for `annotations.repair`; and the
        problems that only the files show.

    Raises:
        DatasetError: a file of the split is missing, or is not VOC XML.
    """
    xml = by_stem(annotations, {".xml"})
    names, problems = _names(annotations, xml, split)
    files = by_stem(images, PICTURES)
    pictures: list[dict[str, Any]] = []
    objects: list[tuple[int, str, dict[str, Any]]] = []
    missing = []
    for number, name in enumerate(names, start=1):
        file = annotations / _only(xml[name], f"{name}.xml", annotations)
        root = read_xml(file)
        if other_xml(root.tag, file):
            raise DatasetError(other_xml(root.tag, file))
        picture = _picture(name, root, files, images)
        if not picture:
            missing.append(f"{images / name}.*")
            continue
        size = {key: _pixels(root.findtext(f"size/{key}")) for key in ("width", "height")}
        pictures.append({"id": number, "file_name": picture, **size})
        objects += [(number, *_object(element, file)) for element in root.findall("object")]
    if missing:
        problems.append(Problem("pictures that are not there", tuple(missing)))
    found = Counter(label for _, label, _ in objects)
    classes = list(map(same_name, classes)) or sorted(found)
    unknown = tuple(f"{label!r} ({count} objects)" for label, count in found.items() if label not in classes)
    if unknown:
        problems.append(Problem(f"names that are not among the classes ({', '.join(classes)})", unknown))
        objects = [entry for entry in objects if entry[1] in classes]
    numbers = {label: i for i, label in enumerate(classes, start=1)}
    boxes = [
        {"id": i, "image_id": image, "category_id": numbers[label], **box}
        for i, (image, label, box) in enumerate(objects, start=1)
    ]
    categories = [{"id": i, "name": label} for label, i in numbers.items()]
    return {"images": pictures, "annotations": boxes, "categories": categories}, problems


def _names(
    annotations: Path, there: Mapping[str, Sequence[str]], split: Path | None
) -> tuple[list[str], list[Problem]]:
    """The ids of a split, each once, in its order."""
    if split is None:
        names = sorted(there)
    else:
        names = [same_name(line.strip()) for line in read_text(split).splitlines() if line.strip()]
    absent = [name for name in dict.fromkeys(names) if name not in there]
    if not there:
        raise DatasetError(
            f"VOC XML is one file ID.xml for each picture, and {annotations} has none. {other_folder(annotations)}"
        )
    if absent or not names:
        flagged = any(name.split()[0] in there for name in absent)
        hint = " VOC's lists of one class have a second column; take a list of ids alone." if flagged else ""
        raise DatasetError(
            f"every id in {split or annotations} needs its file ID.xml in {annotations}, and there must be one at "
            f"least; {len(absent)} of {len(names)} have none{': ' if absent else ''}{', '.join(absent[:3])}. Correct "
            f"the split, or add the files.{hint}"
        )
    repeated = tuple(name for name, count in Counter(names).items() if count > 1)
    problems = [Problem(f"ids more than once in {split}", repeated, "read once")] if repeated else []
    return list(dict.fromkeys(names)), problems


def _picture(name: str, root: ElementTree.Element, files: Mapping[str, Sequence[str]], images: Path) -> str:
    """The picture's file by the name of its XML file, else the one that this names; "" if there is none."""
    candidates = files.get(name, [])
    said = root.findtext("filename", "").strip()
    if len(candidates) > 1:
        # What labelImg writes may be a whole path, of another system.
        last = same_name(PureWindowsPath(said).name)
        return _only([c for c in candidates if same_name(c) == last] or candidates, name, images)
    if candidates:
        return candidates[0]
    said = other_spellings(images, [said]).get(said, said)
    return said if said and is_file(images / said) else ""


def _only(names: Sequence[str], name: str, folder: Path) -> str:
    if len(names) > 1:
        raise DatasetError(
            f"{name} is the one file of that name in {folder}; there are {', '.join(names)}. Take all but one away; "
            "of pictures, the right one may be named by <filename> in the XML file."
        )
    return names[0]


def _object(element: ElementTree.Element, file: Path) -> tuple[str, dict[str, Any]]:
    """Class, and what COCO says of an object."""
    # XML may be laid out in lines, also within a name.
    label = same_name(" ".join(line.strip() for line in element.findtext("name", "").strip().splitlines()))
    try:
        x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        label = ""
    if not label:
        raise DatasetError(
            f"an object in VOC XML has a name and a bndbox with xmin, ymin, xmax and ymax; one in {file} has not. "
            "Correct it, or delete that object."
        )
    # What starts and ends at the same place is no object of one pixel but a slip of the mouse: no pixel is added.
    width, height = (
        last - first + 1 if last > first or not math.isfinite(last - first) else last - first
        for first, last in ((x0, x1), (y0, y1))
    )
    difficult = int(element.findtext("difficult", "0").strip().lower() in ("1", "true"))
    # Some programs count from 0: their left edge would lie at -1.
    x0, y0 = (first - 1 if first != 0 else first for first in (x0, y0))
    box = {"bbox": [x0, y0, width, height], "area": width * height, "iscrowd": difficult, "difficult": difficult}
    return label, box


def _pixels(text: str | None) -> int:
    """A whole number of pixels; 0, to be taken from the picture, if there is none."""
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        return 0


def write_voc(content: dict[str, Any], folder: Path, split: str) -> None:
    """Write COCO content as VOC XML in the standard layout, without pictures; `read_voc` reads the same boxes.

    Args:
        content: as `annotations.repair` gives it.
        folder: gets ``Annotations/ID.xml``, where ID is the image's id, and ``ImageSets/Main/SPLIT.txt``.
        split: name of the list of ids.
    """
    names = {category["id"]: category["name"] for category in content["categories"]}
    roots = {image["id"]: ElementTree.Element("annotation") for image in content["images"]}
    for image in content["images"]:
        _add(roots[image["id"]], "filename", image["file_name"])
        size = ElementTree.SubElement(roots[image["id"]], "size")
        for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            _add(size, key, value)
    for annotation in content["annotations"]:
        element = ElementTree.SubElement(roots[annotation["image_id"]], "object")
        _add(element, "name", names[annotation["category_id"]])
        for key, value in (("pose", "Unspecified"), ("truncated", 0), ("difficult", annotation["iscrowd"])):
            _add(element, key, value)
        box = ElementTree.SubElement(element, "bndbox")
        x, y, width, height = annotation["bbox"]
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        for key, corner in corners.items():
            _add(box, key, round(corner))
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for image_id, root in roots.items():
        # ASCII, since Detectron2 reads it in the system's encoding, whatever that is.
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{image_id}.xml", encoding="us-ascii")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in roots))


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
