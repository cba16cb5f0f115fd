"""What solves cost while they run: counters of evaluations, steps, multiply-adds and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ode_detect.ode.backward.recompute import without_trace


@dataclass
class BlockRecord:
    """What one block cost while it was recorded.

    Attributes:
        solves: calls of the block.
        forward_evaluations: evaluations of the field in those calls.
        backward_evaluations: evaluations in their backward passes: recomputed (checkpoint) or of the adjoint.
        accepted: steps taken; 0 for SciPy's solver, which does not report them.
        rejected: steps that an adaptive method tried and threw away.
        macs: multiply-adds of the forward evaluations (convolutions and matrix products).
        forward_seconds: time in the block.
        backward_seconds: time in its backward pass; 0 where the block's input needs no gradient.
    """

    solves: int = 0
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    macs: int = 0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0


class Observer:
    """Writes the solves of one block in one thread into its record."""

    def __init__(self, record: BlockRecord, measure: bool) -> None:
        self.record = record
        self.measure = measure
        self._macs: dict[tuple, int] = {}

    def macs_per_evaluation(self, vector_field: nn.Module, h: Tensor) -> int:
        """Multiply-adds of one evaluation on a state like ``h``; evaluated once per shape."""
        key = (tuple(h.shape), h.dtype)
        if key not in self._macs:
            with torch.no_grad(), without_trace(vector_field, h), MultiplyAdds() as counter:
                vector_field(0.0, h.detach())
            self._macs[key] = counter.total
        return self._macs[key]


class Tally:
    """Counts of one solve, passed on to all observers of the block.

    Evaluations after `finish` belong to the backward pass.

    Args:
        observers: those that record the block; may be empty, since an error states the evaluations too.
    """

    def __init__(self, observers: list[Observer]) -> None:
        self.evaluations = 0
        self._records = [observer.record for observer in observers]
        self._measuring = [observer for observer in observers if observer.measure]
        self._backward = False
        self._began = 0.0

    @property
    def phase(self) -> str:
        """The pass that evaluations belong to: "forward", or "backward" once the forward solve is over."""
        return "backward" if self._backward else "forward"

    def count(self, evaluate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the same function, whose calls are counted."""

        def counted(t: Any, h: Tensor) -> Tensor:
            self.evaluations += 1
            for record in self._records:
                if self._backward:
                    record.backward_evaluations += 1
                else:
                    record.forward_evaluations += 1
            return evaluate(t, h)

        return counted

    def steps(self, *, accepted: int = 0, rejected: int = 0) -> None:
        """Count steps that were taken, or tried and thrown away."""
        for record in self._records:
            record.accepted += accepted
            record.rejected += rejected

    def start(self, vector_field: nn.Module, h: Tensor) -> Tensor:
        """Begin the solve, and return the state to start from."""
        if self._measuring:
            self._macs = [observer.macs_per_evaluation(vector_field, h) for observer in self._measuring]
            if h.requires_grad and torch.is_grad_enabled():
                h = h.view_as(h)
                h.register_hook(self._backward_ends)
            self._began = now(h.device)
        return h

    def finish(self, h: Tensor) -> None:
        """End the forward solve."""
        self._backward = True
        for record in self._records:
            record.solves += 1
        if not self._measuring:
            return
        seconds = now(h.device) - self._began
        for observer, macs in zip(self._measuring, self._macs, strict=True):
            observer.record.forward_seconds += seconds
            observer.record.macs += macs * self.evaluations
        if h.requires_grad:
            h.register_hook(self._backward_starts)

    def _backward_starts(self, grad: Tensor) -> None:
        self._began = now(grad.device)

    def _backward_ends(self, grad: Tensor) -> None:
        seconds = now(grad.device) - self._began
        for observer in self._measuring:
            observer.record.backward_seconds += seconds


class MultiplyAdds(TorchDispatchMode):
    """Counts the multiply-adds of convolutions and matrix products run in it, in this thread only.

    Attributes:
        total: multiply-adds so far.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self.total += flops(*args, **(kwargs or {}), out_val=out) // 2
        return out


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
