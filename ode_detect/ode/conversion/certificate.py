"""The certificate of a conversion: which blocks became which flow, and by how much the two networks differ."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.difference import difference
from ode_detect.ode.tables import table

_SEED = 0


@dataclass(frozen=True)
class ConvertedRun:
    """A run of blocks that became one flow.

    Attributes:
        flow: name of the flow in the converted network.
        blocks: names of the blocks in the original, in their order.
        pieces: number of pieces of the flow's weights.
        parameters: number of parameters in it.
        projection: what is done after each step, "relu" or "none".
    """

    flow: str
    blocks: tuple[str, ...]
    pieces: int
    parameters: int
    projection: str


@dataclass(frozen=True)
class KeptBlock:
    """A block that stayed what it was.

    Attributes:
        name: its name in the network.
        kind: its class.
        reason: why it is no step of a flow.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Differences:
    """The largest absolute differences between two networks; infinity where one has a value and the other has none.

    Attributes:
        evaluation: of outputs, and of the states after each flow, in evaluation mode.
        training: the same in training mode.
        gradients: of the gradients of parameters and input, in training mode.
        buffers: of the buffers after that training step (running statistics of BatchNorm).
    """

    evaluation: float = 0.0
    training: float = 0.0
    gradients: float = 0.0
    buffers: float = 0.0

    @property
    def largest(self) -> float:
        """The largest of them."""
        return max(dataclasses.astuple(self))

    def __or__(self, other: Differences) -> Differences:
        """The larger of each."""
        return Differences(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))


@dataclass(frozen=True)
class Certificate:
    """The certificate of a conversion; ``str()`` is a table.

    Attributes:
        runs: the runs of blocks that became flows.
        kept: the residual blocks that did not, with the reason.
        parameters_before: number of parameters of the original.
        parameters_after: number of parameters of the converted network.
        differences: between the two.
        measured_on: what the differences were measured on.
    """

    runs: tuple[ConvertedRun, ...]
    kept: tuple[KeptBlock, ...]
    parameters_before: int
    parameters_after: int
    differences: Differences
    measured_on: str

    @property
    def lossless(self) -> bool:
        """Whether no difference was found, not of one bit."""
        return self.differences.largest == 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def __str__(self) -> str:
        head = ("flow", "blocks", "pieces", "after each step", "parameters")
        rows = [
            (run.flow, _span(run.blocks), str(run.pieces), run.projection, f"{run.parameters:,}") for run in self.runs
        ]
        differences = [
            ("outputs, evaluation", self.differences.evaluation),
            ("outputs, training", self.differences.training),
            ("gradients", self.differences.gradients),
            ("buffers after a training step", self.differences.buffers),
        ]
        measured = ("largest absolute difference", ""), [(name, str(float(f"{d:.3g}"))) for name, d in differences]
        lines = [
            table(head, rows, left=(0, 1, 3)),
            "",
            f"parameters: {self.parameters_before:,} before, {self.parameters_after:,} after",
            "",
            table(*measured, left=(0, 1)),
            f"measured on {self.measured_on}",
        ]
        if self.kept:
            kept = [(block.name, block.kind, block.reason) for block in self.kept]
            lines += ["", table(("kept as it is", "class", "because"), kept, left=range(3))]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pairing:
    """Which names in a converted network stand for which in the original.

    Attributes:
        tensors: name of a parameter or buffer in the converted network -> its name in the original; names that are not
            listed are the same in both.
        states: name of a module in the converted network -> the one in the original that has the same output.
    """

    tensors: Mapping[str, str]
    states: Mapping[str, str]


class Observation:
    """One call of a copy of a network, and in training mode one backward pass, with fixed seeds.

    The loss is a random weighting of all outputs. The network and torch's random state are left as they are.

    Args:
        model: the network.
        example: what it is called with.
        watched: names of modules whose outputs are observed too.
        training: which mode.

    Attributes:
        training: which mode.
        outputs: the tensors of the output.
        states: the outputs of each watched module, by its name, in the order of its calls.
        gradients: by parameter, and of the example if it is a tensor; empty in evaluation mode.
        buffers: by name, after the call.

    Raises:
        Exception: whatever the network raises.
    """

    def __init__(self, model: nn.Module, example: Any, watched: Iterable[str], *, training: bool) -> None:
        model = copy.deepcopy(model).train(training)
        example = example.detach().clone() if isinstance(example, Tensor) else copy.deepcopy(example)
        model.zero_grad(set_to_none=True)
        if isinstance(example, Tensor) and example.is_floating_point():
            example.requires_grad_(training)
        self.states: dict[str, list[Tensor]] = {name: [] for name in watched}
        for name, seen in self.states.items():
            # A copy: what comes after may work in place.
            model.get_submodule(name).register_forward_hook(partial(_note, seen))
        devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(training):
            torch.manual_seed(_SEED)
            outputs = tensors_of(model(example))
            if training:
                _loss(outputs).backward()
        self.training = training
        self.outputs = [out.detach() for out in outputs]
        self.gradients = {name: p.grad for name, p in model.named_parameters()}
        if isinstance(example, Tensor):
            self.gradients["(input)"] = example.grad
        self.buffers: dict[str, Tensor | None] = dict(model.named_buffers())


def compare(original: Observation, converted: Observation, pairing: Pairing) -> Differences:
    """The differences between two networks in the mode in which they were observed; those of the other mode are 0.

    Args:
        original: of the one, with ``pairing.states.values()`` watched.
        converted: of the other in the same mode, with ``pairing.states.keys()`` watched.
        pairing: what stands for what.
    """
    outputs = max(_largest(original.outputs, converted.outputs), _between_states(original, converted, pairing))
    if not original.training:
        return Differences(evaluation=outputs)
    return Differences(
        training=outputs,
        gradients=_by_name(original.gradients, converted.gradients, pairing),
        buffers=_by_name(original.buffers, converted.buffers, pairing),
    )


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in an output, in order: in containers, dataclasses, and Detectron2's instances and boxes."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    if callable(getattr(value, "get_fields", None)):
        return tensors_of(value.get_fields())
    if dataclasses.is_dataclass(value):
        return [t for field in dataclasses.fields(value) for t in tensors_of(getattr(value, field.name))]
    return tensors_of(value.tensor) if isinstance(getattr(value, "tensor", None), Tensor) else []


def _loss(outputs: Sequence[Tensor]) -> Tensor:
    learnt = [out for out in outputs if out.requires_grad]
    if not learnt:
        raise ValueError("the network gave no output that depends on its weights")
    generator = torch.Generator().manual_seed(_SEED)
    weights = [torch.randn(out.shape, generator=generator, device="cpu").to(out) for out in learnt]
    return torch.stack([(out * weight).sum() for out, weight in zip(learnt, weights, strict=True)]).sum()


def _note(seen: list[Tensor], module: nn.Module, inputs: Any, out: Tensor) -> None:
    seen.append(out.detach().clone())


def _between_states(original: Observation, converted: Observation, pairing: Pairing) -> float:
    largest = 0.0
    for after, before in pairing.states.items():
        a, b = original.states[before], converted.states[after]
        # A block that stands in several places is called more often than a flow; a difference shows in the outputs.
        if len(a) == len(b) or not (a and b):
            largest = max(largest, _largest(a, b))
    return largest


def _by_name(original: dict[str, Tensor | None], converted: dict[str, Tensor | None], pairing: Pairing) -> float:
    renamed = {pairing.tensors.get(name, name): value for name, value in converted.items()}
    names = sorted({*original, *renamed})
    return _largest([original.get(n) for n in names], [renamed.get(n) for n in names])


def _largest(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """The largest absolute difference; infinite where only one has a tensor, a shape, a dtype or a number."""
    dtypes = ([None if tensor is None else tensor.dtype for tensor in tensors] for tensors in (a, b))
    return difference(a, b).largest if next(dtypes) == next(dtypes) else math.inf


def _span(blocks: Sequence[str]) -> str:
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1].rpartition('.')[2]}"
