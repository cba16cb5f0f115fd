"""Pictures with predicted and true boxes: matched, counted and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation.evaluator import inference_context
from detectron2.structures import BoxMode
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ode_detect.detection.data.datasets import read_dataset
from ode_detect.detection.data.mapper import Mapper
from ode_detect.media.images import read_image
from ode_detect.media.names import printable
from ode_detect.report.canvas import Canvas, PictureError, check_image, measure, write_sheet
from ode_detect.report.examples import NARROW, Drawn

from .drawing import CROWDED, FALSE, HIT, MISSED, TRUTH, as_boxes, canvas_of


def detections(cfg: CfgNode, model: nn.Module, name: str, *, count: int) -> list[Picture]:
    """Predict on pictures of a data set that are evenly spread over it: neighbours are often alike.

    Args:
        cfg: for reading pictures, and ``TEST.SCORE_THRESHOLD``: boxes below it count for AP and are noise to the eye.
        model: a Detectron2 detector.
        name: the data set.
        count: how many pictures, at most.

    Returns:
        The pictures, with predictions and ground truth.
    """
    records = read_dataset([name], log=False)
    classes = MetadataCatalog.get(name).thing_classes
    places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    mapper = Mapper(cfg, is_train=False)
    shown: list[Picture] = []
    with inference_context(model), torch.no_grad():
        for record in (records[i] for i in places.tolist()):
            found = model([mapper(record)])[0]["instances"].to("cpu")
            shown.append(_picture(record, found[found.scores >= cfg.TEST.SCORE_THRESHOLD], classes))
    return shown


def _picture(record: dict[str, Any], predicted: Any, classes: list[str]) -> Picture:
    objects = record.get("annotations", [])
    corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return Picture(
        image=read_image(record["file_name"], "RGB"),
        boxes=predicted.pred_boxes.tensor.numpy(),
        scores=predicted.scores.numpy(),
        truth=np.asarray(corners, dtype=np.float64).reshape(-1, 4),
        labels=[classes[i] for i in predicted.pred_classes.tolist()],
        truth_labels=[classes[a["category_id"]] for a in objects],
        crowd=[bool(a.get("iscrowd", 0)) for a in objects],
        name=printable(record["file_name"].rsplit("/", 1)[-1]),
    )


DETECTION_LEGEND = (
    (HIT, "hit (IoU at least 0.5)"),
    (TRUTH, "its ground truth"),
    (FALSE, "false detection"),
    (MISSED, "missed (dashed)"),
)


def show(picture: Picture) -> Drawn:
    """Draw one picture with its boxes, enlarged by a whole number to 480 pixels or more."""
    counts = picture.counts()
    caption = f"{counts['found']} found, {counts['missed']} missed, {counts['false']} false"
    return Drawn(draw_picture(picture, max(-(-NARROW // picture.image.shape[1]), 1)), picture.name, caption)


Outcome = Literal["hit", "false", "ignored"]


_GROUND = "#3F4A3C"  # of the legend's boxes, dark green


@dataclass(frozen=True)
class Match:
    """Which predictions hit, and which objects were found.

    Attributes:
        outcomes: For each prediction: ``"hit"``, ``"false"``, or ``"ignored"`` (it fell on a crowd box).
        partners: For each prediction the index of its object, or -1, shape (N,).
        found: For each object whether a prediction hit it, shape (M,); False for crowd boxes.
    """

    outcomes: tuple[Outcome, ...]
    partners: NDArray[np.int64]
    found: NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """One picture with its predictions and its ground truth.

    Attributes:
        image: RGB in 0..255, uint8, shape (H, W, 3).
        boxes: Predicted boxes, corners ``x0, y0, x1, y1`` in pixels, shape (N, 4).
        scores: Their scores in [0, 1], shape (N,).
        truth: True boxes in the same form, shape (M, 4).
        labels: Class of each prediction, N long; empty if there is only one class.
        truth_labels: Class of each true box, M long; empty if there is only one class.
        crowd: Which true boxes are to be ignored, M long; empty if none.
        name: Caption.

    Raises:
        PictureError: An array has the wrong shape or type.
    """

    image: NDArray[np.uint8]
    boxes: ArrayLike
    scores: ArrayLike
    truth: ArrayLike
    labels: Sequence[str] = ()
    truth_labels: Sequence[str] = ()
    crowd: Sequence[bool] = ()
    name: str = ""
    match: Match = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the shapes and match predictions with ground truth."""
        check_image(self.image)
        object.__setattr__(self, "boxes", as_boxes(self.boxes, "boxes"))
        object.__setattr__(self, "truth", as_boxes(self.truth, "truth"))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float64))
        match = match_boxes(self.boxes, self.scores, self.truth, self.labels, self.truth_labels, self.crowd)
        object.__setattr__(self, "match", match)

    def counts(self) -> dict[str, int]:
        """Count the objects ``found`` and ``missed`` and the ``false`` detections; crowd boxes are left out."""
        found = int(self.match.found.sum())
        objects = len(self.match.found) - sum(map(bool, self.crowd))
        return {"found": found, "missed": objects - found, "false": self.match.outcomes.count("false")}


def match_boxes(
    boxes: ArrayLike,
    scores: ArrayLike,
    truth: ArrayLike,
    labels: Sequence[str] = (),
    truth_labels: Sequence[str] = (),
    crowd: Sequence[bool] = (),
    *,
    iou: float = 0.5,
) -> Match:
    """Match predictions with true boxes, greedily, as COCO evaluation does.

    In the order of their scores, each prediction takes the true box of its class that it overlaps most, among those
    that are still free, if the overlap reaches ``iou``. One that takes none but falls on a crowd box is ignored; for a
    crowd box the overlap is the share of the prediction that it covers, and it may be taken many times.

    Args:
        boxes: Predicted boxes, corners in pixels, shape (N, 4).
        scores: Shape (N,).
        truth: True boxes, shape (M, 4).
        labels: Class of each prediction, or empty.
        truth_labels: Class of each true box, or empty.
        crowd: Which true boxes are crowd boxes, or empty.
        iou: Least overlap (intersection over union) of a hit.

    Raises:
        PictureError: The lengths do not fit together.
    """
    boxes, truth = as_boxes(boxes, "boxes"), as_boxes(truth, "truth")
    scores = np.asarray(scores, dtype=np.float64)
    for what, length, wanted in (
        ("scores", scores.size, len(boxes)),
        ("labels", len(labels) or len(boxes), len(boxes)),
        ("truth_labels", len(truth_labels) or len(truth), len(truth)),
        ("crowd", len(crowd) or len(truth), len(truth)),
    ):
        if length != wanted:
            raise PictureError(f"{what} must have one value per box, {wanted}; there are {length}. Give all or none.")
    if len(boxes) and len(truth) and bool(labels) != bool(truth_labels):
        raise PictureError(
            "labels and truth_labels must be given together; one of them is empty. Give both or neither."
        )
    ignore = np.array(crowd, dtype=bool) if len(crowd) else np.zeros(len(truth), dtype=bool)
    overlap = _overlap(boxes, truth, ignore)
    if labels and truth_labels:
        overlap[np.array(labels)[:, None] != np.array(truth_labels)[None, :]] = -1.0
    outcomes: list[Outcome] = ["false"] * len(boxes)
    partners = np.full(len(boxes), -1, dtype=np.int64)
    found = np.zeros(len(truth), dtype=bool)
    for i in np.argsort(-scores, kind="stable"):
        for outcome, free in (("hit", ~ignore & ~found), ("ignored", ignore)):
            candidates = np.where(free, overlap[i], -1.0)
            # COCO lets the later of two equal overlaps win.
            best = len(truth) - 1 - int(np.argmax(candidates[::-1])) if len(truth) else -1
            if best >= 0 and candidates[best] >= iou:
                outcomes[i], partners[i] = ("hit" if outcome == "hit" else "ignored"), best
                found[best] = outcome == "hit"
                break
    return Match(tuple(outcomes), partners, found)


def detection_sheet(
    pictures: Sequence[Picture], path: str | Path, *, title: str = "", columns: int = 3, scale: int | None = None
) -> dict[str, int]:
    """Write a sheet of pictures that shows hits, false detections and missed objects.

    Args:
        pictures: Row by row.
        path: File to write; its suffix says the format (png, jpg, webp).
        title: Put before the counts.
        columns: Pictures in a row.
        scale: Whole number by which the pictures are enlarged; None takes the least that makes them 640 pixels wide.

    Returns:
        Objects ``found`` and ``missed`` and ``false`` detections in all pictures.

    Raises:
        PictureError: There is no picture, or the file cannot be written in this format.
    """
    if not pictures:
        raise PictureError("a sheet needs at least one picture; there is none. Give some.")
    cell_w, cell_h = (max(p.image.shape[axis] for p in pictures) for axis in (1, 0))
    scale = max(-(-640 // cell_w), 1) if scale is None else scale
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    gap, caption = 16, 34
    width = columns * (cell_w * scale + gap) + gap
    totals = {key: sum(p.counts()[key] for p in pictures) for key in ("found", "missed", "false")}
    head = _header(Canvas(width, 1), title, totals, gap)
    canvas = Canvas(width, head + rows * (cell_h * scale + caption + gap))
    _header(canvas, title, totals, gap)
    crowded = max(len(p.match.outcomes) for p in pictures) > CROWDED
    for index, picture in enumerate(pictures):
        x = gap + index % columns * (cell_w * scale + gap)
        y = head + index // columns * (cell_h * scale + caption + gap) + caption
        _caption(canvas, picture, x, y - 10)
        canvas.image(_draw(picture, scale, scores_of_hits=not crowded), x, y)
    write_sheet(canvas.pixels(), path)
    return totals


def draw_picture(picture: Picture, scale: int = 1) -> NDArray[np.uint8]:
    """Draw hits, false detections and missed objects; RGB, uint8, shape (H * scale, W * scale, 3)."""
    return _draw(picture, scale, scores_of_hits=len(picture.match.outcomes) <= CROWDED)


def _draw(picture: Picture, scale: int, *, scores_of_hits: bool) -> NDArray[np.uint8]:
    """Draw one picture: the truth of the hits thin below them, then hits, false detections, and what was missed."""
    match = picture.match
    boxes, truth = as_boxes(picture.boxes, "boxes") * scale, as_boxes(picture.truth, "truth") * scale
    canvas = canvas_of(picture.image, scale)
    crowd = np.array(picture.crowd, dtype=bool) if len(picture.crowd) else np.zeros(len(truth), dtype=bool)
    for box in truth[match.found]:
        canvas.box(box, TRUTH, 1, alpha=0.7, halo=False)
    for outcome, color in (("hit", HIT), ("false", FALSE)):
        for box in boxes[[o == outcome for o in match.outcomes]]:
            canvas.box(box, color, 3)
    for box in truth[~match.found & ~crowd]:
        canvas.box(box, MISSED, 3, dashed=True)
    scores = np.asarray(picture.scores, dtype=np.float64)
    tags = []
    for i in np.argsort(scores, kind="stable").tolist():  # the best one last, above the others
        outcome = match.outcomes[i]
        if outcome == "false" or (outcome == "hit" and scores_of_hits):
            label = " ".join([*picture.labels[i : i + 1], f"{scores[i]:.2f}"])
            tags.append((boxes[i], label, HIT if outcome == "hit" else FALSE))
    canvas.labels(tags)
    return canvas.pixels()


def _header(canvas: Canvas, title: str, totals: dict[str, int], margin: int) -> int:
    """Write title and legend, in as many lines as the width asks for; returns the height used in pixels."""
    objects = totals["found"] + totals["missed"]
    counts = f"{totals['found']} of {objects} found, {totals['missed']} missed, {totals['false']} false"
    line = f"{title}: {counts}" if title else counts
    room = canvas.width - 2 * margin
    canvas.text(margin, 42, line, min(26.0, 25 * room / measure(line, 26, bold=True)), bold=True)
    entries = (
        (HIT, False, "hit (IoU at least 0.5)"),
        (TRUTH, False, "its ground truth"),
        (FALSE, False, "false detection, with score"),
        (MISSED, True, "missed ground truth"),
    )
    x, y = margin, 66
    for color, dashed, label in entries:
        length = 54 + round(measure(label, 18))
        if x > margin and x + length > canvas.width - margin:
            x, y = margin, y + 34
        canvas.patch(x, y, 44, 26, _GROUND)
        swatch = np.array([x + 9.0, y + 5.0, x + 35.0, y + 21.0])
        canvas.box(swatch, color, 1 if color == TRUTH else 3, dashed=dashed, halo=False)
        canvas.text(x + 54, y + 20, label, 18)
        x += length + 32
    return y + 38


def _caption(canvas: Canvas, picture: Picture, x: int, y: int) -> None:
    counts = picture.counts()
    name = f"{picture.name}   " if picture.name else ""
    canvas.text(x, y, f"{name}{counts['found']} found, {counts['missed']} missed, {counts['false']} false", 17)


def _overlap(boxes: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union, shape (N, M); for crowd boxes intersection over the area of the prediction."""
    first = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    last = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    shared = np.maximum(last - first, 0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    union = area + (truth[:, 2:] - truth[:, :2]).prod(axis=1)[None, :] - shared
    whole = np.where(crowd[None, :], area, union)
    return np.divide(shared, whole, out=np.zeros(shared.shape), where=whole > 0)
