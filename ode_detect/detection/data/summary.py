"""What was found when data sets were checked: text for the terminal, and a report in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from ode_detect.media.errors import Problem
from ode_detect.media.files import write_text

from .check import Checked
from .plots import class_table, plot_dataset, sample_sheet, size_table
from .sizes import anchor_problems, anchors, covered, median_size, positive_overlap, size_problems


@dataclass(frozen=True)
class Seen:
    """Sizes of the boxes of a data set as a network sees them in one use, or as they are if there is no network.

    Attributes:
        use: "training" or "the test"; "" without a network.
        boxes: width and height of each box, shape (N, 2).
        anchors: those of the anchors, shape (M, 2).
        covered: share of the boxes that an anchor fits; None if there is none to say.
        median: of the sizes (square root of the area), in pixels; None without boxes or network.
        least: IoU from which an anchor fits.
    """

    use: str
    boxes: NDArray[np.float64]
    anchors: NDArray[np.float64]
    covered: float | None = None
    median: float | None = None
    least: float = 0.0

    @property
    def unit(self) -> str:
        """The pixels that sizes are in."""
        return f"pixels of the network's input in {self.use}" if self.use else "pixels"


def seen(one: Checked, cfg: CfgNode | None, train: Sequence[str], test: Sequence[str]) -> list[Seen]:
    """Sizes of boxes and anchors, and how many boxes an anchor fits, in each use of a data set.

    Args:
        one: the data set.
        cfg: of the network; None says what the sizes are in the pictures.
        train: names of the data sets that are trained on.
        test: names of those that are tested on.
    """
    if cfg is None:
        return [Seen("", one.boxes(), np.zeros((0, 2)))]
    uses = [("training", True)] * (one.source.name in train) + [("the test", False)] * (one.source.name in test)
    found = []
    for use, is_train in uses:
        boxes = one.boxes(cfg, is_train=is_train)
        median = median_size(boxes) if len(boxes) else None
        found.append(Seen(use, boxes, anchors(cfg), covered(cfg, boxes), median, positive_overlap(cfg)))
    return found


def stops(problem: Problem) -> str:
    """What to add to a mistake that no repair has removed."""
    return "" if problem.done else " [stops training]"


def describe(one: Checked, cfg: CfgNode | None, train: Sequence[str], test: Sequence[str]) -> str:
    """What is in a data set, and what is wrong, as text; arguments as for `seen`."""
    lines = [f"{one.source.name}: " + ", ".join(f"{count} {what}" for what, count in one.counts().items())]
    lines += [class_table(one.classes())]
    for sizes in seen(one, cfg, train, test):
        lines += [f"sizes (square root of the area) in {sizes.unit}", size_table(sizes.boxes, sizes.anchors)]
        if sizes.covered is not None:
            lines.append(
                f"  median {sizes.median:.0f}; {100 * sizes.covered:.1f} % of the objects have an anchor of about "
                f"their shape (IoU of {sizes.least:g} or more when centred)"
            )
    lines += [f"  wrong: {problem}{stops(problem)}" for problem in one.problems]
    return "\n".join([*lines, *(f"  note: {problem}" for problem in one.notes)])


def problems_of_sizes(
    cfg: CfgNode, checked: Sequence[Checked], train: Sequence[str], test: Sequence[str]
) -> list[Problem]:
    """What is wrong with the sizes that the network sees: other ones in the test, or none that an anchor fits."""
    trained, tested = (
        [(one.source.name, one.boxes(cfg, is_train=part is train)) for one in checked if one.source.name in part]
        for part in (train, test)
    )
    problems = [
        problem
        for part, use in ((trained, "training"), (tested, "the test"))
        for name, boxes in part
        for problem in anchor_problems(cfg, name, boxes, use)
    ]
    if trained:
        together = ", ".join(name for name, _ in trained), np.concatenate([boxes for _, boxes in trained])
        problems += size_problems(cfg, together, tested)
    return problems


def write_report(
    folder: Path,
    cfg: CfgNode | None,
    parts: tuple[Sequence[str], Sequence[str]],
    checked: Sequence[Checked],
    between: Sequence[Problem],
    notes: Sequence[Problem],
    *,
    draw: int,
) -> None:
    """Write ``check.json``, a plot of each data set in each use, and sheets of samples.

    Args:
        folder: gets the files.
        cfg: of the network, if there is one.
        parts: names of the data sets that are trained on, and of those that are tested on.
        checked: the data sets.
        between: what is wrong between them.
        notes: what may be worth a look.
        draw: pictures on each sheet; 0 draws none.
    """
    content: dict[str, Any] = {
        "datasets": [],
        "between": [asdict(p) for p in between],
        "notes": list(map(asdict, notes)),
    }
    for one in checked:
        uses, name = seen(one, cfg, *parts), one.source.name
        content["datasets"].append(
            {
                "name": name,
                "images": str(one.source.images),
                "annotations": str(one.source.annotations),
                "counts": one.counts(),
                "classes": one.classes(),
                "seen in": {s.use: {"median size": s.median, "covered": s.covered} for s in uses if cfg},
                "problems": [asdict(problem) for problem in one.problems],
                "notes": [asdict(problem) for problem in one.notes],
            }
        )
        for number, sizes in enumerate(uses):
            path = folder / (f"{name}_test.png" if number else f"{name}.png")
            plot_dataset(name, one.classes(), sizes.boxes, sizes.anchors, path, unit=sizes.unit)
        if samples := one.samples(draw) if draw else []:
            sample_sheet(samples, folder / f"{name}_samples.jpg", title=f"{name}: annotated samples")
    write_text(folder / "check.json", json.dumps(content, indent=2) + "\n")
