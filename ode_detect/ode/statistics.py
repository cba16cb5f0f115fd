"""Running statistics of BatchNorm layers, which have to fit the solver that a model runs with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .observation import in_evaluation


class StatisticsError(ValueError):
    """Statistics of BatchNorm that cannot be estimated."""


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the layers with running statistics, by path; a frozen BatchNorm is none of them."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Any]) -> int:
    """Estimate the running statistics of every BatchNorm again, under the solvers that the flows have now.

    Each becomes the plain average of the batches' means and (unbiased) variances, in which the first batch counts as
    much as the last. A layer that was never evaluated (of a piece that the steps leave out) keeps what it had. All
    other layers run as in evaluation.

    Args:
        model: any module; called with each batch.
        batches: what the model takes when it is evaluated, with the augmentation of the training.

    Returns:
        The number of batches.

    Raises:
        StatisticsError: no batch, or statistics that are not finite; the old ones are kept then.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN).
    """
    norms = list(batch_norms(model).values())
    before = [({k: v.clone() for k, v in n.state_dict().items()}, n.momentum) for n in norms]
    seen = dict.fromkeys(norms, 0)

    def average(norm: _BatchNorm, _: Any) -> None:
        # The cumulative average. A momentum of None says the same, but not to Detectron2's synchronised BatchNorm.
        seen[norm] += 1
        norm.momentum = 1 / seen[norm]

    count, done = 0, False
    with in_evaluation(model):
        hooks = [norm.register_forward_pre_hook(average) for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for batch in batches:
                model(batch)
                count += 1
            _check_statistics(norms, count)
            done = True
        finally:
            for hook in hooks:
                hook.remove()
            for norm, (state, momentum) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if not done or not seen[norm]:
                    norm.load_state_dict(state)
    return count


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Until the context ends, no BatchNorm updates its running statistics; in training it normalises by the batch."""
    norms = list(batch_norms(model).values())
    before = [(norm.track_running_stats, norm.momentum) for norm in norms]
    for norm in norms:
        norm.track_running_stats = not norm.training
        # For layers that look at the momentum only, as Detectron2's synchronised one.
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (track, momentum) in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum = track, momentum


def _check_statistics(norms: list[_BatchNorm], count: int) -> None:
    if count == 0:
        raise StatisticsError("statistics are estimated from batches, and there was none; give at least one.")
    for norm in norms:
        for statistics in (norm.running_mean, norm.running_var):
            if statistics is not None and not bool(statistics.isfinite().all()):
                raise StatisticsError(
                    "the statistics of a batch are not finite: the features overflow under these solvers, or a batch "
                    "holds one number per channel. Take more steps, or larger batches."
                )
