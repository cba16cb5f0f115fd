"""Checking data sets: annotations against each other, against their pictures, and data sets against each other."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from PIL import Image

from ode_detect.media.errors import DatasetError, Problem
from ode_detect.media.images import opened, orientation, read_image
from ode_detect.media.names import is_file, printable

from .annotations import Content, nothing_counts, repair, same_pictures, spread, spread_problem, usable
from .classes import Classes, difference, listed
from .custom import Source
from .mapper import scale_factors


@dataclass(frozen=True)
class Sample:
    """One picture with its annotations.

    Attributes:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        boxes: corners ``x0, y0, x1, y1`` in pixels, shape (N, 4).
        labels: class of each box.
        ignored: whether a box is ignored (crowd, difficult).
        name: caption.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    labels: Sequence[str]
    ignored: Sequence[bool]
    name: str


@dataclass(frozen=True)
class File:
    """What was found in the file of one picture.

    Attributes:
        error: why it cannot be read; "" if it can.
        size: width and height, upright; (0, 0) if it cannot be read.
        turned: EXIF turns it by a quarter, so that width and height change places.
        digest: of its bytes.
        kind: what is unusual about it, in words; "" if nothing is.
    """

    error: str = ""
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    digest: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Checked:
    """A data set and what is wrong with it.

    Attributes:
        source: where it is.
        content: its annotations, as far as they can be used: bad ones are repaired or left out.
        files: what was found in each picture, by image id.
        problems: what is wrong; ``done`` says what training does about it, "" that it stops there.
        notes: what is unusual and not wrong.
    """

    source: Source
    content: Content
    files: dict[int, File]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    def counts(self) -> dict[str, int]:
        """Pictures, those without an object, objects, and ignored (crowd, difficult) ones."""
        objects = [a for a in self.content["annotations"] if not a["iscrowd"]]
        return {
            "pictures": len(self.content["images"]),
            "without objects": len(self.content["images"]) - len({a["image_id"] for a in objects}),
            "objects": len(objects),
            "ignored": len(self.content["annotations"]) - len(objects),
        }

    def classes(self) -> dict[str, int]:
        """Objects of each class, in the order of the classes."""
        counts = Counter(a["category_id"] for a in self.content["annotations"] if not a["iscrowd"])
        return {c["name"]: counts[c["id"]] for c in sorted(self.content["categories"], key=lambda c: c["id"])}

    def boxes(self, cfg: CfgNode | None = None, *, is_train: bool = False) -> NDArray[np.float64]:
        """Width and height of each object, in pixels of the network's input; of the file without ``cfg``. (N, 2)."""
        images = self.content["images"]
        factors = np.ones((len(images), 2))
        if cfg is not None:
            factors = scale_factors(cfg, [(i["height"], i["width"]) for i in images], is_train=is_train)
        by_id = {image["id"]: factor for image, factor in zip(images, factors, strict=True)}
        objects = [a for a in self.content["annotations"] if not a["iscrowd"]]
        sizes = [np.array(a["bbox"][2:], dtype=np.float64) * by_id[a["image_id"]] for a in objects]
        return np.array(sizes, dtype=np.float64).reshape(-1, 2)

    def samples(self, count: int) -> list[Sample]:
        """Pictures with their annotations, evenly spread over those that can be read.

        Args:
            count: at most so many.
        """
        images = [image for image in self.content["images"] if not self.files[image["id"]].error]
        places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
        return [self._sample(images[i]) for i in places.tolist()]

    def _sample(self, image: dict[str, Any]) -> Sample:
        names = {c["id"]: c["name"] for c in self.content["categories"]}
        mine = [a for a in self.content["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in mine], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Sample(
            image=read_image(self.source.images / image["file_name"], "RGB"),
            boxes=boxes,
            labels=[names[a["category_id"]] for a in mine],
            ignored=[bool(a["iscrowd"]) for a in mine],
            name=printable(image["file_name"]),
        )


def check(source: Source, *, progress: Callable[[int], object] = lambda done: None) -> Checked:
    """Check one data set, and decode every picture of it.

    Args:
        source: where it is; the files must be there.
        progress: is called after each picture with how many are done.

    Raises:
        DatasetError: the annotations are not COCO JSON or VOC XML at all, or cannot be put in order.
    """
    raw, problems = source.read_raw()
    content, found = repair(raw, source.images)
    if any(not problem.done for problem in found):
        content, again = repair(usable(content, found, source.images), source.images)
        fatal = [str(problem) for problem in again if not problem.done]
        if fatal:
            raise DatasetError(f"{source.annotations} cannot be put in order by itself:\n  " + "\n  ".join(fatal))
        found = found + [p for p in again if p.rule not in {q.rule for q in found}]
    files = _look_at(content["images"], source.images, progress)
    problems = [*problems, *found, *_repeated_boxes(content), *_picture_problems(content, files), *_no_object(content)]
    return Checked(source, content, files, tuple(problems), tuple(_notes(content, files)))


def overlaps(checked: Sequence[Checked], train: Sequence[str], test: Sequence[str]) -> list[Problem]:
    """Pictures that are both in training and in test data: the same file, or another one with the same bytes."""
    problems = []
    by_name = {one.source.name: one for one in checked}
    for one, other in itertools.product(train, test):
        if one == other or one not in by_name or other not in by_name:
            continue
        digests: dict[str, str] = {}
        for image, path, file in _pictures(by_name[one]):
            digests[file.digest or path] = image["file_name"]
        where = [
            f"{image['file_name']}" + ("" if digests[key] == image["file_name"] else f" is {digests[key]}")
            for image, path, file in _pictures(by_name[other])
            if (key := file.digest or path) in digests
        ]
        if where:
            problems.append(Problem(f"pictures in {one}, for training, and in {other}, for test", tuple(where), "kept"))
    return problems


def class_problems(checked: Sequence[Checked], known: int) -> list[Problem]:
    """Data sets with other classes than the first, or than the network has.

    Args:
        checked: those for training first.
        known: how many classes the network has.
    """
    classes = []
    for one in checked:
        categories = sorted(one.content["categories"], key=lambda category: category["id"])
        names = tuple(category["name"] for category in categories)
        classes.append(Classes(one.source.name, names, one.source.annotations.is_dir()))
    apart = tuple(wrong for other in classes[1:] if (wrong := difference(classes[0], other)))
    if apart:
        return [Problem("data sets with other classes than the first", apart)]
    if classes and len(classes[0].names) != known:
        names = classes[0].names
        text = f"{len(names)} ({listed(names)}), and the network has {known}; set its NUM_CLASSES to {len(names)}."
        return [Problem("numbers of classes that are not those of the network", (text,))]
    return []


def unused(checked: Sequence[Checked]) -> list[Problem]:
    """Picture files in the folders of the data sets that none of them names."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    named: dict[Path, set[Path]] = defaultdict(set)
    for one in checked:
        named[one.source.images].update(Path(path) for _, path, _ in _pictures(one))
    notes = []
    for folder, files in named.items():
        unnamed = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and file not in files]
        rest = sorted(file.name for file in unnamed if not file.name.startswith("."))
        if rest:
            notes.append(Problem(f"pictures in {folder} that no checked data set names", tuple(rest), "not used"))
    return notes


def _pictures(one: Checked) -> Iterable[tuple[dict[str, Any], str, File]]:
    for image in one.content["images"]:
        yield image, str(one.source.images / image["file_name"]), one.files[image["id"]]


def _look_at(images: Sequence[dict[str, Any]], folder: Path, progress: Callable[[int], object]) -> dict[int, File]:
    paths = [folder / image["file_name"] for image in images]
    files = {}
    # Pillow lets other threads run while it decodes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (image, file) in enumerate(zip(images, pool.map(look_at, paths), strict=True), start=1):
            files[image["id"]] = file
            progress(done)
    return files


def look_at(path: Path) -> File:
    """Decode a picture and say what it is."""
    if not is_file(path):
        # Path.exists raises where a name is too long.
        kind = "a folder, a pipe or a device, not a file" if os.path.exists(path) else "not there"  # noqa: PTH110
        return File(error=f"{path} is {kind}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        height, width = read_image(path, "RGB").shape[:2]
    except DatasetError as error:
        return File(error=str(error), digest=digest)
    with opened(path) as image:
        turned = orientation(image) in (5, 6, 7, 8)
        suffix = Image.registered_extensions().get(path.suffix.lower())
        kinds = [] if image.mode in ("RGB", "L") else [f"pictures of mode {image.mode}"]
        kinds += (
            []
            if suffix == image.format or {suffix, image.format} == {"JPEG", "MPO"}
            else [f"pictures with the suffix {path.suffix or '(none)'} that are {image.format}"]
        )
        kinds += [f"pictures of several frames ({image.format})"] if getattr(image, "n_frames", 1) > 1 else []
        kinds += ["pictures turned by EXIF"] if orientation(image) != 1 else []
    return File(size=(width, height), turned=turned, digest=digest, kind="; ".join(kinds))


def _picture_problems(content: Content, files: dict[int, File]) -> list[Problem]:
    missing: list[str] = []
    broken: list[str] = []
    turned: list[str] = []
    scaled: list[str] = []
    other: list[str] = []
    for image in content["images"]:
        file = files[image["id"]]
        said = (image["width"], image["height"])
        text = f"{image['file_name']} is {file.size[0]} x {file.size[1]}, the annotations are for {said[0]} x {said[1]}"
        if file.error.endswith("is not there"):
            missing.append(file.error)
        elif file.error:
            broken.append(file.error)
        elif file.size != said:
            (turned if stored_size(file) == said else scaled if same_shape(file.size, said) else other).append(text)
    digests = {number: file.digest for number, file in files.items() if file.digest}
    apart = spread(content, digests)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    copies = tuple(
        " = ".join(names[number] for number in ids) for ids in same_pictures(content, digests) if ids not in apart
    )
    rules = {
        "pictures that are not there": missing,
        "pictures that cannot be read": broken,
        "pictures of another size than annotated, because EXIF turns them": turned,
        "pictures of another size than annotated, of the same shape": scaled,
        "pictures of another size and shape than annotated": other,
    }
    problems = [Problem(rule, tuple(where)) for rule, where in rules.items() if where]
    problems += [spread_problem(content, apart, "kept")] if apart else []
    return problems + ([Problem("pictures that are there twice (same bytes)", copies, "kept")] if copies else [])


def _no_object(content: Content) -> list[Problem]:
    reason = nothing_counts(content["annotations"], difficult=False)
    return [Problem("data sets without an object that counts", (reason,))] if reason else []


def stored_size(file: File) -> tuple[int, int]:
    """Width and height before EXIF turns the picture."""
    return (file.size[1], file.size[0]) if file.turned else file.size


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other, scaled and rounded to whole pixels."""
    scale = size[0] / other[0]
    return abs(other[1] * scale - size[1]) <= max(1.0, scale)


def repeated(content: Content) -> list[int]:
    """Indices of annotations that repeat an earlier one: same picture, class and box."""
    seen, again = set(), []
    for i, a in enumerate(content["annotations"]):
        key = (a["image_id"], a["category_id"], a["iscrowd"], *a["bbox"])
        again += [i] if key in seen else []
        seen.add(key)
    return again


def _repeated_boxes(content: Content) -> list[Problem]:
    names = {image["id"]: image["file_name"] for image in content["images"]}
    again = [content["annotations"][i] for i in repeated(content)]
    where = tuple(f"annotation {a['id']} of {names[a['image_id']]}, bbox {a['bbox']}" for a in again)
    return [Problem("boxes that repeat another one of the same class", where, "kept")] if where else []


def _notes(content: Content, files: dict[int, File]) -> list[Problem]:
    kinds = defaultdict(list)
    for image in content["images"]:
        for kind in filter(None, files[image["id"]].kind.split("; ")):
            kinds[kind].append(image["file_name"])
    notes = [Problem(kind, tuple(names), "read all the same") for kind, names in sorted(kinds.items())]
    used = {a["category_id"] for a in content["annotations"] if not a["iscrowd"]}
    empty = tuple(c["name"] for c in content["categories"] if c["id"] not in used)
    return notes + ([Problem("classes without an object", empty, "kept")] if empty else [])
