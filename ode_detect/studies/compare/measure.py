"""What costs time and memory: the networks side by side, in turns, in this process."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ode_detect.engine.build import autocast
from ode_detect.engine.run import Run
from ode_detect.engine.stream import build_stream
from ode_detect.ode import record_solves
from ode_detect.ode.memory import bytes_kept
from ode_detect.ode.tally import now
from ode_detect.report.results import Comparison, Row
from ode_detect.studies.process_memory import growth, keep_freed_memory
from ode_detect.studies.timing import Case, Ratio, Side, measure

logger = logging.getLogger("ode_detect.studies")

# Of a test set, at most so many pictures are timed; so many at once give the throughput.
PICTURES, BATCH = 20, 8
# The memory of a training step is measured so often; the smallest counts, since what others do can only add.
STEPS = 3
_MIB = 2**20


@dataclass(frozen=True)
class Loaded:
    """A network with its trained weights.

    Attributes:
        name: of the network.
        role: one of `ode_detect.report.rows.ROLES`.
        run: for its data.
        model: on its device.
    """

    name: str
    role: str
    run: Run
    model: nn.Module

    def pictures(self) -> list[Any]:
        """The first test pictures, as the model takes them."""
        loader = self.run.task.test_loader(self.run.cfg, self.run.cfg.DATASETS.TEST[0])
        return list(itertools.islice(itertools.chain.from_iterable(loader), PICTURES))


def sizes(model: nn.Module) -> dict[str, float]:
    """Parameters of a model, and of its backbone without the pyramid on top of it, if it has one."""
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    backbone = getattr(model, "backbone", None)
    backbone = getattr(backbone, "bottom_up", backbone)
    if isinstance(backbone, nn.Module):
        figures["backbone_parameters"] = sum(p.numel() for p in backbone.parameters())
    return figures


class TrainingStep:
    """Forward and backward on the first batch of a network's training, by a copy: the network stays as it is.

    Args:
        network: with its training data in place.

    Raises:
        ValueError: the training data is not there (the task's own kind of error).
    """

    def __init__(self, network: Loaded) -> None:
        run = network.run
        run.task.require(list(run.cfg.DATASETS.TRAIN))
        dicts, mapper = run.task.train_data(run.cfg)
        # The same pictures for all networks, whatever their seeds.
        self._batch = next(iter(build_stream(dicts, mapper, batch=run.cfg.SOLVER.IMS_PER_BATCH, seed=0, workers=0)))
        self._cfg = run.cfg
        self.model = copy.deepcopy(network.model).train()

    @property
    def given(self) -> list[Tensor]:
        """The tensors of the batch."""
        return [value for example in self._batch for value in example.values() if isinstance(value, Tensor)]

    def forward(self) -> Tensor:
        """The sum of the losses, the same at each call."""
        with EventStorage(0), torch.random.fork_rng(), autocast(self._cfg):
            torch.manual_seed(0)  # of the boxes that are sampled
            losses: dict[str, Tensor] = self.model(self._batch)
            return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()

    def __call__(self) -> None:
        """Compute the gradients."""
        self.model.zero_grad(set_to_none=True)
        self.forward().backward()


def training_costs(step: TrainingStep) -> dict[str, float]:
    """What one training step keeps, needs and evaluates.

    Returns:
        ``kept_mib``: what the forward pass keeps for the backward pass. ``train_memory_mib``: by how much the memory in
        use grows at most, gradients included, weights and state of the optimizer not; left out where the system does
        not say. ``backward_evaluations`` of the fields.
    """
    with record_solves(step.model, measure=False) as record:
        step()
    figures = {"backward_evaluations": float(record.total.backward_evaluations)}
    kept = bytes_kept(step.forward, without=[*step.model.parameters(), *step.model.buffers(), *step.given])
    figures["kept_mib"] = kept / _MIB
    peaks = [peak for _ in range(STEPS) if (peak := _peak(step)) is not None]
    step.model.zero_grad(set_to_none=True)
    if len(peaks) == STEPS:
        figures["train_memory_mib"] = min(peaks) / _MIB
    return figures


def time_networks(
    networks: Sequence[Loaded], steps: Mapping[str, TrainingStep], others: Mapping[str, str], *, seconds: float
) -> tuple[list[Row], list[Comparison]]:
    """Time inference of one picture and of a batch, and a training step, the networks in turns on the same pictures.

    Args:
        networks: two or more; all on one device.
        steps: network -> its training step, if it has one.
        others: network -> the one that it is compared with.
        seconds: about how long the rounds of each of the three take.

    Returns:
        Rows named ``CASE: NETWORK`` with ``latency_ms`` and its quartiles, and for a batch ``pictures_per_second``;
        comparisons of each network with its other. No training steps unless all networks have one.
    """
    keep_freed_memory()
    device = next(networks[0].model.parameters()).device
    pictures = {network.name: network.pictures() for network in networks}
    count = min(BATCH, len(next(iter(pictures.values()))))

    def inference(size: int) -> dict[str, Callable[[], object]]:
        return {n.name: partial(_infer, n.model.eval(), _batches(pictures[n.name], size)) for n in networks}

    cases: dict[str, Mapping[str, Callable[[], object]]] = {ONE: inference(1), f"{MANY} of {count}": inference(count)}
    if len(steps) == len(networks):
        cases[STEP] = steps
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for name, runs in cases.items():
        sides = {n.name: Side(n.role, runs[n.name]) for n in networks}
        ratios = [Ratio(mine, other) for mine, other in others.items()]
        found, compared = measure(Case(name, sides, ratios), section=name, seconds=seconds, clock=partial(now, device))
        if name.startswith(MANY):
            found = [_with_throughput(row, count) for row in found]
        rows += found
        comparisons += compared
    return rows, comparisons


def costs_of(
    loaded: Sequence[Loaded],
) -> tuple[dict[str, TrainingStep], dict[str, dict[str, float]], dict[tuple[str, str], str]]:
    """A training step of each network; what is measured of each by itself; why something could not be."""
    steps: dict[str, TrainingStep] = {}
    costs: dict[str, dict[str, float]] = {}
    reasons = {}
    for network in loaded:
        logger.info("measuring a training step of %s", network.name)
        costs[network.name] = sizes(network.model)
        try:
            steps[network.name] = TrainingStep(network)
            costs[network.name] |= training_costs(steps[network.name])
        except ValueError as error:
            steps.pop(network.name, None)
            for quantity in ("backward_evaluations", "kept_mib", "train_memory_mib", "train_step_ms"):
                reasons[network.name, quantity] = f"no training step could be measured: {str(error).splitlines()[0]}"
        if "train_memory_mib" not in costs[network.name]:
            reasons.setdefault((network.name, "train_memory_mib"), "this system does not tell the memory of a process")
    return steps, costs, reasons


def with_times(costs: Mapping[str, dict[str, float]], times: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Costs with latency, throughput and the time of a training step."""
    found = {name: dict(figures) for name, figures in costs.items()}
    for row in times:
        if row.case == ONE:
            found[row.side]["latency_ms"] = row.cost["latency_ms"]
        elif row.case == STEP:
            found[row.side]["train_step_ms"] = row.cost["latency_ms"]
        elif "pictures_per_second" in row.cost:
            found[row.side]["pictures_per_second"] = row.cost["pictures_per_second"]
    return found


def ratios_of(comparisons: Iterable[Comparison]) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """(network, other, cost) -> ratio and quartiles; the throughput is the inverse of the time of a batch."""
    found = {}
    for c in comparisons:
        ours, other = c.sides
        if c.case in (ONE, STEP):
            found[ours, other, "latency_ms" if c.case == ONE else "train_step_ms"] = (c.ratio, c.low, c.high)
        else:
            found[ours, other, "pictures_per_second"] = (1 / c.ratio, 1 / c.high, 1 / c.low)
    return found


# The cases of `time_networks`.
ONE, MANY, STEP = "one picture", "a batch", "a training step"


def _peak(step: TrainingStep) -> int | None:
    """Bytes by which the memory in use grows at most in one step."""
    step.model.zero_grad(set_to_none=True)
    if next(step.model.parameters()).device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    found = growth(step)
    return found.peak if found else None


def _batches(pictures: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Batches without end, the same in each network that has the same pictures."""
    return itertools.cycle([list(pictures[i : i + size]) for i in range(0, len(pictures) - size + 1, size)])


def _infer(model: nn.Module, batches: Iterator[list[Any]]) -> object:
    with torch.no_grad():
        return model(next(batches))


def _with_throughput(row: Row, size: int) -> Row:
    rate = 1000 * size / row.cost["latency_ms"]
    return replace(row, cost={**row.cost, "pictures_per_second": rate})
