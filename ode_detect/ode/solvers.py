"""Solvers: frozen values that say how to integrate dh/dt = f(t, h).

`FixedStep` is our own loop over an explicit Runge-Kutta method. `adaptive.Adaptive` names a method of torchdiffeq, and
`ode_detect.ode.diffeq` solves by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .names import check_name

Evaluate = Callable[[float, Tensor], Tensor]

# A stage at the later end of a step is evaluated this much before it: weights that jump there are still the step's.
_JUST_BEFORE = 1.0 - 2.0**-52


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method (Butcher 1963).

    Attributes:
        a: for each stage, the weights of the stages before it.
        b: weights of the stages in the step.
        c: when in the step each stage is evaluated, in [0, 1].
        order: order of convergence.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


TABLEAUS = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,), order=1),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), order=2),
    "heun": Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2),
    "rk4": Tableau(
        a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        c=(0.0, 0.5, 0.5, 1.0),
        order=4,
    ),
}
# In place: the state after a step is a fresh tensor, which nothing else holds.
PROJECTIONS: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "relu": F.relu_}


@dataclass(frozen=True)
class FixedStep:
    """Equal steps of an explicit Runge-Kutta method. The state of a half-precision input is kept in float32.

    Attributes:
        method: "euler" (1 evaluation a step), "midpoint", "heun" (2) or "rk4" (4; the classical one).
        steps: number of steps over the whole time, >= 1.
        projection: what is done to the state after each step: "none", or "relu" for a flow that was a run of residual
            blocks relu(h + f(h)).

    Raises:
        ValueError: unknown method or projection, or fewer than 1 step.
    """

    method: str = "euler"
    steps: int = 1
    projection: str = "none"

    def __post_init__(self) -> None:
        check_name(self.method, TABLEAUS, "fixed-step method")
        check_name(self.projection, PROJECTIONS, "projection")
        check_count("steps", self.steps, "1 is the coarsest solve")

    @property
    def tableau(self) -> Tableau:
        """The method's coefficients."""
        return TABLEAUS[self.method]

    @property
    def evaluations(self) -> int:
        """Evaluations of the field in one solve."""
        return self.steps * len(self.tableau.b)

    def grid(self, duration: float) -> Iterator[tuple[float, float]]:
        """Start and end of each step over [0, duration]."""
        start = 0.0
        for index in range(self.steps):
            end = grid_point(duration, index + 1, self.steps)
            yield start, end
            start = end

    def step(self, evaluate: Evaluate, start: float, end: float, h: Tensor) -> Tensor:
        """One step, from ``h`` at time ``start`` to the state at time ``end``; all stages belong to this step."""
        h = runge_kutta_step(evaluate, self.tableau, start, end, h)
        project = PROJECTIONS[self.projection]
        return h if project is None else project(h)


def grid_point(duration: float, index: int, count: int) -> float:
    """Return the end of part ``index`` of ``count`` equal parts of the time.

    Equal fractions give equal bits (2 of 8 and 1 of 4), so that a step which starts with a piece starts exactly there.
    """
    common = math.gcd(index, count)
    return duration * (index // common) / (count // common)


def runge_kutta_step(evaluate: Evaluate, tableau: Tableau, start: float, end: float, h: Tensor) -> Tensor:
    """Return the state after one explicit Runge-Kutta step, without projection.

    Args:
        evaluate: the field, (t, h) -> dh/dt.
        tableau: the method.
        start: time of ``h``.
        end: time of the result.
        h: the state.
    """
    return advance(h, slopes_of_step(evaluate, tableau, start, end, h), tableau.b, end - start)


def slopes_of_step(evaluate: Evaluate, tableau: Tableau, start: float, end: float, h: Tensor) -> list[Tensor]:
    """Return the stages of one explicit Runge-Kutta step from ``h`` at ``start``; ``end`` may lie before ``start``."""
    size, last = end - start, max(start, end) * _JUST_BEFORE
    slopes: list[Tensor] = []
    for weights, c in zip(tableau.a, tableau.c, strict=True):
        time = min(end if c == 1.0 else start + c * size, last)
        slopes.append(evaluate(time, advance(h, slopes, weights, size)))
    return slopes


def advance(h: Tensor, slopes: list[Tensor], weights: tuple[float, ...], size: float) -> Tensor:
    """Compute h + size * (weighted sum of the slopes), without copies that the method does not need."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            h = torch.add(h, slope, alpha=weight * size)
    return h


def check_count(name: str, value: object, cure: str, most: int = 1_000_000) -> None:
    """Raise `ValueError` unless ``value`` is an integer of 1 or more, and of a size that can ever be computed."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of 1 or more, not {value!r}; {cure}.")
    if value > most:
        shown = value if value < 10**18 else "one of many digits"
        raise ValueError(f"{name} must be an integer of at most {most}, not {shown}; {cure}.")
