"""The reversible coupling of McCallum and Foster: a solve that can be run backwards, so that no state need be kept.

Two copies of the state, y and z, start from h and advance each other. With Psi_s(t, x) the increment of an explicit
Runge-Kutta step of size s from x at time t, and c the coupling, a step from t to t' = t + s is

    y' = c y + (1 - c) z + Psi_s(t, z)
    z' = z - Psi_{-s}(t', y')

which is solved for (y, z) without any iteration. The result is y, so the last z' is left out: N steps take 2 N - 1
increments.

The pair is kept in float64, though the field is evaluated in the precision of h. Reconstructed in float32 it would
be wrong in its last bits, and where an activation has a kink a last bit decides about a gradient; rounded from float64
it is what it was, nearly always.

Source: McCallum and Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs", arXiv 2410.11648.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.randomness import draws_masks
from ode_detect.ode.solvers import Tableau, advance

from .recompute import Grid, Surroundings, Totals, surroundings_of, take_saved, trained, without_graph

Slopes = Callable[[float, float, Tensor], list[Tensor]]


def in_precision_of_pair(h: Tensor) -> Tensor:
    """The state in float64 (complex128); in float32 (complex64) on devices that have no float64."""
    if h.device.type == "mps":
        return h.to(torch.complex64 if h.is_complex() else torch.float32)
    return h.to(torch.complex128 if h.is_complex() else torch.float64)


def coupled(
    slopes: Slopes, tableau: Tableau, grid: Grid, coupling: float, h: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the y after each step, with the z that it was advanced by.

    Args:
        slopes: the stages of one step of the method, (start, end, x) -> dx/dt at each; end may lie before start.
        tableau: the method.
        grid: start and end of each step.
        coupling: c, in (0, 1).
        h: the state at the start, in the precision of the pair.
    """
    y = z = h
    for index, (start, end) in enumerate(grid):
        if index > 0:
            before, now = grid[index - 1]
            # Backwards in time, from now to before: the stages belong to the step that ended.
            z = advance(z, slopes(now, before, y), tableau.b, now - before)
            y = torch.lerp(z, y, coupling)
        y = advance(y, slopes(start, end, z), tableau.b, end - start)
        yield y, z


@torch.compiler.disable
def solve_reversibly(
    field: nn.Module, slopes: Slopes, tableau: Tableau, grid: Grid, coupling: float, h: Tensor
) -> Tensor:
    """Return the last y; only the last pair is kept for the backward pass. Arguments as for `coupled`."""
    if draws_masks(field):
        raise ValueError(
            "a reversible solve is run backwards by evaluating its field again, and dropout would draw other masks. "
            "Use gradient='checkpoint', or put dropout outside the flow."
        )
    return _Coupled.apply(slopes, tableau, grid, coupling, surroundings_of(field, h), h, *trained(field))


class _Coupled(torch.autograd.Function):
    """All steps of a coupled solve as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        slopes: Slopes,
        tableau: Tableau,
        grid: Grid,
        coupling: float,
        surroundings: Surroundings,
        h: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.slopes, ctx.tableau, ctx.grid, ctx.coupling = slopes, tableau, grid, coupling
        ctx.surroundings = surroundings

        def alone(start: float, end: float, x: Tensor) -> list[Tensor]:
            return without_graph(slopes, (start, end), x)

        pair = h, h
        for advanced in coupled(alone, tableau, grid, coupling, h):
            pair = advanced
        ctx.save_for_backward(*parameters, *pair)
        return pair[0]

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.surroundings():
            parameters, (y, z) = take_saved(ctx, 2)
            totals, by_z = Totals(parameters), torch.zeros_like(by_y)
            for index in reversed(range(1, len(ctx.grid))):
                back, by_seen = _undo(ctx, totals, index, y, z, by_y)
                y = torch.lerp(z, back, 1 / ctx.coupling)
                by_z.add_(by_y, alpha=1 - ctx.coupling).add_(by_seen)
                z, by_seen = _undo(ctx, totals, index - 1, z, y, by_z, backwards=True)
                by_y = torch.add(by_seen, by_y, alpha=ctx.coupling)
            needs_h = ctx.needs_input_grad[5]
            _, by_seen = _undo(ctx, totals, 0, y, z, by_y, needs_seen=needs_h)
            by_h = by_y + by_z + by_seen if needs_h else None
        return (None, None, None, None, None, by_h, *totals.gradients)


def _undo(
    ctx: Any,
    totals: Totals,
    index: int,
    moved: Tensor,
    seen: Tensor,
    grad: Tensor,
    *,
    backwards: bool = False,
    needs_seen: bool = True,
) -> tuple[Tensor, Tensor]:
    """Take back an advance of one of the pair; each stage is evaluated once, for its value and for its gradient.

    Args:
        ctx: the solve.
        totals: where the gradients by the parameters go.
        index: which step.
        moved: the one that was advanced.
        seen: the other, from which the stages start.
        grad: the gradient by ``moved``.
        backwards: whether the stages went backwards in time.
        needs_seen: whether the gradient by ``seen`` is of use.

    Returns:
        ``moved`` before its advance, and what the advance adds to the gradient by ``seen``.
    """
    start, end = ctx.grid[index]
    size = end - start
    with torch.enable_grad():
        seen = seen.detach().requires_grad_()
        slopes = ctx.slopes(*((end, start) if backwards else (start, end)), seen)
    weighed = [(slope, weight * size) for slope, weight in zip(slopes, ctx.tableau.b, strict=True) if weight != 0.0]
    by_slopes = [(grad * weight).to(slope.dtype) for slope, weight in weighed]
    by_seen = totals.differentiate([slope for slope, _ in weighed], by_slopes, seen if needs_seen else None)
    return advance(moved, [slope.detach() for slope in slopes], ctx.tableau.b, -size), by_seen
