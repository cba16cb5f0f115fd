"""Lossless conversion: runs of residual blocks into flows, and back."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.gradients import Gradient
from ode_detect.ode.pieces import PiecewiseConstant
from ode_detect.ode.solvers import FixedStep

from .certificate import Certificate, ConvertedRun, Differences, KeptBlock, Observation, Pairing, compare, tensors_of
from .residual import ConversionError, ResidualBranch, looks_residual, projection_of, random_state


class ConvertedFlow(ODEBlock):
    """The flow that stands in place of a run of residual blocks.

    Args:
        blocks: the residual blocks, in order.
        keys: their keys in the parent.
        projection: what they do after their sum, "relu" or "none".
        gradient: as for `ODEBlock`.
        name: as for `ODEBlock`.

    Attributes:
        keys: as given; for the way back.
    """

    def __init__(
        self, *, blocks: Sequence[nn.Module], keys: Sequence[str], projection: str, gradient: str | Gradient, name: str
    ) -> None:
        field = PiecewiseConstant([ResidualBranch(block) for block in blocks])
        # A network with BatchNorm stays one: at the full steps its statistics are those of the blocks.
        super().__init__(
            field=field,
            solver=FixedStep("euler", steps=len(blocks), projection=projection),
            gradient=gradient,
            name=name,
            allow_stateful_field=True,
        )
        self.keys = tuple(keys)
        self.training = field.training = field.pieces.training = blocks[0].training

    def freeze(self) -> ConvertedFlow:
        """Make the weights constant, as Detectron2's backbones ask of their blocks."""
        for branch in [module for module in self.field.modules() if isinstance(module, ResidualBranch)]:
            branch.freeze()
        # The knots of hat functions, and pieces of other kinds, have no way of their own.
        self.field.requires_grad_(False)
        return self


def to_ode(
    model: nn.Module, *, example: Any = None, gradient: str | Gradient = "backprop"
) -> tuple[nn.Module, Certificate]:
    """Make each run of shape-keeping residual blocks of a network a flow, without a change of one bit.

    In every ``nn.Sequential``, neighbouring blocks h + f(h), or relu(h + f(h)), become one `ODEBlock` whose weights are
    piecewise constant in time, one piece for each block, solved by one Euler step for each piece, projected by relu
    where the blocks end in one. The blocks are kept whole inside, so `to_resnet` gives them back. Blocks of Detectron2,
    torchvision, timm (basic, bottleneck, inverted) and CIFAR ResNets are known by how they are built, and each is
    tried before it is taken.

    A network with BatchNorm keeps it. Its statistics are those of the states at the full steps: after a change of
    `ODEBlock.solver` re-estimate them (`estimate_statistics`). Under autocast, and in half precision, a flow keeps its
    state in float32, which the blocks do not: there the two differ by rounding.

    Args:
        model: the network, on any device; it is not changed.
        example: what the network is called with to compare the two. None: a random batch (2, C, 64, 64) if the network
            takes one; if not, each flow is compared with its blocks on a random state. Detectron2's detectors take
            ``[{"image": image}]``; for their training mode give "instances" too and call within an EventStorage.
        gradient: as for `ODEBlock`; of those, "backprop" and "checkpoint" give the gradients of the blocks. Another one
            can be set on the flows afterwards.

    Returns:
        The network with flows, and the certificate. On the CPU and in float32 its differences are all 0.0.

    Raises:
        ConversionError: no block can be converted, or the two networks differ; it says where and why.
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_ode converts a torch module, not {type(model).__name__}; give the network itself.")
    with torch.random.fork_rng(devices=[]):
        ode_model, runs, kept = replace_runs(model, gradient)
    differences, measured_on = _measure(model, ode_model, runs, example, gradient)
    certificate = Certificate(
        runs=runs,
        kept=kept,
        parameters_before=_size(model),
        parameters_after=_size(ode_model),
        differences=differences,
        measured_on=measured_on,
    )
    if not certificate.lossless and _must_agree(model):
        raise ConversionError(
            f"the converted network must give the bits of the original, and differs by {differences} on {measured_on}. "
            "Convert with gradient='backprop' (another can be set on the flows afterwards); if it is that, something "
            "in the network may reach for a block that is part of a flow now."
        )
    return ode_model, certificate


def replace_runs(
    model: nn.Module, gradient: str | Gradient
) -> tuple[nn.Module, tuple[ConvertedRun, ...], tuple[KeptBlock, ...]]:
    """Convert as `to_ode` does, without comparing the networks as a whole.

    Returns:
        The network with flows, the runs that became flows, and the blocks that did not.

    Raises:
        ConversionError: no block can be converted.
    """
    ode_model = copy.deepcopy(model)
    conversion = _Conversion(gradient)
    conversion.within(ode_model, "", conversion.kept)
    if not conversion.runs:
        kept = conversion.kept
        reasons = "\n".join(f"  {block.name} ({block.kind}): {block.reason}" for block in kept)
        raise ConversionError(
            f"no block of this {type(model).__name__} can be converted. "
            + (f"Its residual blocks are\n{reasons}" if kept else "It has no residual blocks; a ResNet has.")
        )
    return ode_model, tuple(conversion.runs), tuple(conversion.kept)


def to_resnet(ode_model: nn.Module) -> nn.Module:
    """Return the discrete network whose blocks the flows of `to_ode` hold: the inverse of `to_ode`.

    The names and the order of its state dict are the original's, and its bits too, but for what the flows learnt since.
    Where a flow has got another number of pieces of one unit of time each, the layers of its sequence are counted
    from 0. The solvers are not looked at: what comes back takes each piece in one full Euler step.

    Args:
        ode_model: a network with flows; it is not changed.

    Returns:
        The network with blocks in place of flows.

    Raises:
        ConversionError: there is no flow, or one that does not consist of residual blocks which last one unit of time
            each (as after `split_pieces` or `project_pieces`, which keep the time); its name is in the message.
    """
    model = copy.deepcopy(ode_model)
    if isinstance(model, ODEBlock):
        return nn.Sequential(*_blocks_of(model, model.name))
    parents = [(p, path) for path, p in model.named_modules() if any(isinstance(m, ODEBlock) for m in p.children())]
    if not parents:
        raise ConversionError(f"this {type(model).__name__} has no flow; give a network that to_ode returned.")
    for parent, path in parents:
        if isinstance(parent, nn.Sequential):
            _put_back(parent, path)
            continue
        for key, child in list(parent._modules.items()):
            if isinstance(child, ODEBlock):
                blocks = _blocks_of(child, _join(path, key))
                setattr(parent, key, blocks[0] if len(blocks) == 1 else nn.Sequential(*blocks))
    return model


def pairing_of(runs: Sequence[ConvertedRun], names: Sequence[str]) -> Pairing:
    """Return which names in a converted network stand for which in the original.

    Args:
        runs: the runs that became flows.
        names: tensor names of the converted network.
    """
    tensors = {}
    for name in names:
        for run in runs:
            inside = re.match(r"\.field\.pieces\.(\d+)\.block\.", name.removeprefix(run.flow))
            if name.startswith(run.flow) and inside:
                tensors[name] = f"{run.blocks[int(inside[1])]}.{name[len(run.flow) + inside.end() :]}"
    return Pairing(tensors, {run.flow: run.blocks[-1] for run in runs})


class _Conversion:
    """Goes through a network and replaces what can be replaced."""

    def __init__(self, gradient: str | Gradient) -> None:
        self.gradient = gradient
        self.runs: list[ConvertedRun] = []
        self.kept: list[KeptBlock] = []
        self._seen: set[nn.Module] = set()

    def within(self, parent: nn.Module, path: str, kept: list[KeptBlock]) -> None:
        """Convert the children of a module, and theirs."""
        if parent in self._seen or isinstance(parent, ODEBlock):
            return
        self._seen.add(parent)
        verdicts = {}
        # Not named_children, which leaves out what occurs a second time.
        for key, child in list(parent._modules.items()):
            if child is None:
                continue
            verdict = verdicts[key] = _verdict(parent, key, child, path)
            if isinstance(verdict, KeptBlock):
                kept.append(verdict)
            if not isinstance(verdict, str):
                # What is inside a block that was kept is not listed again.
                self.within(child, _join(path, key), [] if isinstance(verdict, KeptBlock) else kept)
        self.runs += [_replace(parent, path, keys, end, self.gradient) for keys, end in _runs_of(verdicts)]


def _verdict(parent: nn.Module, key: str, child: nn.Module, path: str) -> str | KeptBlock | None:
    """The projection of a block that can be a step; or why it cannot; or None for what is no residual block."""
    if isinstance(child, ODEBlock) or not looks_residual(child):
        return None
    try:
        if type(parent).forward is not nn.Sequential.forward:
            raise ConversionError(f"it is called by {type(parent).__name__}, not in a row by an nn.Sequential")
        return projection_of(child)
    except ConversionError as error:
        return KeptBlock(_join(path, key), type(child).__name__, str(error))


def _runs_of(verdicts: dict[str, str | KeptBlock | None]) -> list[tuple[list[str], str]]:
    """Neighbours with the same projection, as (keys, projection)."""
    runs: list[tuple[list[str], str]] = []
    before: object = None
    for key, verdict in verdicts.items():
        if isinstance(verdict, str):
            if verdict == before:
                runs[-1][0].append(key)
            else:
                runs.append(([key], verdict))
        before = verdict
    return runs


def _replace(parent: nn.Module, path: str, keys: list[str], projection: str, gradient: str | Gradient) -> ConvertedRun:
    # The Sequential itself stays, since others may hold it too, as Detectron2's ResNet does.
    blocks = [parent.get_submodule(key) for key in keys]
    name = _join(path, keys[0])
    flow = ConvertedFlow(blocks=blocks, keys=keys, projection=projection, gradient=gradient, name=name)
    parent._modules[keys[0]] = flow
    for key in keys[1:]:
        del parent._modules[key]
    return ConvertedRun(name, tuple(_join(path, key) for key in keys), len(keys), _size(flow), projection)


def _put_back(parent: nn.Sequential, path: str) -> None:
    parts: list[tuple[list[str], list[nn.Module]]] = []
    # Not named_children, which leaves out what occurs a second time.
    for key, child in parent._modules.items():
        assert child is not None, "an nn.Sequential holds modules"
        if not isinstance(child, ODEBlock):
            parts.append(([key], [child]))
            continue
        blocks = _blocks_of(child, _join(path, key))
        keys = list(child.keys) if isinstance(child, ConvertedFlow) and len(child.keys) == len(blocks) else []
        parts.append((keys, blocks))
    named = all(keys for keys, _ in parts)
    modules = [module for _, group in parts for module in group]
    # A run that grew or shrank since has no names of its own: then all are counted from 0.
    names = [key for keys, _ in parts for key in keys] if named else [str(i) for i in range(len(modules))]
    parent._modules.clear()
    for name, module in zip(names, modules, strict=True):
        parent.add_module(name, module)


def _branches(flow: ODEBlock) -> list[ResidualBranch] | None:
    pieces = list(flow.field.pieces) if isinstance(flow.field, PiecewiseConstant) else []
    branches = [piece for piece in pieces if isinstance(piece, ResidualBranch)]
    return branches if pieces and len(branches) == len(pieces) else None


def _blocks_of(flow: ODEBlock, name: str) -> list[nn.Module]:
    branches = _branches(flow)
    if branches is None:
        raise ConversionError(
            f"the flow {name!r} is a {type(flow.field).__name__}, and only a PiecewiseConstant of ResidualBranch, as "
            "to_ode makes it, is a run of blocks. tools/convert.py --reverse takes checkpoints of configs."
        )
    if flow.duration != len(branches):
        raise ConversionError(
            f"the flow {name!r} lasts {flow.duration:g} units of time with {len(branches)} pieces, and a residual "
            "block is a piece that lasts one unit. Give it as many pieces as units of time."
        )
    return [branch.block for branch in branches]


def _measure(
    model: nn.Module, ode_model: nn.Module, runs: Sequence[ConvertedRun], example: Any, gradient: object
) -> tuple[Differences, str]:
    """The differences, and on what they were measured."""
    pairing = pairing_of(runs, [name for name, _ in [*ode_model.named_parameters(), *ode_model.named_buffers()]])
    what, given = _described(example), example is not None
    if not given:
        example, what = _random_batch(model)
    differences = Differences()
    modes_of: dict[str, list[str]] = {}
    for training in (False, True):
        mode = "training" if training else "evaluation"
        try:
            original = Observation(model, example, pairing.states.values(), training=training)
        except Exception as error:  # a network may raise anything
            if given and not training:
                raise ConversionError(
                    f"the network itself cannot be evaluated on {what} ({type(error).__name__}: {error}); give another."
                ) from error
            differences |= _compare_flows(model, ode_model, runs, training)
            modes_of.setdefault(
                f"each flow alone on a random state, since the network does not take {what}", []
            ).append(mode)
            continue
        try:
            converted = Observation(ode_model, example, pairing.states.keys(), training=training)
        except Exception as error:
            raise ConversionError(
                f"the converted network fails in {mode} on {what}, which the original takes ({type(error).__name__}: "
                f"{error}). Something in the network may reach for a block that is part of a flow now, or gradient="
                f"{gradient!r} may not suit it; 'backprop' suits all."
            ) from error
        differences |= compare(original, converted, pairing)
        modes_of.setdefault(what, []).append(mode)
    return differences, "; ".join(f"{where} ({' and '.join(modes)})" for where, modes in modes_of.items())


def _compare_flows(model: nn.Module, ode_model: nn.Module, runs: Sequence[ConvertedRun], training: bool) -> Differences:
    differences = Differences()
    for run in runs:
        blocks = nn.Sequential(*map(model.get_submodule, run.blocks))
        flow = ode_model.get_submodule(run.flow)
        tensor = next(blocks.parameters(), torch.zeros(()))
        state = random_state(blocks, torch.Generator().manual_seed(0)).to(tensor)
        paired = {f"field.pieces.{n.replace('.', '.block.', 1)}": n for n in blocks.state_dict()}
        original, converted = (Observation(net, state, [], training=training) for net in (blocks, flow))
        differences |= compare(original, converted, Pairing(paired, {}))
    return differences


def _random_batch(model: nn.Module) -> tuple[Tensor | None, str]:
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        return None, "pictures"
    shape = (2, conv.in_channels, 64, 64)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu", dtype=torch.float32)
    return batch.to(conv.weight), f"a random batch {shape}"


def _described(example: Any) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_of(example)]
    return f"the given example ({', '.join(shapes[:3])}{', ...' if len(shapes) > 3 else ''})"


def _must_agree(model: nn.Module) -> bool:
    """Whether the same arithmetic gives the same bits: in float32 on the CPU."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
