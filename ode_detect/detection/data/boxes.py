"""Boxes judged against their pictures, and the other forms that they may be written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ode_detect.media.errors import Problem

# A box may reach over the edge by rounding, in pixels, without a word.
_ROUNDING = 1.0
_CORNERS = (
    "boxes that are corners [x0, y0, x1, y1]: so all fit their pictures, and as [x, y, width, height] many do not"
)
_FORMS = {
    "shares": (
        "boxes that lie within one pixel, probably shares of the picture",
        "kept; multiply x and width by the picture's width, y and height by its height",
    ),
    "percentages": (
        "boxes that all lie within 100 x 100 pixels of larger pictures, probably percentages",
        "kept; multiply x and width by the picture's width / 100, y and height by its height / 100",
    ),
    "maybe corners": (
        "boxes that would fit as corners, and are the larger the further right or down, probably [x0, y0, x1, y1]",
        "kept; write [x0, y0, x1 - x0, y1 - y0]",
    ),
}


@dataclass(frozen=True)
class BoxFaults:
    """What is wrong with boxes, one flag per box, each of shape (N,).

    Attributes:
        unreal: a coordinate is NaN or infinite.
        empty: width or height is not above 0.
        outside: nothing of it is in the picture.
        over: it reaches over the edge of the picture by more than a pixel.
        clipped: the boxes within the picture, ``x, y, width, height``, shape (N, 4).
    """

    unreal: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    over: NDArray[np.bool_]
    clipped: NDArray[np.float64]

    @property
    def dropped(self) -> NDArray[np.bool_]:
        """Which boxes nothing can be learnt from."""
        return self.unreal | self.empty | self.outside


def box_faults(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> BoxFaults:
    """Judge boxes against their pictures.

    Args:
        boxes: ``x, y, width, height`` in pixels, shape (N, 4).
        sizes: width and height of the picture of each box, shape (N, 2).
    """
    unreal: NDArray[np.bool_] = np.asarray(~np.isfinite(boxes).all(axis=1), dtype=bool)
    x0, y0, width, height = np.where(unreal[:, None], 0.0, boxes).T
    first = np.stack([x0, y0], axis=1)
    last = first + np.stack([width, height], axis=1)
    empty = ~unreal & ((width <= 0) | (height <= 0))
    inside_first, inside_last = np.clip(first, 0, sizes), np.clip(last, 0, sizes)
    outside = ~unreal & ~empty & (inside_last <= inside_first).any(axis=1)
    over = ((first < -_ROUNDING) | (last > sizes + _ROUNDING)).any(axis=1) & ~(unreal | empty | outside)
    return BoxFaults(unreal, empty, outside, over, np.concatenate([inside_first, inside_last - inside_first], axis=1))


def box_problems(faults: BoxFaults, place: Callable[[int], str]) -> list[Problem]:
    """Say what is wrong with boxes; ``place`` says which box it is."""
    rules = (
        (faults.unreal, "boxes that are not finite", "dropped"),
        (faults.empty, "boxes without width or height", "dropped"),
        (faults.outside, "boxes outside their picture", "dropped"),
        (faults.over, "boxes partly outside their picture", "clipped"),
    )
    return [
        Problem(rule, tuple(place(int(i)) for i in np.flatnonzero(which)), done)
        for which, rule, done in rules
        if which.any()
    ]


def are_corners(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> bool:
    """Whether boxes can only be ``x0, y0, x1, y1``: so they fit, and with widths many reach far over the edge.

    Args:
        boxes: as they came in, shape (N, 4).
        sizes: width and height of the picture of each box, shape (N, 2).
    """
    if len(boxes) < 3 or _fit_as_corners(boxes, sizes).mean() < 0.95:
        return False
    return bool((boxes[:, :2] + boxes[:, 2:] > 1.1 * sizes).any(axis=1).mean() >= 0.2)


def corner_problem(place: Callable[[int], str], count: int, done: str) -> Problem:
    """Say that boxes are corners."""
    return Problem(_CORNERS, tuple(map(place, range(count))), done)


def form_problems(boxes: NDArray[np.float64], sizes: NDArray[np.float64], place: Callable[[int], str]) -> list[Problem]:
    """Say which boxes are probably written in another form, and by what they become pixels; nobody can be sure.

    Args:
        boxes: ``x, y, width, height`` as they should be, shape (N, 4).
        sizes: width and height of the picture of each box, shape (N, 2).
        place: what to call a box, by its index.
    """
    looks = {
        "shares": _like_shares(boxes, sizes),
        "percentages": _like_percentages(boxes, sizes),
        "maybe corners": _like_corners(boxes, sizes),
    }
    return [
        Problem(_FORMS[form][0], tuple(place(int(i)) for i in np.flatnonzero(which)), _FORMS[form][1])
        for form, which in looks.items()
        if which.any()
    ]


def _like_shares(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Boxes in the first pixel; in the first two if all are, since centres and corners reach further than boxes."""
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    # VOC XML counts from 1, and a share of 0.2 has become -0.8.
    begins = (first >= -1).all(axis=1) & (sizes > 4).all(axis=1)
    one, two = (begins & (last <= limit + 1e-6).all(axis=1) for limit in (1, 2))
    return np.asarray(two if two.all() and (boxes % 1 != 0).any() else one)


def _like_percentages(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """All boxes, if it is no accident that they lie in the first 100 x 100 pixels, and fill them."""
    first, last = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = (first >= -1).all(axis=1) & (last <= 100.5).all(axis=1)
    # How likely that is for boxes anywhere in their pictures: less than 1 in 10,000.
    with np.errstate(divide="ignore"):
        unlikely = -np.log(np.minimum(100 / sizes, 1)).sum() > np.log(1e4)
    everything = bool(len(boxes) and inside.all() and unlikely and last.max() > 50)
    return np.full(len(boxes), everything)


def _like_corners(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """All boxes, if they fit as corners, and are the wider the further right they begin, as only corners are."""
    none = np.zeros(len(boxes), dtype=bool)
    if len(boxes) < 8 or not _fit_as_corners(boxes, sizes).all() or not np.isfinite(sizes).all():
        return none
    shares = boxes / np.tile(sizes, 2)
    pairs = [(shares[:, i], shares[:, i + 2]) for i in (0, 1) if min(shares[:, i].std(), shares[:, i + 2].std()) > 1e-9]
    together = [float(np.corrcoef(first, second)[0, 1]) for first, second in pairs]
    return ~none if together and min(together) > 0.5 else none


def _fit_as_corners(boxes: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    first, last = boxes[:, :2], boxes[:, 2:]
    inside = (first >= -_ROUNDING) & (first < last) & (last <= sizes + _ROUNDING)
    return np.asarray(inside.all(axis=1))
