"""Ways to the gradient of a flow, each a frozen value with its own cost in memory and evaluations.

- `Backprop` keeps every intermediate result: fastest, memory grows with the steps.
- `Checkpoint` keeps states and recomputes the rest: exact, memory down to that of a given number of states.
- `Reversible` keeps two states whatever the steps, and is exact, for a scheme of its own with twice the evaluations.
- `Adjoint` keeps the last state and solves backwards in time: inexact.
- `Auto` is whichever of `Backprop` and `Checkpoint` is fastest within a number of bytes.

All but `Reversible` differentiate the same forward solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adaptive import Adaptive, Solver
from .names import check_name
from .solvers import check_count


@dataclass(frozen=True)
class Backprop:
    """Differentiate through the solver."""


@dataclass(frozen=True)
class Checkpoint:
    """Differentiate through the solver, recomputing in the backward pass.

    A fixed-step solve of N steps keeps, for its backward pass,

    - ``every=k``: the state at the start of every k-th step, N / k states rounded up. The k steps from each are taken
      again together, with all that `Backprop` keeps of k steps: N more steps in all, whatever k.
    - ``states=s``: at most s states at any time, the input among them, besides the one being advanced and what
      `Backprop` keeps of one step. Steps are taken again as often as needed, as rarely as possible:
      `schedules.evaluations_to_reverse` (N, s) of them, N if s >= N. Sums over evaluations of a step are rounded in
      another order than by `Backprop`; with Euler's method the gradients are the same bits.

    An adaptive solve keeps the states at which the field was evaluated and recomputes the evaluation.

    Running statistics (batch normalisation) are updated by the forward pass only. Dropout masks are drawn once;
    ``states`` refuses them. With ``states``, gradients reach the input and the parameters of the field, and no other
    tensor.

    Attributes:
        every: k, >= 1.
        states: s, >= 1; None goes by ``every``.

    Raises:
        ValueError: a number out of range, or both.
    """

    every: int = 1
    states: int | None = None

    def __post_init__(self) -> None:
        check_count("every", self.every, "1 keeps the state at each step")
        if self.states is not None:
            check_count("states", self.states, "leave it out to keep the state at each step")
            if self.every != 1:
                raise ValueError(
                    f"states are kept at every k-th step or by a schedule, not both: every={self.every} and "
                    f"states={self.states} were given. Leave one out."
                )


@dataclass(frozen=True)
class Reversible:
    """Solve by a scheme that can be run backwards, and run it backwards in the backward pass.

    The scheme couples two copies of the state by any fixed-step method (see `backward.reversible`). It is used by
    every solve of the block, with and without a gradient, so the outputs are not those of the method alone, but tend to
    the same flow as the steps get smaller. N steps evaluate the field 2 N - 1 times as often as one step of the method
    does, forwards and once more backwards. The last pair is kept, in float64 (the memory of four states in float32),
    whatever the number of steps. No projection, no dropout, no adaptive method. Gradients reach the input and the
    parameters of the field, and no other tensor.

    Attributes:
        coupling: c in (0, 1): 1 - c is how strongly the copies are pulled together, and backwards rounding errors grow
            by 1 / c each step.
        keep: differentiate the same scheme by keeping everything, as `Backprop` does.

    Raises:
        ValueError: coupling out of range.
    """

    coupling: float = 0.99
    keep: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.coupling < 1:
            raise ValueError(
                f"the coupling of a reversible solve must lie between 0 and 1, not at {self.coupling!r}; 0.99 is usual."
            )


@dataclass(frozen=True)
class Auto:
    """The fastest of `Backprop` and `Checkpoint` within a number of bytes; see `ode_detect.ode.memory`.

    It is chosen at the first solve that needs a gradient for a shape, dtype and solver. `ODEBlock.memory` says what was
    predicted, chosen and measured. Fixed steps only.

    Attributes:
        memory_budget: bytes that one flow may hold for its backward pass, > 0.

    Raises:
        ValueError: a budget out of range.
    """

    memory_budget: int

    def __post_init__(self) -> None:
        check_count("memory_budget", self.memory_budget, "it is a number of bytes, such as 512 * 2**20", most=2**63)


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint of torchdiffeq: memory of one evaluation, but the gradient of another discretisation.

    Attributes:
        seminorm: leave the gradients of the parameters out of the error estimate; saves up to 62 % of the backward
            evaluations (Kidger et al. 2021, "Hey, that's not an ODE"). Adaptive methods only.
        rtol: relative tolerance of the backward solve; that of the solver if None.
        atol: absolute tolerance of the backward solve; that of the solver if None.

    Raises:
        ValueError: a tolerance that is not above 0.

    Source: Chen et al. 2018, "Neural Ordinary Differential Equations".
    """

    seminorm: bool = True
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        if not all(value is None or value > 0 for value in (self.rtol, self.atol)):
            raise ValueError(
                f"tolerances must be above 0, not rtol={self.rtol}, atol={self.atol}; leave them out for those of the "
                "solver."
            )


Gradient = Backprop | Checkpoint | Reversible | Adjoint | Auto
GRADIENTS: dict[str, type[Backprop] | type[Checkpoint] | type[Reversible] | type[Adjoint]] = {
    "backprop": Backprop,
    "checkpoint": Checkpoint,
    "reversible": Reversible,
    "adjoint": Adjoint,
}


def make_gradient(gradient: str | Gradient, memory_budget: int | None = None) -> Gradient:
    """Return a gradient by its name, or a value as it is.

    Args:
        gradient: the name or the value.
        memory_budget: bytes; goes with "auto" and nothing else.

    Raises:
        ValueError: an unknown name, or a budget without "auto" or the other way round.
    """
    if not isinstance(gradient, Gradient):
        check_name(gradient, [*GRADIENTS, "auto"], "gradient")
    if gradient == "auto":
        if memory_budget is None:
            raise ValueError(
                "gradient='auto' needs a memory_budget in bytes, and got none; 512 * 2**20 is one of 512 MiB."
            )
        return Auto(memory_budget=memory_budget)
    if memory_budget is not None:
        raise ValueError(f"a memory_budget goes with gradient='auto', not with {gradient!r}; leave out one of them.")
    return gradient if isinstance(gradient, Gradient) else GRADIENTS[gradient]()


def check_solvable(gradient: Gradient, solver: Solver, block: str, *, gradient_needed: bool = True) -> None:
    """Check that a solver can be differentiated in this way.

    Raises:
        ValueError: it cannot; the message says what to do.
    """
    if isinstance(gradient, Reversible):
        if isinstance(solver, Adaptive):
            raise ValueError(
                f"a reversible solve takes fixed steps, and {block!r} is solved by {solver.method!r}. "
                f"Use FixedStep, or gradient='checkpoint'."
            )
        if solver.projection != "none":
            raise ValueError(
                f"a reversible solve is run backwards, and {block!r} with its projection {solver.projection!r} cannot. "
                "Use FixedStep(projection='none'), or gradient=Checkpoint(states=4)."
            )
    elif isinstance(solver, Adaptive) and gradient_needed and (isinstance(gradient, Auto) or _spares_states(gradient)):
        raise ValueError(
            f"{gradient} needs to know the steps beforehand, and {block!r} is solved by {solver.method!r}, whose steps "
            "are its own. Use FixedStep, or gradient='checkpoint'."
        )


def scheme_for(gradient: Gradient, solver: Solver | None = None) -> Gradient:
    """Return the gradient for solves whose gradient does not matter: of all, only `Reversible` changes the solution.

    Args:
        gradient: the one of the block.
        solver: another solver than the block's; `Reversible` goes with fixed steps only.
    """
    return gradient if isinstance(gradient, Reversible) and not isinstance(solver, Adaptive) else Backprop()


def needs_gradient(field: nn.Module, h: Tensor) -> bool:
    """Whether a solve from ``h`` is to be differentiated."""
    return torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in field.parameters()))


def _spares_states(gradient: Gradient) -> bool:
    return isinstance(gradient, Checkpoint) and gradient != Checkpoint()
