"""Weights of ResNets into flows: what a flow's tensors are called there, and their way in by any checkpointer.

The names are mapped where a state dict is loaded, by a hook on the backbone. One way to load needs more: files of the
model zoo ask for names to be matched by their ends, which `detectron2.checkpoint` does with those of the model before
anything is loaded, and no module is asked. So when this module is imported, its function is replaced by ours,
`align_and_update_state_dicts`; for a model without flows that does what Detectron2's does.
"""

from __future__ import annotations

import re
from typing import Any

from detectron2.checkpoint import c2_model_loading, detection_checkpoint
from torch import Tensor, nn


def discrete_names(names: list[str]) -> dict[str, str]:
    """What the tensors of an ODE-ResNet are called in the ResNet that has the same blocks.

    Piece k of the flow of a stage is block k + 1 of that stage: ``res4.1.flow.field.pieces.2.conv1.weight`` is
    ``res4.3.conv1.weight``. A flow with constant weights is block 1. Knots of hat functions are named the same way, but
    such a flow, which blends them, does not compute what the blocks do. Flows behind one another (``MODEL.ODE.STACK``)
    have no counterpart. A normalisation of another kind than that of
    the transition (GN in the field, FrozenBN outside) has no counterpart in the ResNet: its scale is another thing.

    Args:
        names: tensor names of a model, those of the transitions among them.

    Returns:
        Our name -> the name in the ResNet, for the tensors in flows.
    """
    flow = re.compile(r"^(.*\bres[2-5]\.)1\.flow\.field\.(?:(?:pieces|knots)\.(\d+)\.)?(.*)$")
    matches = {name: flow.match(name) for name in names}
    known = set(names)
    stacked = {m[1] for name in names if (m := re.match(r"^(.*\bres[2-5]\.)2\.flow\.", name))}
    return {
        name: f"{m[1]}{int(m[2] or 0) + 1}.{m[3]}"
        for name, m in matches.items()
        if m and m[1] not in stacked and not _normalised_otherwise(name, f"{m[1]}0.conv1.norm", known)
    }


def _normalised_otherwise(name: str, transition: str, known: set[str]) -> bool:
    """Whether a tensor belongs to a normalisation with statistics and the transition has one without, or vice versa."""
    layer = name.rpartition(".")[0]
    if not layer.endswith(".norm") or f"{transition}.weight" not in known:
        return False
    return (f"{layer}.running_mean" in known) != (f"{transition}.running_mean" in known)


def fill_flows(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the blocks of a ResNet in a state dict the names of the flows that stand in their place.

    A hook for ``register_load_state_dict_pre_hook``. A tensor that the flow has no place for, or of another shape,
    keeps its name, and is reported as unexpected.

    Args:
        module: an ODE-ResNet, or a stage of one.
        state_dict: changed.
        prefix: path of the module, with a dot at its end.
    """
    ours = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    for flow, block in discrete_names(list(ours)).items():
        given = block in state_dict and flow not in state_dict and block not in ours
        if given and tuple(state_dict[block].shape) == tuple(ours[flow].shape):
            state_dict[flow] = state_dict.pop(block)


def align_and_update_state_dicts(
    model_state_dict: dict[str, Tensor], ckpt_state_dict: dict[str, Tensor], c2_conversion: bool = True
) -> dict[str, Tensor]:
    """Match the names of a file with those of a model by their ends, as Detectron2's function does, in flows too.

    Args:
        model_state_dict: of the model.
        ckpt_state_dict: of the file.
        c2_conversion: whether its names are Caffe2's.

    Returns:
        The tensors of the file by the names of the model; what has no counterpart, by its own.
    """
    discrete = discrete_names(list(model_state_dict))
    flows = {block: flow for flow, block in discrete.items() if block not in model_state_dict}
    renamed = {discrete.get(name, name): tensor for name, tensor in model_state_dict.items()}
    aligned = c2_model_loading.align_and_update_state_dicts(renamed, ckpt_state_dict, c2_conversion)
    return {flows.get(name, name): tensor for name, tensor in aligned.items()}


detection_checkpoint.align_and_update_state_dicts = align_and_update_state_dicts
