"""Weights over time: how the weights of a vector field vary while it is integrated.

A field whose weights do not vary is *constant*. The two containers here make a field of K fields:
`PiecewiseConstant` hands over from one to the next, `HatFunctions` blends neighbours linearly. Both last K units of
time, so that N Euler steps over N pieces have step size 1 and are N residual blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .names import check_name

PIECES = ("constant", "piecewise", "hat")


class PiecewiseConstant(nn.Module):
    """K vector fields, one after the other: field k acts for t in [k, k + 1).

    Args:
        pieces: the fields, K >= 1, in the order of time.
    """

    def __init__(self, pieces: Sequence[nn.Module]) -> None:
        super().__init__()
        _check_pieces(pieces)
        self.pieces = nn.ModuleList(pieces)

    @property
    def duration(self) -> float:
        """K, the end of time."""
        return float(len(self.pieces))

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt at time ``t`` in [0, K], shape of ``h``."""
        index = min(int(t), len(self.pieces) - 1)
        return self.pieces[index](t, h)

    def segments(self) -> Iterator[tuple[nn.Module, float, float]]:
        """The smooth parts, as (field, start, end): what a solver that cannot see a jump is run on, part by part."""
        for index, piece in enumerate(self.pieces):
            yield piece, float(index), float(index + 1)


class HatFunctions(nn.Module):
    """Weights that are linear in time between K knots, evenly spread over [0, K].

    The weights at time t are the blend of those of the two nearest knots (finite elements of order one; Queiruga et
    al. 2020, "Continuous-in-Depth Neural Networks"). Floating-point buffers are blended as the weights are.

    The blend is put in place of the weights of the first knot while it is evaluated, so one such model must not be
    evaluated by two threads at once.

    Args:
        knots: K >= 1 fields of the same build.
    """

    def __init__(self, knots: Sequence[nn.Module]) -> None:
        super().__init__()
        _check_pieces(knots)
        names = [sorted(_tensors(knot)) for knot in knots]
        if any(other != names[0] for other in names):
            raise ValueError(
                "the knots of hat functions must be fields of the same build, so that weights can be blended"
            )
        self.knots = nn.ModuleList(knots)

    @property
    def duration(self) -> float:
        """K, the end of time."""
        return float(len(self.knots))

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt at time ``t`` in [0, K], shape of ``h``."""
        last = len(self.knots) - 1
        # An adaptive solver's time follows its first step size, and so has a gradient, which is none of the field's.
        position = float(t if isinstance(t, float) else t.detach()) * last / self.duration
        left = min(int(position), max(last - 1, 0))
        weight = position - left
        if weight == 0.0 or last == 0:
            return self.knots[left](t, h)
        a, b = _tensors(self.knots[left]), _tensors(self.knots[left + 1])
        blend = {n: torch.lerp(a[n], b[n], weight) if a[n].is_floating_point() else a[n] for n in a}
        return functional_call(self.knots[0], blend, (t, h))


def in_pieces(kind: str, count: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Build a field whose weights vary in time.

    Args:
        kind: "constant" (``count`` must be 1), "piecewise" or "hat".
        count: number of pieces or knots, >= 1.
        make: builds one field.

    Raises:
        ValueError: unknown kind, or a count that does not fit it.
    """
    check_name(kind, PIECES, "pieces")
    if count < 1 or (kind == "constant" and count != 1):
        raise ValueError(
            f"{kind} pieces were asked for with a count of {count}; constant weights have 1 piece, "
            "the other kinds 1 or more. Change the kind or the count."
        )
    if kind == "constant":
        return make()
    fields = [make() for _ in range(count)]
    return PiecewiseConstant(fields) if kind == "piecewise" else HatFunctions(fields)


def duration_of(field: nn.Module) -> float:
    """The time for which a field is defined: its ``duration``, or 1 for a field without one."""
    return float(getattr(field, "duration", 1.0))


def segments_of(field: nn.Module, duration: float) -> list[tuple[nn.Module, float, float]]:
    """The parts of [0, duration] on which the field is smooth in time, as (field, start, end)."""
    if not isinstance(field, PiecewiseConstant):
        return [(field, 0.0, duration)]
    inside = [(part, start, min(end, duration)) for part, start, end in field.segments() if start < duration]
    part, start, _ = inside[-1]
    return [*inside[:-1], (part, start, duration)]


def _check_pieces(fields: Sequence[nn.Module]) -> None:
    if len(fields) == 0:
        raise ValueError("a field in pieces was given no piece; give at least one field")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
