"""Evaluating again in the backward pass: from every k-th state, or from few states by the binomial schedule.

A function whose backward pass evaluates a field is followed by no compiler, and breaks the graph of torch.compile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ode_detect.ode.errors import GradientError
from ode_detect.ode.randomness import draws_masks, may_draw, random_layers

from .schedules import places_kept

Step = Callable[[float, float, Tensor], Tensor]
Grid = Sequence[tuple[float, float]]
Surroundings = Callable[[], AbstractContextManager[None]]


def recomputing(field: nn.Module) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Return a wrapper: a function in it keeps its arguments only, and is called again in the backward pass.

    Args:
        field: what such functions evaluate. Its running statistics are those of the first call, and what it draws at
            random is the same in both; where its weights are not, the second call raises a `GradientError`.
    """
    arguments: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": may_draw(field)}
    # A compiler takes no such context. What it keeps for the backward pass, it compares itself.
    if not torch.compiler.is_compiling():
        unchanged, layers = Unchanged(field), statistics_of(field)
        arguments["context_fn"] = lambda: (nullcontext(), _Again(unchanged, layers))
    return lambda function: functools.partial(checkpoint, function, **arguments)


def solve_from_every(field: nn.Module, step: Step, grid: Grid, h: Tensor, every: int) -> Tensor:
    """Return the state after all steps; every ``every``-th is kept, and the steps from it are taken again together."""
    again = recomputing(field)
    for first in range(0, len(grid), every):
        h = again(functools.partial(_take, step, grid[first : first + every]))(h)
    return h


def _take(step: Step, grid: Grid, h: Tensor) -> Tensor:
    for start, end in grid:
        h = step(start, end, h)
    return h


@torch.compiler.disable
def solve_from_few(field: nn.Module, step: Step, grid: Grid, h: Tensor, states: int) -> Tensor:
    """Return the state after all steps; at most ``states`` states are kept at any time, by the binomial schedule."""
    if draws_masks(field):
        raise ValueError(
            f"Checkpoint(states={states}) evaluates the field several times, and its dropout would draw other masks "
            "each time. Use Checkpoint(every=...), or put dropout outside the flow."
        )
    return _FewStates.apply(step, grid, states, surroundings_of(field, h), h, *trained(field))


def trained(field: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that need a gradient."""
    return [p for p in field.parameters() if p.requires_grad]


class _FewStates(torch.autograd.Function):
    """All steps of a solve as one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, step: Step, grid: Grid, states: int, surroundings: Surroundings, h: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.step, ctx.grid, ctx.states, ctx.surroundings = step, grid, states, surroundings
        ctx.places = places_kept(0, len(grid) + 1, states)
        kept = []
        for place, times in enumerate(grid):
            if place in ctx.places:
                kept.append(h)
            h = without_graph(step, times, h)
        ctx.save_for_backward(*parameters, *kept)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.surroundings():
            parameters, kept = take_saved(ctx, len(ctx.places))
            places, totals, needs_h = list(ctx.places), Totals(parameters), ctx.needs_input_grad[4]
            for last in reversed(range(len(ctx.grid))):
                place, h = places[-1], kept[-1]
                wanted = places_kept(place, last + 1, ctx.states - len(places) + 1)
                while place < last:
                    h = without_graph(ctx.step, ctx.grid[place], h)
                    place += 1
                    if place in wanted:
                        places.append(place)
                        kept.append(h)
                if places[-1] == last:
                    places.pop()
                    kept.pop()
                with torch.enable_grad():
                    h = h.detach().requires_grad_()
                    out = ctx.step(*ctx.grid[last], h)
                grad = totals.differentiate([out], [grad], h if last > 0 or needs_h else None)
                del out
        return (None, None, None, None, grad if needs_h else None, *totals.gradients)


def take_saved(ctx: Any, states: int) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters and the states that a function saved; it forgets them, unless the graph is to be kept."""
    saved = list(ctx.saved_tensors)
    ctx.maybe_clear_saved_tensors()
    return saved[:-states], saved[-states:]


def without_graph(function: Callable[..., Any], times: tuple[float, float], h: Tensor) -> Any:
    """The function's result without a graph, computed as with one: layers may choose their arithmetic by that."""
    with torch.enable_grad():
        out = function(*times, h.detach().requires_grad_())
    return out.detach() if isinstance(out, Tensor) else [tensor.detach() for tensor in out]


class Totals:
    """Gradients of parameters, summed over evaluations.

    Attributes:
        gradients: one for each parameter; None where there was none.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.gradients: list[Tensor | None] = [None] * len(parameters)
        self._parameters = parameters
        self._ours: set[int] = set()

    def differentiate(self, outputs: list[Tensor], grads: list[Tensor], h: Tensor | None) -> Tensor:
        """Add the gradients by the parameters, and return that by ``h``: zero where there is none.

        Args:
            outputs: tensors with a graph, which is freed.
            grads: the gradients by them.
            h: a tensor that the outputs were computed from; None if its gradient is of no use.
        """
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        inputs = [*self._parameters] if h is None else [*self._parameters, h]
        if not pairs or not inputs:
            return torch.zeros_like(grads[0] if h is None else h)
        found = torch.autograd.grad([out for out, _ in pairs], inputs, [grad for _, grad in pairs], allow_unused=True)
        for index, grad in enumerate(found[: len(self._parameters)]):
            if grad is not None:
                self._add(index, grad)
        if h is None or found[-1] is None:
            return torch.zeros_like(grads[0] if h is None else h)
        return found[-1]

    def _add(self, index: int, grad: Tensor) -> None:
        total = self.gradients[index]
        if total is None:
            self.gradients[index] = grad
        elif index in self._ours:
            total.add_(grad)
        else:
            # The first gradient may be a tensor that others hold (that of an addition is the output's).
            self.gradients[index] = total + grad
            self._ours.add(index)


class Unchanged:
    """The tensors of a field as they are now, for a check that its evaluation in the backward pass finds them so.

    Running statistics of layers in training mode do not count: no evaluation reads them.

    Args:
        field: the vector field of a solve that begins.
    """

    def __init__(self, field: nn.Module) -> None:
        unread = {id(m) for m in field.modules() if isinstance(m, _NormBase) and m.training}
        self._tensors = [
            (store, name, f"{path}.{name}".lstrip("."), tensor, version_of(tensor))
            for path, module in field.named_modules()
            for store in (module._parameters, {} if id(module) in unread else module._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        by_mode: list[tuple[str, nn.Module]] = [
            (path, m) for path, m in field.named_modules() if isinstance(m, _NormBase)
        ]
        by_mode += [(path, m) for path, m, _ in random_layers(field)]
        self._modes = [(module, path, module.training) for path, module in by_mode]

    def check(self) -> None:
        """Raise a `GradientError` unless the field is as it was."""
        for store, name, path, tensor, version in self._tensors:
            if store.get(name) is not tensor:
                raise GradientError(_changed(f"{path!r} of its field is another tensor now"))
            if tensor is not None and version_of(tensor) != version:
                raise GradientError(_changed(f"{path!r} of its field was changed in place"))
        for module, path, training in self._modes:
            if module.training != training:
                mode = "evaluation mode" if training else "training mode"
                raise GradientError(_changed(f"{type(module).__name__} {path!r} of its field is in {mode} now"))


def check_differentiated_once() -> None:
    """Raise a `GradientError` in a backward pass whose gradient is to be differentiated in its turn."""
    # Of a function, autograd would only notice where the gradient that comes in has a graph.
    if torch.is_grad_enabled():
        raise GradientError(
            "the gradient of this flow has no gradient of its own, and create_graph=True asks for one (a gradient "
            "penalty does). Use gradient='backprop' or gradient='checkpoint'."
        )


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for one of inference mode, which no backward pass reads."""
    return 0 if tensor.is_inference() else tensor._version


def _changed(what: str) -> str:
    return (
        f"a flow that is evaluated again in its backward pass must be as in its forward pass, and {what}. Call "
        "backward() before weights are changed (by a step of an optimiser, say), or use gradient='backprop'."
    )


def surroundings_of(field: nn.Module, h: Tensor) -> Surroundings:
    """Return a context for evaluations in the backward pass: weights checked, autocast restored, statistics left alone.

    To enter it raises a `GradientError` where weights were changed, or where a gradient of the gradient is asked for.
    """
    device = h.device.type
    autocast = functools.partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )
    unchanged, layers = Unchanged(field), statistics_of(field)

    @contextmanager
    def surroundings() -> Iterator[None]:
        check_differentiated_once()
        unchanged.check()
        with autocast(), statistics_put_aside(layers):
            yield

    return surroundings


def summing_in_float32(h: Tensor) -> AbstractContextManager[Any]:
    """Return a context with autocast as it is, but without its cache of weights in half precision.

    The evaluations of a solve share what is in the cache, and would add up their gradients there, in 8 bits: with 256
    steps through one field the sum was 10 % off.

    Args:
        h: the state, on the device in question.
    """
    device = h.device.type
    # A compiler has no cache.
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)


def statistics_of(field: nn.Module) -> list[_NormBase]:
    """The layers that update running statistics when they are evaluated."""
    return [m for m in field.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]


@contextmanager
def statistics_put_aside(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Until the context ends, the layers update copies of their running statistics."""
    aside = [(layer, dict(layer._buffers)) for layer in layers]
    for layer, buffers in aside:
        layer._buffers.update({name: b if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in aside:
            layer._buffers.update(buffers)


class _Again(AbstractContextManager[None]):
    """`statistics_put_aside` for a field that is unchanged; each backward pass through a graph that is kept enters."""

    def __init__(self, unchanged: Unchanged, layers: Sequence[nn.Module]) -> None:
        self._unchanged, self._layers = unchanged, layers

    def __enter__(self) -> None:
        self._unchanged.check()
        self._inside = statistics_put_aside(self._layers)
        self._inside.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._inside.__exit__(*error)


@contextmanager
def without_trace(field: nn.Module, h: Tensor) -> Iterator[None]:
    """Until the context ends, evaluations at states like ``h`` leave running statistics and random state alone."""
    with ExitStack() as stack:
        stack.enter_context(statistics_put_aside(statistics_of(field)))
        if may_draw(field):
            stack.enter_context(torch.random.fork_rng([h.device] if h.is_cuda else []))
        yield
