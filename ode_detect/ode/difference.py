"""The difference between tensors that were computed and those that were expected, in two norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# The smallest normal number of float32: a floor for the size of what was expected, where rounding to 0 is no error.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Difference:
    """How far tensors, all taken together, are from those that were expected.

    Attributes:
        norm: Euclidean norm of the difference; NaN where a value is NaN.
        largest: largest absolute difference of two values; two NaN are alike, and NaN is infinitely far from a number.
        expected_norm: Euclidean norm of what was expected.
        expected_largest: largest absolute finite value of what was expected.
    """

    norm: float
    largest: float
    expected_norm: float
    expected_largest: float

    def relative_norm(self, floor: float = 0.0) -> float:
        """The norm as a share of what was expected, which counts as ``floor`` at least; NaN where the norm is."""
        return self.norm if math.isnan(self.norm) else ratio(self.norm, max(self.expected_norm, floor))

    def relative_largest(self, floor: float = 0.0) -> float:
        """The largest difference as a share of the largest value, which counts as ``floor`` at least."""
        return ratio(self.largest, max(self.expected_largest, floor))


@torch.no_grad()
def difference(expected: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> Difference:
    """Compare tensors pair by pair, in float64 and on the device of the expected ones.

    Args:
        expected: what the tensors should be; None where there should be none.
        given: what they are. Another number of tensors, a tensor on one side only and another shape are infinite
            differences; another dtype alone is none.
    """
    if len(expected) != len(given):
        return Difference(math.inf, math.inf, math.nan, math.nan)
    pairs = [_of_pair(a, b) for a, b in zip(expected, given, strict=True)]
    return Difference(
        norm=math.hypot(*(pair.norm for pair in pairs)),
        largest=max((pair.largest for pair in pairs), default=0.0),
        expected_norm=math.hypot(*(pair.expected_norm for pair in pairs)),
        expected_largest=max((pair.expected_largest for pair in pairs), default=0.0),
    )


def ratio(part: float, whole: float) -> float:
    """Return ``part`` as a share of ``whole``: 0 for a part of 0, also of a whole of 0."""
    return 0.0 if part == 0 else part / whole if whole > 0 else math.inf


def _of_pair(expected: Tensor | None, given: Tensor | None) -> Difference:
    if expected is None:
        alone = 0.0 if given is None else math.inf
        return Difference(alone, alone, 0.0, 0.0)
    a = _precise(expected)
    norm, finite = float(a.norm()), a[a.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    if given is None or given.shape != expected.shape:
        return Difference(math.inf, math.inf, norm, largest)
    b = _precise(given).to(a.device)
    apart = b - a
    differs = (a != b) & ~(a.isnan() & b.isnan())
    furthest = float(apart.abs()[differs].max()) if bool(differs.any()) else 0.0
    return Difference(float(apart.norm()), math.inf if math.isnan(furthest) else furthest, norm, largest)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
