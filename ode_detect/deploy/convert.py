"""Conversion of checkpoints: weights of a known network in, an ODE checkpoint and its certificate out, and back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode
from torch import Tensor, nn

import ode_detect.engine.tasks  # noqa: F401  registers what configs name
from ode_detect.backbones import build_cifar_resnet, discrete_names
from ode_detect.engine.build import build_network
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.weights import (
    CheckpointError,
    categories_in,
    read_content,
    read_weights,
    require_library,
    tensors_of,
)
from ode_detect.media.files import whole, write_text
from ode_detect.ode import Certificate, ConversionError, ODEBlock, PiecewiseConstant, to_ode, to_resnet
from ode_detect.ode.conversion.certificate import ConvertedRun, Differences, Observation, Pairing, compare
from ode_detect.ode.conversion.convert import replace_runs
from ode_detect.ode.names import check_name

_SIDE = 128
_ODE_MODEL = "ode_model.pth"


def convert_weights(path: str | Path, architecture: str, folder: str | Path) -> Certificate:
    """Convert the weights of a network of torchvision, timm or CIFAR.

    Args:
        path: a file as `read_weights` takes it; its last layer says the number of classes.
        architecture: "torchvision:NAME", "timm:NAME" or "cifar:NAME".
        folder: gets ode_model.pth (which `load_ode` reads), certificate.json and certificate.txt.

    Returns:
        The certificate.

    Raises:
        CheckpointError: the file cannot be read or is of another network.
        ConversionError: the network cannot be converted.
        UnknownNameError: no such network.
    """
    file = _output(folder, path, _ODE_MODEL)
    weights = read_weights(path)
    classes = _count_classes(architecture, weights)
    model = _build(architecture, classes)
    _fill(model, weights, f"{path} does not fit {architecture}")
    ode_model, certificate = to_ode(model.eval())
    content = {
        "model": ode_model.state_dict(),
        "architecture": architecture,
        "classes": classes,
        # Old files lack counters that the network has: the way back leaves them out too.
        "names": list(weights),
        "flows": certificate.to_dict()["runs"],
    }
    _write(file, content, certificate)
    return certificate


def load_ode(path: str | Path) -> nn.Module:
    """Build the network of an ODE checkpoint that `convert_weights` wrote, with its weights, in evaluation mode.

    Raises:
        CheckpointError: the file cannot be read, or is not such a checkpoint.
    """
    return _load_ode(path)[0]


def restore_weights(path: str | Path, folder: str | Path) -> Path:
    """Write the weights of an ODE checkpoint under the names of the discrete network: the inverse of `convert_weights`.

    Args:
        path: a checkpoint that `convert_weights` wrote; its weights may have been trained since.
        folder: gets model.pth, a plain state dict.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the file cannot be read, is not such a checkpoint, or is the one that would be written.
    """
    file = _output(folder, path)
    ode_model, names = _load_ode(path)
    state = to_resnet(ode_model).state_dict()
    with whole(file) as partial:
        torch.save({name: state[name] for name in names}, partial)
    return file


def convert_for_config(path: str, cfg: CfgNode, folder: str | Path) -> Certificate:
    """Convert the weights of a Detectron2 ResNet, or of a detector with one, for the ODE network of a config.

    The network and its twin (``MODEL.ODE.ROLE``) are both filled from the file and compared: in evaluation mode as a
    whole on a random picture, in training mode the backbones, the flows taking one Euler step for each piece. What is
    not in the file, such as the heads of a detector in a file of a backbone, is the same random start in both.

    Args:
        path: a file or address as ``MODEL.WEIGHTS`` takes it.
        cfg: the config of the ODE network.
        folder: gets ode_model.pth, for ``MODEL.WEIGHTS``, with what is in the file (the names of its classes too);
            certificate.json; certificate.txt.

    Returns:
        The certificate.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
        ConversionError: the flows of the config do not hold the blocks of its twin.
    """
    file = _output(folder, path, _ODE_MODEL)
    twin, ode_model = _network(cfg, "twin"), _network(cfg, "ode")
    partly = cfg.MODEL.ALLOW_PARTIAL_WEIGHTS
    Checkpointer(twin, allow_partial=partly).load_weights(path, whole=False)
    coverage = Checkpointer(ode_model, allow_partial=partly).load_weights(path, whole=False)
    if coverage is None:
        raise CheckpointError("no weights were named; --weights names a file.")
    state, discrete = ode_model.state_dict(), discrete_names(list(ode_model.state_dict()))
    if not discrete:
        raise ConversionError(
            "a conversion makes flows, and the network of the config has none: MODEL.ODE.STAGES "
            f"{cfg.MODEL.ODE.STAGES}, MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}. Name stages, and a backbone with "
            "flows (build_ode_resnet_fpn_backbone)."
        )
    discrete_state = twin.state_dict()
    for name, tensor in state.items():
        # What has no counterpart in the twin, such as a normalisation of another kind, fails the comparison below.
        if name not in coverage.loaded and discrete.get(name, name) in discrete_state:
            tensor.copy_(discrete_state[discrete.get(name, name)])
    certificate = _certify_twins(twin, ode_model, discrete, channels=len(cfg.MODEL.PIXEL_MEAN))
    if not certificate.lossless:
        raise ConversionError(
            f"the flows of the config do not compute what its twin does: {certificate.differences}. Leave "
            "MODEL.ODE.FIELD auto, NORM '' and ACTIVATION relu, which are those of the residual blocks."
        )
    content = {
        "model": {name: tensor for name, tensor in state.items() if name in coverage.loaded},
        "flows": certificate.to_dict()["runs"],
        "categories": list(coverage.categories),
    }
    _write(file, content, certificate)
    return certificate


def restore_for_config(path: str | Path, cfg: CfgNode, folder: str | Path) -> Path:
    """Write the weights of the ODE network of a config under the names of its twin, which are Detectron2's.

    Args:
        path: a checkpoint of the ODE network: of `convert_for_config`, or of a training run.
        cfg: its config.
        folder: gets model.pth, with the names of the classes if the checkpoint has them.

    Returns:
        The file that was written.

    Raises:
        CheckpointError: the file cannot be read, does not fit the twin, or is the one that would be written.
        ConversionError: the flows of the config are not runs of blocks.
    """
    file = _output(folder, path)
    content = read_content(Path(path))
    weights = tensors_of(content, path)
    categories = list(categories_in(content, str(path))) if isinstance(content, Mapping) else []
    names = discrete_names(list(weights))
    if not names:
        raise CheckpointError(f"{path} holds no flow of an ODE-ResNet, so there is nothing to rename in it.")
    twin = _network(cfg, "twin")
    checkpointer = Checkpointer(twin, allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS)
    with whole(file) as partial:
        renamed = {names.get(n, n): value for n, value in weights.items()}
        torch.save({"model": renamed, "categories": categories}, partial)
        try:
            checkpointer.load_weights(str(partial), whole=False)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(partial), str(path))) from error
    return file


def _output(folder: str | Path, path: str | Path, name: str = "model.pth") -> Path:
    """The file to write, which is not the one that is read."""
    file = Path(folder) / name
    if file.resolve() == Path(path).resolve():
        raise CheckpointError(f"{file} is what is read, and would be overwritten; give another --output.")
    return file


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    check_name(name, torchvision.models.list_models(module=torchvision.models), "network of torchvision")
    return torchvision.models.get_model(name, weights=None, **arguments)


def _timm(name: str, **arguments: Any) -> nn.Module:
    timm = require_library("timm", "timm")
    check_name(name.partition(".")[0], timm.list_models(), "network of timm")
    return timm.create_model(name, pretrained=False, **arguments)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "cifar": build_cifar_resnet,
}


def _build(architecture: str, classes: int | None) -> nn.Module:
    library, _, name = architecture.partition(":")
    check_name(library, ARCHITECTURES, "library of networks (LIBRARY:NAME, such as torchvision:resnet50)")
    return ARCHITECTURES[library](name, **({} if classes is None else {"num_classes": classes}))


def _count_classes(architecture: str, weights: Mapping[str, Tensor]) -> int | None:
    """The outputs of the last linear layer; None where that is not in the weights."""
    with torch.device("meta"):
        model = _build(architecture, None)
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    last = weights.get(f"{linear[-1]}.weight") if linear else None
    return None if last is None else int(last.shape[0])


def _fill(model: nn.Module, weights: Mapping[str, Tensor], misfit: str) -> None:
    own = model.state_dict()
    lines = [f"{n}: not in the file" for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    lines += [f"{n}: in the file, and the network has no place for it" for n in weights if n not in own]
    lines += [
        f"{n}: {tuple(weights[n].shape)} in the file, {tuple(own[n].shape)} in the network"
        for n in own
        if n in weights and weights[n].shape != own[n].shape
    ]
    if lines:
        listed = "\n  ".join([*lines[:8], *(["..."] if len(lines) > 8 else [])])
        raise CheckpointError(f"{misfit} in {len(lines)} tensors:\n  {listed}\nName the network that the file is of.")
    model.load_state_dict(weights, strict=False)


def _load_ode(path: str | Path) -> tuple[nn.Module, list[str]]:
    content = read_content(Path(path))
    kinds = {"model": Mapping, "architecture": str, "classes": int | None, "names": list}
    if not isinstance(content, Mapping) or not all(
        key in content and isinstance(content[key], kind) for key, kind in kinds.items()
    ):
        raise CheckpointError(
            f"{path} is not an ODE checkpoint of tools/convert.py --model, which says what network it is of. "
            "The checkpoint of a config needs --config-file."
        )
    ode_model, _, _ = replace_runs(_build(content["architecture"], content["classes"]), "backprop")
    _fill(ode_model, content["model"], f"{path} does not fit the flows of {content['architecture']}")
    return ode_model.eval(), content["names"]


def _network(cfg: CfgNode, role: str) -> nn.Module:
    ode = cfg.MODEL.ODE
    if ode.PIECES != "piecewise" or ode.NUM_PIECES or ode.DURATION or ode.STACK != 1:
        raise ConversionError(
            f"the flows of the config have MODEL.ODE.PIECES {ode.PIECES}, NUM_PIECES {ode.NUM_PIECES}, DURATION "
            f"{ode.DURATION}, STACK {ode.STACK}, and only one piece for each block is a run of blocks: PIECES "
            "piecewise, NUM_PIECES and DURATION 0, STACK 1."
        )
    cfg = copy.deepcopy(cfg)
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    cfg.MODEL.ODE.ROLE, cfg.MODEL.ODE.GRADIENT = role, "backprop"
    cfg.MODEL.ODE.METHOD, cfg.MODEL.ODE.STEPS, cfg.MODEL.ODE.FLOWS = "euler", 0, []
    cfg.MODEL.ODE.PROJECTION = "relu"
    return build_network(cfg)


def _certify_twins(twin: nn.Module, ode_model: nn.Module, discrete: Mapping[str, str], *, channels: int) -> Certificate:
    runs = []
    for name, flow in ode_model.named_modules():
        if isinstance(flow, ODEBlock) and isinstance(flow.field, PiecewiseConstant):
            stage = name.removesuffix("1.flow")
            blocks = tuple(f"{stage}{index + 1}" for index in range(len(flow.field.pieces)))
            size = sum(p.numel() for p in flow.parameters())
            runs.append(ConvertedRun(name, blocks, len(blocks), size, "relu"))
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(channels, _SIDE, _SIDE, generator=generator) * 255
    paired = Pairing(dict(discrete), {run.flow: run.blocks[-1] for run in runs})
    examples: list[tuple[Any, Any, Any, Pairing, bool]] = [
        (twin, ode_model, [{"image": picture, "height": _SIDE, "width": _SIDE}], paired, False),
        (twin.backbone, ode_model.backbone, picture[None] - 128, _within(paired, "backbone."), True),
    ]
    differences = Differences()
    for original, converted, example, pairing, training in examples:
        a = Observation(original, example, pairing.states.values(), training=training)
        b = Observation(converted, example, pairing.states.keys(), training=training)
        differences |= compare(a, b, pairing)
    return Certificate(
        runs=tuple(runs),
        kept=(),
        parameters_before=sum(p.numel() for p in twin.parameters()),
        parameters_after=sum(p.numel() for p in ode_model.parameters()),
        differences=differences,
        measured_on=f"a random picture of {_SIDE}x{_SIDE} (evaluation: the whole network; training: its backbone)",
    )


def _within(pairing: Pairing, prefix: str) -> Pairing:
    def inside(names: Mapping[str, str]) -> dict[str, str]:
        return {a.removeprefix(prefix): b.removeprefix(prefix) for a, b in names.items() if a.startswith(prefix)}

    return Pairing(inside(pairing.tensors), inside(pairing.states))


def _write(file: Path, content: dict[str, Any], certificate: Certificate) -> None:
    with whole(file) as partial:
        torch.save(content, partial)
    texts = {"certificate.json": json.dumps(certificate.to_dict(), indent=2), "certificate.txt": str(certificate)}
    for name, text in texts.items():
        write_text(file.with_name(name), f"{text}\n")
