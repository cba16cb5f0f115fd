"""Distillation: train the flows of a model to give the outputs of those of another, its original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.flows import flows_of
from ode_detect.ode.observation import hooked, in_evaluation


def distil(
    model: nn.Module,
    teacher: nn.Module,
    pictures: Iterable[Any],
    *,
    iterations: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train the flows of a model so that they give the outputs of those of its original; in place.

    The teacher is a second network: keep a copy of the model before you project it. Both are run on the same pictures
    in evaluation mode, so statistics of normalisations stay as they are; only parameters in flows are trained, by Adam
    with a cosine. The loss is the mean over flows of the squared difference of outputs as a share of the mean square of
    the teacher's. A later flow of the model starts from what the earlier ones give, errors and all, and so learns to
    correct them. Of a flow that is called several times for a batch, only the last call counts.

    Args:
        model: called on each batch; its flows have the names of the teacher's.
        teacher: called on each batch; it is not changed.
        pictures: batches, kept in memory; gone through in a random order, again and again.
        iterations: number of batches, >= 1.
        learning_rate: the largest.
        seed: of the order.

    Returns:
        The loss of each iteration.

    Raises:
        ValueError: no pictures, no iterations, other flows than the teacher's, one that is not run on a batch, or
            nothing to train in them.
    """
    batches = list(pictures)
    if not batches or iterations < 1:
        raise ValueError(
            f"distillation needs 1 batch and 1 iteration or more, not {len(batches)} and {iterations}; give more."
        )
    flows, theirs = flows_of(model), flows_of(teacher)
    trained = _parameters(flows, theirs)
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    losses: list[float] = []
    with (
        _grads_kept(model),
        in_evaluation(model),
        in_evaluation(teacher),
        _outputs(flows) as got,
        _outputs(theirs) as wanted,
    ):
        for _ in range(iterations):
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            batch = batches[order.pop()]
            got.clear()
            wanted.clear()
            with torch.no_grad():
                teacher(batch)
            with torch.enable_grad():
                model(batch)
                _check_run(flows, got, wanted)
                loss = torch.stack([_relative(got[name], wanted[name]) for name in flows]).mean()
            losses.append(float(loss.detach()))
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            # Under autocast the next iteration would see weights that were cast before this step.
            torch.clear_autocast_cache()
            schedule.step()
    return losses


def _check_run(flows: Iterable[str], got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for outputs, who in ((wanted, "teacher"), (got, "model")):
        idle = [name for name in flows if name not in outputs]
        if idle:
            raise ValueError(
                f"every flow is trained on every batch, and the {who} did not run {', '.join(idle)}; call it with what "
                "runs all of its flows, or distil the part of it that is run."
            )


@contextmanager
def _grads_kept(model: nn.Module) -> Iterator[None]:
    """Restore the gradients that the parameters hold when the context ends, after an error too."""
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad


def _parameters(flows: dict[str, ODEBlock], theirs: dict[str, ODEBlock]) -> list[nn.Parameter]:
    parameters = dict.fromkeys(p for block in flows.values() for p in block.parameters())
    shared = [p for block in theirs.values() for p in block.parameters() if p in parameters]
    if list(flows) != list(theirs) or shared:
        raise ValueError(
            f"the flows of the model ({', '.join(flows)}) are trained to be those of the teacher "
            f"({', '.join(theirs)}), another network; take a copy of the model from before its projection."
        )
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ValueError("no parameter of a flow is to be trained: all are frozen; set requires_grad of some.")
    return trained


def _relative(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)


@contextmanager
def _outputs(flows: dict[str, ODEBlock]) -> Iterator[dict[str, Tensor]]:
    """The last output of each flow, by name, while the context lasts."""
    last: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, block in flows.items():
            hooks.enter_context(hooked(block, lambda _, __, out, name=name: last.__setitem__(name, out)))
        yield last
