"""Adaptive solvers: a frozen value that names a method of torchdiffeq, and the list of its methods."""

from __future__ import annotations

from dataclasses import dataclass

from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.solvers import FixedGridODESolver

from .names import check_name
from .solvers import FixedStep, check_count


@dataclass(frozen=True)
class Adaptive:
    """A method of torchdiffeq: step sizes chosen so that the estimated error stays within the tolerances.

    One step size serves the whole batch, so a picture's result depends on the other pictures in its batch, within the
    tolerances. With `FixedStep` it does not.

    Attributes:
        method: any method of the installed torchdiffeq ("dopri5", "bosh3", "adaptive_heun", ...; `adaptive_methods()`
            lists them). "scipy_solver" cannot be differentiated through: use the adjoint.
        rtol: relative tolerance. The default suits float32 pictures; torchdiffeq's own 1e-7 does not.
        atol: absolute tolerance.
        max_evaluations: a solve that needs more raises `TooManyEvaluationsError`.
        steps: number of steps over the whole time of those torchdiffeq methods that do not adapt ("rk4",
            "implicit_adams", ...), rounded up in each piece of a field; the others ignore it.

    Raises:
        ValueError: unknown method, or a number out of range.
    """

    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    max_evaluations: int = 1000
    steps: int = 16

    def __post_init__(self) -> None:
        check_name(self.method, adaptive_methods(), "method of torchdiffeq")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"tolerances must be above 0, not rtol={self.rtol}, atol={self.atol}; try 1e-3 and 1e-4.")
        check_count("max_evaluations", self.max_evaluations, "leave it out for the default", most=10**9)
        check_count("steps", self.steps, "leave it out for the default")


Solver = FixedStep | Adaptive
# The prefix of our own methods where torchdiffeq lists its solvers.
OURS = "ode_detect_"


def adaptive_methods() -> list[str]:
    """Return the names of the methods of the installed torchdiffeq."""
    return [name for name in SOLVERS if not name.startswith(OURS)]


def takes_steps(solver: Solver) -> bool:
    """Whether ``solver.steps`` says how many steps are taken: ours do, and those of torchdiffeq that do not adapt."""
    return isinstance(solver, FixedStep) or issubclass(SOLVERS[solver.method], FixedGridODESolver)
