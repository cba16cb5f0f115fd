"""Contexts that watch a model run and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while the context lasts; then each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call ``hook(module, inputs, output)`` after each forward pass of a module while the context lasts."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


Call = tuple[tuple[Any, ...], Any]


@contextmanager
def calls_seen(module: nn.Module) -> Iterator[list[Call]]:
    """Collect the calls of a module, as (positional arguments, output), until the context ends."""
    calls: list[Call] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((inputs, output))

    handle = module.register_forward_hook(see)
    try:
        yield calls
    finally:
        handle.remove()
