"""Random crops of pictures with masks, for which Detectron2 would need shapely."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray

Points = NDArray[np.float64]


class Crop(T.CropTransform):
    """Detectron2's crop, by which polygons are cut one side of the rectangle after the other.

    Source: Sutherland and Hodgman, Reentrant polygon clipping, 1974. Where the crop leaves several parts of a concave
    polygon, they stay one polygon, joined along the edge of the crop: the same mask.
    """

    def apply_polygons(self, polygons: list[Points]) -> list[Points]:
        """Cut polygons.

        Args:
            polygons: corners ``x, y`` in pixels of the whole picture, each of shape (N, 2).

        Returns:
            What the crop leaves of them, in its own pixels; those of which nothing is left are left out.
        """
        cut = []
        for polygon in polygons:
            points = np.asarray(polygon, dtype=np.float64) - (self.x0, self.y0)
            for axis, length in ((0, self.w), (1, self.h)):
                points = _above(points, axis, 0.0)
                points = -_above(-points, axis, -float(length))
            if _area(points) > 0:
                cut.append(points)
        return cut


class RandomCrop(T.RandomCrop):
    """Detectron2's random crop, with the same draws, as a `Crop`."""

    def get_transform(self, image: NDArray[np.uint8]) -> Crop:
        """Draw the place, and for some types the size, for one picture."""
        crop = super().get_transform(image)
        return Crop(crop.x0, crop.y0, crop.w, crop.h)


def _above(points: Points, axis: int, limit: float) -> Points:
    """The part of a polygon whose coordinate is the limit or more."""
    following = np.roll(points, -1, axis=0)
    here, there = points[:, axis] - limit, following[:, axis] - limit
    crosses = (here >= 0) != (there >= 0)
    share = np.divide(here, here - there, out=np.zeros_like(here), where=crosses)
    crossing = points + share[:, None] * (following - points)
    crossing[:, axis] = limit
    # Each corner that stays, then the point at which its side crosses the line.
    both = np.stack([points, crossing], axis=1).reshape(-1, 2)
    return both[np.stack([here >= 0, crosses], axis=1).ravel()]


def _area(points: Points) -> float:
    x, y = points.T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
