"""Training for the dial: after each pass at the full steps a second one at drawn steps, which learns from the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ode_detect.ode.dial import SolverChange, chosen_solvers, solver_override
from ode_detect.ode.flows import flows_of
from ode_detect.ode.observation import Call, calls_seen
from ode_detect.ode.statistics import statistics_kept

from .config import tolerances

Features = dict[str, Tensor]


class SecondPass:
    """A pass of the same network with other solvers, pulled towards the features of the pass at the full steps.

    The features are what the backbone gives, so what lies behind the flows; those of the full steps are detached, and
    no second network is kept. BatchNorm normalises the second pass by its own batch, and its running statistics stay
    those of the full steps: `ode_detect.ode.statistics.estimate_statistics` makes those of another setting.

    Args:
        cfg: ``SOLVER.DIAL``.
        model: a Detectron2 meta-architecture with a ``backbone`` that gives a dict of feature maps.

    Raises:
        ValueError: no backbone, no flow, a flow behind the backbone that no loss would reach, or a solver that a flow
            cannot take.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        dial = cfg.SOLVER.DIAL
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"SOLVER.DIAL compares the features of a backbone, and {type(model).__name__} has no module of that "
                "name; give it one, or set SOLVER.DIAL.STEPS []."
            )
        if dial.WEIGHT < 0 or dial.TASK_WEIGHT < 0 or dial.WEIGHT + dial.TASK_WEIGHT == 0:
            raise ValueError(
                f"SOLVER.DIAL weighs its losses by numbers of 0 or more, not both 0, and WEIGHT is {dial.WEIGHT}, "
                f"TASK_WEIGHT {dial.TASK_WEIGHT}; 1 and 0 are usual."
            )
        outside = [name for name in flows_of(model) if not name.startswith("backbone.")]
        if outside and not dial.TASK_WEIGHT:
            raise ValueError(
                f"SOLVER.DIAL.WEIGHT compares what the backbone gives, and a flow behind it ({', '.join(outside)}) has "
                "no part in that; set SOLVER.DIAL.TASK_WEIGHT above 0, so that the task's losses train it too."
            )
        self._model, self._backbone = model, backbone
        self._weight, self._task_weight = dial.WEIGHT, dial.TASK_WEIGHT
        self._steps, self._methods = list(dial.STEPS), list(dial.METHODS)
        self._flows, self._tolerances = list(flows_of(model)), tolerances(cfg)
        self._calls: list[Call] = []
        for steps in self._steps:
            for method in self._methods or [None]:
                chosen_solvers(model, SolverChange(steps=steps, method=method, **self._tolerances))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Remember what the backbone is given and what it gives, while the first pass runs."""
        with calls_seen(self._backbone) as self._calls:
            yield

    def run(
        self,
        data: Any,
        backward: Callable[[Tensor], None],
        autocast: Callable[[], Any],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Draw solvers, run the second pass, and its backward pass.

        Args:
            data: the batch of the first pass.
            backward: adds the gradients of a loss. It is called while the drawn solvers are set, since a flow may be
                evaluated again in the backward pass.
            autocast: makes the context of the forward pass.
            generator: draws the solvers.

        Returns:
            ``loss_dial``, the squared distance to the features of the first pass in units of their square, and
            ``loss_dial_task``, the sum of the task's losses; each weighted, and only where its weight is not 0.
        """
        steps, methods = self._draw(generator)
        first, self._calls = self._calls, []
        drawn = solver_override(self._model, steps=steps, method=methods, **self._tolerances)
        with drawn, statistics_kept(self._model):
            with autocast():
                losses = self._losses(first, data)
            backward(torch.stack(list(losses.values())).sum())
        return {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, first: list[Call], data: Any) -> dict[str, Tensor]:
        second: list[Call] = []
        losses = {}
        if self._task_weight:
            # A storage of its own: the counts that heads log belong to the first pass. In the same iteration, since
            # a model draws its predictions in each one that VIS_PERIOD divides.
            with calls_seen(self._backbone) as second, EventStorage(get_event_storage().iter):
                losses["loss_dial_task"] = self._task_weight * sum(self._model(data).values())
        elif self._weight:
            second = [(inputs, self._backbone(*inputs)) for inputs, _ in first]
        if self._weight:
            pairs = zip(first, second, strict=True)
            losses["loss_dial"] = self._weight * _mean([distance(b, a) for (_, a), (_, b) in pairs])
        return losses

    def _draw(self, generator: torch.Generator | None) -> tuple[dict[str, int], dict[str, str]]:
        def one_of(values: list[Any]) -> Any:
            return values[int(torch.randint(len(values), (), generator=generator))]

        steps = {flow: one_of(self._steps) for flow in self._flows}
        return steps, {flow: one_of(self._methods) for flow in self._flows if self._methods}


def make_second_pass(cfg: CfgNode, model: nn.Module) -> SecondPass | None:
    """The second pass that ``SOLVER.DIAL`` asks for; None if it asks for none, or for a twin or an ablation.

    Raises:
        ValueError: methods without steps, and as `SecondPass`.
    """
    dial = cfg.SOLVER.DIAL
    if dial.METHODS and not dial.STEPS:
        raise ValueError(
            f"SOLVER.DIAL.METHODS {dial.METHODS} are drawn together with steps, and SOLVER.DIAL.STEPS is empty, which "
            "trains without a second pass; set STEPS, such as [1, 2, 4], or METHODS []."
        )
    # What an ODE network is compared with is trained by the same config, and has no steps.
    return SecondPass(cfg, model) if dial.STEPS and cfg.MODEL.ODE.ROLE == "ode" else None


def distance(features: Features, target: Features) -> Tensor:
    """The squared distance of feature maps in units of the target's square, averaged over the maps.

    Args:
        features: maps (N, C, H, W) by name; gradients flow into these only.
        target: maps of the same names and shapes.
    """
    parts = []
    for name, wanted in target.items():
        wanted = wanted.detach().float()
        square = wanted.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
        parts.append((features[name].float() - wanted).square().mean() / square)
    return _mean(parts)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()
