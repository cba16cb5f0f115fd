"""What a run evaluates and hands out: the moving average of its weights, which the task completes at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor, nn

from .distributed import broadcast_state

# BatchNorm's. Other buffers are not learnt, and are those of the latest iteration.
_STATISTICS = ("running_mean", "running_var")


class AveragedWeights(HookBase):
    """The weights that a run evaluates and hands out: an exponential moving average of those that it trains.

    The network has the weights that are trained, but in `in_place`. In the last iteration it gets the average for good,
    and the task completes it. The decay of iteration i is at most (1 + i) / (10 + i), since the average of a few
    iterations would otherwise be little but the random start.

    Args:
        model: the network, not wrapped for several processes.
        decay: of the average for each iteration, in [0, 1); 0 hands out the weights as they are trained.
        finish: completes the network in the last iteration.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, model: nn.Module, *, decay: float, finish: Callable[[nn.Module], None]) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY is a share in [0, 1), and it is {decay}; 0.999 is usual, 0 is none.")
        self._model, self._decay, self._finish = model, decay, finish
        self._here = _learnt(model)
        # What the network does not have: the average, or while that is in place the weights that are trained.
        self._other: dict[str, Tensor] = {}
        self._is_in_place = False

    def before_train(self) -> None:
        """Begin the average with the weights that the training begins with, unless it was loaded."""
        if self._decay:
            self._other = self._other or {name: tensor.clone() for name, tensor in self._here.items()}
        if self._is_in_place and self.trainer.start_iter < self.trainer.max_iter:
            self._exchange()  # A finished run goes on to a later iteration.

    def after_step(self) -> None:
        """Update the average; in the last iteration put it in place and complete it."""
        if self._decay:
            self._update(self.trainer.iter)
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self._exchange()
            broadcast_state(self._model)
            with inference_context(self._model), torch.no_grad():
                self._finish(self._model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the weights that are handed out."""
        if self._is_in_place:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Any]:
        """What the network does not have, and which of the two that is."""
        return {"other": self._other, "in_place": self._is_in_place} if self._decay else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        # A weight that was frozen until now is its own average.
        other = {n: state_dict["other"].get(n, t).to(t.device, copy=True) for n, t in self._here.items()}
        if self._decay:
            self._other, self._is_in_place = other, state_dict["in_place"]
        elif state_dict["in_place"]:
            # Without an average from here on, those that were trained go on.
            torch._foreach_copy_(list(self._here.values()), list(other.values()))

    def _update(self, iteration: int) -> None:
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(list(self._other.values()), list(self._here.values()), 1 - decay)

    def _exchange(self) -> None:
        self._is_in_place = not self._is_in_place
        if self._other:
            here, other = list(self._here.values()), list(self._other.values())
            kept = [tensor.clone() for tensor in here]
            torch._foreach_copy_(here, other)
            torch._foreach_copy_(other, kept)


def _learnt(model: nn.Module) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return weights | {name: tensor for name, tensor in model.named_buffers() if name.rpartition(".")[2] in _STATISTICS}
