"""Annotations in other formats than COCO JSON and VOC XML: recognised, to say how to get what is read."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

_EXPORT = (
    "COCO JSON or VOC XML is read: export the annotations as COCO (Roboflow, Label Studio: COCO; CVAT: COCO 1.0; "
    "FiftyOne: COCODetectionDataset) from the program that they were made in."
)
_YOLO = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*", re.ASCII)


def other_json(content: Any) -> str:
    """What JSON that is no COCO seems to be, and what to do; "" if that is not known.

    Args:
        content: as it was read.
    """
    first = content[0] if isinstance(content, list) and content else content
    keys = set(first) if isinstance(first, dict) else set()
    if isinstance(content, list) and {"image_id", "category_id", "bbox"} <= keys:
        return (
            "It is a list of annotations or predictions alone. COCO JSON is an object with images, annotations and "
            "categories; put the list into it."
        )
    kinds = (
        ({"data", "annotations"}, "tasks of Label Studio"),
        ({"data", "completions"}, "tasks of Label Studio"),
        ({"shapes", "imagePath"}, "one picture of labelme"),
        ({"image", "annotations"}, "CreateML"),
        ({"_via_img_metadata"}, "a project of VIA"),
        ({"regions", "filename"}, "VIA"),
        ({"Label", "External ID"}, "Labelbox"),
        ({"objects", "size"}, "one picture of Supervisely"),
    )
    values = list(first.values()) if isinstance(first, dict) else []
    inner = set(values[0]) if values and isinstance(values[0], dict) else set()
    name = next((name for needed, name in kinds if needed <= keys or needed <= inner), "")
    return f"It seems to be {name}. {_EXPORT}" if name else ""


def other_folder(folder: Path) -> str:
    """What a folder without XML files seems to hold, and what to do.

    Args:
        folder: that was named as the one of VOC XML.
    """
    below = sorted({file.parent.name for file in itertools.islice(folder.glob("*/*.xml"), 10_000)})
    if below:
        return f"There are XML files in its folders {', '.join(below[:3])}; name the one that is meant."
    files = list(folder.iterdir()) if folder.is_dir() else []
    below_too = files + list(itertools.islice(folder.glob("*/*"), 10_000))
    texts = sorted(file for file in below_too if file.suffix.lower() == ".txt" and file.name != "classes.txt")
    yolo = next((file for file in texts[:20] if _YOLO.fullmatch(_first_line(file))), None)
    if yolo:
        return (
            f"It holds {len(texts)} text files, and {yolo.name} is YOLO's (class, centre, width and height as shares "
            f"of the picture). {_EXPORT}"
        )
    jsons = sorted(file for file in files if file.suffix.lower() == ".json")
    if jsons:
        try:
            content = json.loads(jsons[0].read_bytes())
        except (OSError, ValueError, RecursionError):
            return ""
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content):
            return f"It holds COCO JSON; name the file as ANNOTATIONS: {jsons[0]}."
        return f"It holds {len(jsons)} JSON files. {other_json(content) or _EXPORT}"
    return f"It holds {len(files)} files, and none of them is XML or JSON. {_EXPORT}" if files else "It is empty."


def other_file(file: Path) -> str:
    """What a file that cannot be COCO JSON by its name seems to be, and what to do; "" if it may be."""
    suffix = file.suffix.lower()
    if suffix == ".xml":
        return (
            f"VOC XML is one file for each picture, and named by its folder; write {file.parent}. If {file.name} is "
            "CVAT's, with all pictures in it, export the task as COCO 1.0."
        )
    return _EXPORT if suffix in (".txt", ".csv", ".tsv", ".zip", ".yaml", ".yml", ".tfrecord", ".parquet") else ""


def other_xml(tag: str, file: Path) -> str:
    """What an XML file with this root seems to be, if not VOC's; "" if it may be VOC's."""
    if tag == "annotations":
        return (
            f"{file} is XML of CVAT with all pictures in one file, and VOC XML has one file for each picture. Export "
            "the task as COCO 1.0 or as PASCAL VOC 1.1."
        )
    return ""


def _first_line(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.readline(1000).decode("ascii", "replace").strip("\r\n")
    except OSError:
        return ""
