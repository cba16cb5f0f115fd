"""What a module inside a network is called with, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Call = tuple[tuple[Any, ...], Any]


@contextmanager
def calls_seen(module: nn.Module) -> Iterator[list[Call]]:
    """Remember each call of a module, as (positional arguments, output), until the context ends."""
    calls: list[Call] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((inputs, output))

    handle = module.register_forward_hook(see)
    try:
        yield calls
    finally:
        handle.remove()
