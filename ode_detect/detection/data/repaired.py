"""A repaired copy of a data set that was checked: COCO JSON, and a list of what was changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ode_detect.media.errors import Problem
from ode_detect.media.images import read_image

from .annotations import Content, join, same_pictures, spread
from .check import Checked, repeated, same_shape, stored_size

# What a repaired copy does where reading alone does nothing, or keeps what is wrong. Anything else is left out.
_CURES = {
    "categories that share their name": "merged",
    "pictures of another size than annotated, because EXIF turns them": "copied as they are stored, upright",
    "pictures of another size than annotated, of the same shape": "boxes rescaled",
    "pictures that are there twice": "all but the first left out",
    "pictures whose boxes are spread over several entries": "joined under the first",
    "data sets without an object that counts": "left as they are",
}


@dataclass(frozen=True)
class Repaired:
    """A repaired copy.

    Attributes:
        name: of the data set: the checked one's with ``_fixed``.
        images: folder of the pictures, that of the checked data set.
        annotations: COCO JSON.
        evaluator: that of the checked data set.
        changes: what was changed, one line each.
        lost: pictures that are left out.
    """

    name: str
    images: Path
    annotations: Path
    evaluator: str
    changes: tuple[str, ...]
    lost: int


def write_repaired(
    one: Checked, folder: Path, *, overlaps: Sequence[Problem] = (), test: frozenset[str] = frozenset()
) -> Repaired:
    """Write a copy of the annotations in which nothing is wrong; the originals stay as they are.

    Args:
        one: a checked data set.
        folder: gets ``NAME_fixed.json``, and in ``pictures/`` upright copies of pictures that are annotated as they are
            stored, and turned by EXIF. Other pictures stay where they are.
        overlaps: pictures that are in test data too, if there are any.
        test: digests of the test pictures, which are left out.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    factors: dict[int, tuple[float, float]] = {}
    pictures: dict[int, tuple[str, bool]] = {}
    for image in one.content["images"]:
        file = one.files[image["id"]]
        said = (image["width"], image["height"])
        stored = file.size != said and stored_size(file) == said
        if file.error or file.digest in test or (file.size != said and not stored and not same_shape(file.size, said)):
            continue
        if file.size != said and not stored:
            factors[image["id"]] = (file.size[0] / said[0], file.size[1] / said[1])
        # Boxes for a picture that EXIF turns, and boxes for it as it is stored, do not go together.
        pictures[image["id"]] = (file.digest, stored)
        images.append(image if stored else {**image, "width": file.size[0], "height": file.size[1]})
    again = set(repeated(one.content))
    annotations = [
        _scaled(a, factors[a["image_id"]]) if a["image_id"] in factors else a
        for i, a in enumerate(one.content["annotations"])
        if a["image_id"] in pictures and i not in again
    ]
    name = f"{one.source.name}_fixed"
    path = folder / f"{name}.json"
    content: Content = {**one.content, "images": images, "annotations": annotations}
    several, apart = same_pictures(content, pictures), spread(content, pictures)
    lost = len(one.content["images"]) - len(images) + sum(len(ids) - 1 for ids in several if ids not in apart)
    content = join(content, several)
    content["images"] = [
        {**image, "file_name": str(_as_stored(one, image, folder / "pictures"))} if pictures[image["id"]][1] else image
        for image in content["images"]
    ]
    path.write_text(json.dumps(content))
    problems = [*one.problems, *overlaps]
    changes = tuple(_change(problem) for problem in problems)
    return Repaired(name, one.source.images, path, one.source.evaluator, changes, lost)


def snippet(copies: Sequence[Repaired], train: Sequence[str], test: Sequence[str]) -> str:
    """Lines for a config that use repaired copies in place of the data sets that were checked."""
    entries = [
        {"NAME": c.name, "IMAGES": str(c.images), "ANNOTATIONS": str(c.annotations)}
        | ({} if c.evaluator == "coco" else {"EVALUATOR": c.evaluator})
        for c in copies
    ]
    datasets: dict[str, Any] = {"CUSTOM": entries}
    for key, names in (("TRAIN", train), ("TEST", test)):
        if names:
            datasets[key] = [f"{name}_fixed" for name in names]
    return yaml.safe_dump({"DATASETS": datasets}, sort_keys=False)


def _change(problem: Problem) -> str:
    cure = next((cure for rule, cure in _CURES.items() if problem.rule.startswith(rule)), "left out")
    done = problem.done if problem.done not in ("", "kept") else cure
    return f"{len(problem.where)} {problem.rule}, {done}: " + "; ".join(problem.where)


def _as_stored(one: Checked, image: dict[str, Any], folder: Path) -> Path:
    """A copy of a picture without the EXIF tag that turns it, in PNG, which loses nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{one.source.name}_{image['id']}.png"
    Image.fromarray(read_image(one.source.images / image["file_name"], "RGB", upright=False)).save(copy)
    return copy.resolve()


def _scaled(annotation: dict[str, Any], factors: tuple[float, float]) -> dict[str, Any]:
    """Masks are scaled as polygons; RLE, which holds pixels, is left out."""
    (sx, sy), (x, y, width, height) = factors, annotation["bbox"]
    mask = annotation.get("segmentation")
    polygons = [[v * (sy if i % 2 else sx) for i, v in enumerate(p)] for p in mask] if isinstance(mask, list) else []
    scaled = {**annotation, "bbox": [x * sx, y * sy, width * sx, height * sy], "segmentation": polygons}
    if annotation.get("keypoints"):
        scaled["keypoints"] = [v * (sx, sy, 1)[i % 3] for i, v in enumerate(annotation["keypoints"])]
    return {**scaled, "area": annotation["area"] * sx * sy}
