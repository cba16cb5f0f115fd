"""Make the quickstart data set: tree crowns in aerial photographs, in COCO layout.

The four photographs and their 951 annotated crowns come inside a published Python wheel (DeepForest, MIT licence). The
wheel is downloaded with pip, its checksum is compared, and only the members that are needed are read; nothing is
installed. The photographs are cut into tiles, because a crown is 20 to 80 pixels wide and a photograph up to 2472.

    python datasets/prepare_trees.py                  # download, 20 MB
    python datasets/prepare_trees.py --wheel FILE     # without network

A box that a tile edge cuts is clipped to the tile. It is marked ``iscrowd=1`` where too little of it is left: such a
box is no training target in Detectron2, and COCO evaluation neither asks for it nor punishes a detection of it.

- Training tiles overlap. A clipped box counts in every tile that holds at least half of it.
- Test tiles partition their photograph. A clipped box counts in the one tile that holds its centre, so that every box
  of the photograph is asked for exactly once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import wheels
from numpy.typing import NDArray
from wheels import PreparationError, member, write_json

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
WHAT = "ode_detect trees"
VERSION = 1  # raise it when the same wheel would give other files
TILE = 416
TRAIN_STRIDE = 320


@dataclass(frozen=True)
class Photograph:
    """One annotated photograph: its name in the source, its size in pixels, its number of boxes and its part."""

    name: str
    width: int
    height: int
    boxes: int
    part: Part


@dataclass(frozen=True)
class Source:
    """The pinned wheel that the photographs come from."""

    requirement: str
    sha256: str
    folder: str
    licence: str
    photographs: tuple[Photograph, ...]


# The split goes by photograph: overlapping tiles show the same crowns, so a photograph on both sides would measure
# memory. The test photograph is the second largest: 29 % of all boxes. By the coordinates in the names (UTM, metres) it
# lies 13 km from the largest, at the same site: training has seen this kind of forest, but none of these trees.
DEEPFOREST = Source(
    requirement="deepforest==2.1.0",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    folder="deepforest/data",
    licence="deepforest-2.1.0.dist-info/licenses/LICENSE",
    photographs=(
        Photograph("2019_YELL_2_528000_4978000_image_crop2", 2299, 2472, 574, "train"),
        Photograph("OSBS_029", 400, 400, 61, "train"),
        Photograph("SOAP_061", 400, 400, 37, "train"),
        Photograph("2019_YELL_2_541000_4977000_image_crop", 1249, 1035, 279, "test"),
    ),
)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a photograph in pixels: columns ``x`` to ``x + width - 1``, rows ``y`` to ``y + height - 1``."""

    x: int
    y: int
    width: int
    height: int


def covering_tiles(width: int, height: int, *, size: int = TILE, stride: int = TRAIN_STRIDE) -> list[Tile]:
    """Cover a picture with tiles of one size that overlap, row by row.

    The tiles are spread evenly, neighbours at most ``stride`` pixels apart, and the last one ends at the edge of
    the picture. A side shorter than ``size`` gives tiles as long as that side.
    """

    def starts(length: int) -> list[int]:
        gap = max(length - size, 0)
        steps = -(-gap // stride)
        return [round(i * gap / steps) for i in range(steps + 1)] if steps else [0]

    return [Tile(x, y, min(size, width), min(size, height)) for y in starts(height) for x in starts(width)]


def partition_tiles(width: int, height: int, *, size: int = TILE) -> list[Tile]:
    """Divide a picture into nearly equal tiles, row by row, so that every pixel lies in exactly one.

    Along each side there are as few tiles as possible, none longer than ``size`` by more than a hundredth (so that 1249
    pixels make three tiles of 416 or 417, not four of 312). They differ by at most one pixel.
    """

    def cuts(length: int) -> list[int]:
        count = math.ceil(length / (1.01 * size))
        return [length * i // count for i in range(count + 1)]

    columns, rows = cuts(width), cuts(height)
    return [
        Tile(x, y, right - x, bottom - y)
        for y, bottom in itertools.pairwise(rows)
        for x, right in itertools.pairwise(columns)
    ]


def read_boxes(xml: bytes, photograph: Photograph) -> NDArray[np.float64]:
    """Read the boxes of one VOC file.

    VOC corners are pixel indices that start at 1, both inclusive: in these files the smallest is 1 and the largest
    equals the width or height of the picture. COCO corners are distances from the edge, hence the shift by one.

    Returns:
        COCO boxes ``[x, y, width, height]`` in pixels, shape (N, 4).

    Raises:
        PreparationError: The number of boxes is not the pinned one, or a box is empty or outside the picture.
    """
    objects = list(ElementTree.fromstring(xml).iter("object"))
    if len(objects) != photograph.boxes:
        raise PreparationError(
            f"{photograph.name} must have {photograph.boxes} boxes; its XML has {len(objects)}. Use the pinned wheel."
        )
    corners = np.array(
        [[float(o.findtext(f"bndbox/{k}", "nan")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    ).reshape(-1, 4)
    first, last = corners[:, :2], corners[:, 2:]
    good = (first >= 1) & (last >= first) & (last <= [photograph.width, photograph.height])
    if not good.all():
        bad = corners[~good.all(axis=1)][0].tolist()
        raise PreparationError(
            f"a box of {photograph.name} must lie inside 1..{photograph.width}, 1..{photograph.height}; one is "
            f"[xmin, ymin, xmax, ymax] = {bad}. Use the pinned wheel."
        )
    return np.concatenate([first - 1, last - first + 1], axis=1)


def annotate(boxes: NDArray[np.float64], tile: Tile, part: Part) -> list[dict[str, Any]]:
    """Clip the boxes of a photograph to one tile.

    Args:
        boxes: COCO boxes in the pixels of the photograph, shape (N, 4).
        tile: The tile.
        part: ``"train"``: a box counts if at least half of its area is in the tile. ``"test"``: if its centre is.

    Returns:
        One COCO annotation, still without ids, for every box of which anything is in the tile; ``iscrowd`` is 1 where
        the box does not count. Boxes are in the pixels of the tile.
    """
    start = np.array([tile.x, tile.y], dtype=np.float64)
    size = np.array([tile.width, tile.height], dtype=np.float64)
    first = boxes[:, :2] - start
    last = first + boxes[:, 2:]
    clipped_first, clipped_last = np.maximum(first, 0), np.minimum(last, size)
    extent = np.maximum(clipped_last - clipped_first, 0)
    area = extent.prod(axis=1)
    if part == "train":
        counts = 2 * area >= boxes[:, 2:].prod(axis=1)
    else:
        centre = (first + last) / 2
        counts = ((centre >= 0) & (centre < size)).all(axis=1)
    return [
        {
            "bbox": [float(v) for v in (*clipped_first[i], *extent[i])],
            "area": float(area[i]),
            "iscrowd": int(not counts[i]),
            "category_id": 1,
        }
        for i in np.flatnonzero(area > 0)
    ]


def build(wheel: Path, output: Path, source: Source = DEEPFOREST) -> list[dict[str, Any]]:
    """Cut the photographs of a wheel into tiles and write pictures, annotations and licence into ``output``.

    Returns:
        For each part: its photographs, their boxes, its tiles, the boxes that count in them and the ignored ones.

    Raises:
        PreparationError: A member of the wheel is missing or is not what the source says.
    """
    summary = []
    with zipfile.ZipFile(wheel) as archive:
        licence = member(archive, source.licence)
        for part in PARTS:
            photographs = [p for p in source.photographs if p.part == part]
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for photograph in photographs:
                _cut(archive, source.folder, photograph, output / part, images, annotations)
            write_json(output / "annotations" / f"{part}.json", _coco(source, part, images, annotations))
            ignored = sum(a["iscrowd"] for a in annotations)
            summary.append(
                {
                    "part": part,
                    "photographs": len(photographs),
                    "crowns": sum(p.boxes for p in photographs),
                    "tiles": len(images),
                    "boxes": len(annotations) - ignored,
                    "ignored": ignored,
                }
            )
    (output / "LICENSE").write_bytes(licence)
    return summary


def prepare(output: Path, wheel: Path | None = None, source: Source = DEEPFOREST) -> tuple[wheels.Summary, bool]:
    """Make the data set in ``output`` unless it is there already; see ``wheels.prepare``."""
    return wheels.prepare(output, wheel, plan(source))


def plan(source: Source = DEEPFOREST) -> wheels.Plan:
    """How the data set is made."""
    recipe = {"version": VERSION, "tile": TILE, "train_stride": TRAIN_STRIDE, "source": asdict(source)}
    as_read: dict[str, Any] = json.loads(json.dumps(recipe))
    pin = wheels.Pin(source.requirement, source.sha256)
    return wheels.Plan(WHAT, pin, as_read, lambda wheel, output: build(wheel, output, source))


def format_summary(summary: list[dict[str, Any]]) -> str:
    """Format the summary of ``build`` as a table of fixed width."""
    rows = [list(summary[0]), *(list(row.values()) for row in summary)]
    return "\n".join(f"{row[0]:<6}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows)


def default_output() -> Path:
    """Return ``$DETECTRON2_DATASETS/trees``, or ``datasets/trees`` as Detectron2 does without that variable."""
    return wheels.datasets_root() / "trees"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a user error."""
    parser = argparse.ArgumentParser(description="Make the quickstart data set: tree crowns in aerial photographs.")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {DEEPFOREST.requirement}; default: download it")
    parser.add_argument(
        "--output", type=Path, help="folder to write; default: $DETECTRON2_DATASETS/trees or datasets/trees"
    )
    options = parser.parse_args(arguments)
    output = options.output or default_output()
    try:
        summary, made = prepare(output, options.wheel)
    except (PreparationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{output}: {'made' if made else 'complete already, nothing to do'}")
    print(format_summary(summary))
    return 0


def _cut(
    archive: zipfile.ZipFile,
    folder: str,
    photograph: Photograph,
    output: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
) -> None:
    """Write the tiles of one photograph and append their COCO entries to ``images`` and ``annotations``."""
    data = np.frombuffer(member(archive, f"{folder}/{photograph.name}.png"), dtype=np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if picture is None or picture.shape[:2] != (photograph.height, photograph.width):
        found = "no picture" if picture is None else f"{picture.shape[1]} x {picture.shape[0]}"
        raise PreparationError(
            f"{photograph.name} must be {photograph.width} x {photograph.height}; it is {found}. Use the pinned wheel."
        )
    boxes = read_boxes(member(archive, f"{folder}/{photograph.name}.xml"), photograph)
    tiles = covering_tiles if photograph.part == "train" else partition_tiles
    output.mkdir(parents=True, exist_ok=True)
    for tile in tiles(photograph.width, photograph.height):
        name = f"{photograph.name}_x{tile.x:04d}_y{tile.y:04d}.png"
        pixels = picture[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
        if not cv2.imwrite(str(output / name), pixels):
            raise PreparationError(
                f"tiles are written as PNG; {output / name} could not be. Check the disk and its rights."
            )
        images.append({"id": len(images) + 1, "file_name": name, "width": tile.width, "height": tile.height})
        for annotation in annotate(boxes, tile, photograph.part):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **annotation})


def _coco(
    source: Source, part: Part, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    info = {
        "description": f"Tree crowns in aerial photographs, {part}",
        "version": str(VERSION),
        "source": f"{source.folder} in the wheel of {source.requirement}; photographs by NEON's airborne platform",
        "sha256": source.sha256,
        "licence": "MIT, Copyright (c) 2019, Ben Weinstein",
        "command": "python datasets/prepare_trees.py",
    }
    for image in images:
        image["license"] = 1
    return {
        "info": info,
        "licenses": [{"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree", "supercategory": "plant"}],
    }


if __name__ == "__main__":
    sys.exit(main())
