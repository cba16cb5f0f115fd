"""Weights over time: how the weights of a vector field vary while it is integrated.

A field whose weights do not vary is *constant*. The two containers here make a field of K fields:
`PiecewiseConstant` hands over from one to the next, `HatFunctions` blends neighbours linearly. Both last K units of
time by default, so that N Euler steps over N pieces have step size 1 and are N residual blocks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .names import check_name
from .solvers import grid_point

PIECES = ("constant", "piecewise", "hat")


class Lasting(nn.Module):
    """A module with a duration, which is checked whenever it is set.

    Attributes:
        duration: the end of time, > 0.
    """

    duration: float

    def __setattr__(self, name: str, value: Any) -> None:
        checked: Any = _checked_duration(value) if name == "duration" else value
        super().__setattr__(name, checked)


class PiecewiseConstant(Lasting):
    """K vector fields, one after the other, each for an equal part of the time: one unit if no duration is given.

    Args:
        pieces: the fields, K >= 1, in the order of time.
        duration: the end of time, > 0; None is K. A flow of 8 blocks that keeps 2 pieces still lasts 8.

    Raises:
        ValueError: no piece, or a duration out of range.
    """

    def __init__(self, pieces: Sequence[nn.Module], *, duration: float | None = None) -> None:
        super().__init__()
        self.duration = _duration_for(pieces, duration)
        self.pieces = nn.ModuleList(pieces)

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt at time ``t`` in [0, duration], shape of ``h``."""
        return self.pieces[self.index(t)](t, h)

    def index(self, t: float | Tensor) -> int:
        """Return the number of the piece that acts at time ``t``: k from the start of the k-th of K equal parts on."""
        time, last = _as_float(t), len(self.pieces) - 1
        guess = min(int(time * len(self.pieces) / self.duration), last)
        # The quotient is rounded, and a step that starts with a piece must see that piece.
        if guess < last and time >= self._start(guess + 1, t):
            return guess + 1
        return guess - 1 if guess > 0 and time < self._start(guess, t) else guess

    def segments(self) -> Iterator[tuple[nn.Module, float, float]]:
        """Yield the parts that are smooth in time, as (field, start, end), for solvers that cannot cross a jump."""
        for index, piece in enumerate(self.pieces):
            yield piece, self._start(index, 0.0), self._start(index + 1, 0.0)

    def extra_repr(self) -> str:
        """Duration."""
        return f"duration={self.duration:g}"

    def _start(self, index: int, t: float | Tensor) -> float:
        """When piece ``index`` starts, in the precision of the time ``t``."""
        start = grid_point(self.duration, index, len(self.pieces))
        return float(torch.tensor(start, dtype=t.dtype)) if isinstance(t, Tensor) else start


class HatFunctions(Lasting):
    """Weights that are linear in time between K knots, evenly spread over the time, from its start to its end.

    The weights at time t are the blend of those of the two nearest knots (finite elements of order one; Queiruga et
    al. 2020, "Continuous-in-Depth Neural Networks"). Floating-point buffers are blended as the weights are.

    The blend is put in place of the weights of the first knot while it is evaluated, so one such model must not be
    evaluated by two threads at once.

    Args:
        knots: K >= 1 fields of the same build.
        duration: the end of time, > 0; None is K.

    Raises:
        ValueError: no knot, knots of different builds, or a duration out of range.
    """

    def __init__(self, knots: Sequence[nn.Module], *, duration: float | None = None) -> None:
        super().__init__()
        self.duration = _duration_for(knots, duration)
        shapes = [shapes_of(knot) for knot in knots]
        for index, other in enumerate(shapes):
            unlike = sorted(name for name in {*shapes[0], *other} if shapes[0].get(name) != other.get(name))
            if unlike:
                here, first = _shape(other, unlike[0]), _shape(shapes[0], unlike[0])
                raise ValueError(
                    "the knots of hat functions must be fields of the same build, so that weights can be blended, and "
                    f"{unlike[0]!r} is {here} in knot {index} and {first} in knot 0; build all alike, or use "
                    "PiecewiseConstant."
                )
        self.knots = nn.ModuleList(knots)

    def forward(self, t: float | Tensor, h: Tensor) -> Tensor:
        """dh/dt at time ``t`` in [0, duration], shape of ``h``."""
        left, weight = self.between(t)
        if weight == 0.0:
            return self.knots[left](t, h)
        a, b = parameters_and_buffers(self.knots[left]), parameters_and_buffers(self.knots[left + 1])
        blend = {n: torch.lerp(a[n], b[n], weight) if a[n].is_floating_point() else a[n] for n in a}
        return functional_call(self.knots[0], blend, (t, h))

    def between(self, t: float | Tensor) -> tuple[int, float]:
        """The knot to the left of time ``t``, and the weight of the next one, in [0, 1] for t in [0, duration]."""
        last = len(self.knots) - 1
        if last == 0:
            return 0, 0.0
        position = _as_float(t) * last / self.duration
        left = min(int(position), last - 1)
        return left, position - left

    def extra_repr(self) -> str:
        """Duration."""
        return f"duration={self.duration:g}"


def in_pieces(kind: str, count: int, make: Callable[[], nn.Module], *, duration: float | None = None) -> nn.Module:
    """Build a field whose weights vary in time.

    Args:
        kind: "constant" (``count`` must be 1), "piecewise" or "hat".
        count: number of pieces or knots, >= 1.
        make: builds one field.
        duration: the end of time of the pieces; None is ``count``. Constant weights have no end: give it to `ODEBlock`.

    Raises:
        ValueError: unknown kind, or a count or duration that does not fit it.
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
    return (PiecewiseConstant if kind == "piecewise" else HatFunctions)(fields, duration=duration)


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


def parameters_and_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """The shapes of parameters and buffers, by name: equal for modules that can be blended."""
    return {name: tensor.shape for name, tensor in parameters_and_buffers(module).items()}


def halved(field: nn.Module, duration: float) -> nn.Module:
    """A field of the same weights over time in twice the pieces; ``duration`` is that of constant weights."""
    if isinstance(field, HatFunctions) and len(field.knots) > 1:
        knots = list(field.knots)
        for index in reversed(range(1, len(knots))):
            knots.insert(index, blended(knots[index - 1 : index + 1], [0.5, 0.5]))
        return HatFunctions(knots, duration=field.duration)
    if isinstance(field, PiecewiseConstant | HatFunctions):
        pieces, duration = parts_of(field), field.duration
    else:
        pieces = [field]
    twice = [part for piece in pieces for part in (piece, copy.deepcopy(piece))]
    return (HatFunctions if isinstance(field, HatFunctions) else PiecewiseConstant)(twice, duration=duration)


def are_alike(pieces: Sequence[nn.Module]) -> bool:
    """Whether fields are of the same build, so that they can be blended."""
    return all(shapes_of(piece) == shapes_of(pieces[0]) for piece in pieces)


def blended(pieces: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """A copy of the first piece with the weighted mean of the floating-point tensors of all."""
    blend = copy.deepcopy(pieces[0])
    tensors = [parameters_and_buffers(piece) for piece in pieces]
    for name, tensor in parameters_and_buffers(blend).items():
        if tensor.is_floating_point():
            parts = [weight * other[name].detach() for weight, other in zip(weights, tensors, strict=True) if weight]
            tensor.detach().copy_(torch.stack(parts).sum(dim=0))
    return blend


def parts_of(field: nn.Module) -> list[nn.Module]:
    """The pieces or knots of a field that has them."""
    assert isinstance(field, PiecewiseConstant | HatFunctions)
    return list(field.pieces if isinstance(field, PiecewiseConstant) else field.knots)


def shares_at(field: PiecewiseConstant | HatFunctions, t: float) -> list[tuple[int, float]]:
    """The pieces or knots that act at time ``t``, as (index, weight); the weights sum to 1."""
    if isinstance(field, PiecewiseConstant):
        return [(field.index(t), 1.0)]
    left, weight = field.between(t)
    return [(k, share) for k, share in ((left, 1.0 - weight), (left + 1, weight)) if share > 0.0]


def _shape(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "absent"


def _duration_for(fields: Sequence[nn.Module], duration: float | None) -> float:
    if len(fields) == 0:
        raise ValueError("a field in pieces was given no piece; give at least one field")
    value = len(fields) if duration is None else duration
    return _checked_duration(value, f"leave it out for {len(fields)}, one unit of time a piece")


def _checked_duration(value: float, cure: str = "1.0 is usual") -> float:
    if not 0 < float(value) < math.inf:
        raise ValueError(f"the duration of a flow must be a number above 0, not {value!r}; {cure}.")
    return float(value)


def _as_float(t: float | Tensor) -> float:
    # An adaptive solver's time follows its first step size, and so has a gradient, which is none of the field's.
    return float(t.detach()) if isinstance(t, Tensor) else t
