"""The classes of a checkpoint and those of the data: the same names in one order, or none goes by another's name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ode_detect.task import Task

from .checkpoint import Coverage
from .weights import CheckpointError

logger = logging.getLogger("ode_detect.engine")
# So many names are listed.
_LISTED = 20


def data_categories(cfg: CfgNode, task: Task) -> list[dict[str, Any]]:
    """Ids and names of the classes of the test data, in the network's order; [] if unknown.

    Those of the training data are the same, or the run is refused; and the test data have been read when it is opened.
    """
    tested = cfg.clone()
    tested.defrost()
    tested.DATASETS.TRAIN = ()
    return task.categories(tested)


def match_classes(
    cfg: CfgNode, task: Task, model: nn.Module, loaded: Coverage, path: str, *, resuming: bool = False
) -> None:
    """Bring the class layers of a model into the order of the classes of the test data.

    Nothing is done where the file or the data do not name their classes, or no class layer was loaded.

    Args:
        cfg: for the data, and ``MODEL.ALLOW_OTHER_CLASSES``.
        task: of the model.
        model: the filled network, changed in place.
        loaded: what it was filled with.
        path: the file, for messages.
        resuming: a training goes on, whose optimizer has the order of the file.

    Raises:
        CheckpointError: the file and the data have other classes than each other, or in resuming another order.
    """
    theirs = [str(one["name"]) for one in loaded.categories]
    ours = [str(one["name"]) for one in data_categories(cfg, task)]
    if not theirs or not ours or theirs == ours:
        return
    if loaded.loaded.isdisjoint(task.class_rows(model, range(len(ours)))):
        return
    same = len(set(ours)) == len(ours) and sorted(theirs) == sorted(ours)
    if same and not resuming:
        rows = task.class_rows(model, [theirs.index(name) for name in ours])
        put_in_rows(model, rows)
        listed = _listed(theirs), _listed(ours)
        logger.info("the classes of %s (%s) were put in the order of the data (%s)", path, *listed)
        return
    said = f"{path} was trained on the classes {_listed(theirs)}, and those of the data are {_listed(ours)}"
    if cfg.MODEL.ALLOW_OTHER_CLASSES and not same:
        logger.warning("%s: taken one for the other in this order, as MODEL.ALLOW_OTHER_CLASSES says.", said)
        return
    if resuming:
        raise CheckpointError(
            f"a training goes on with the classes that it began with, and {said}. Give them the names and the order "
            "that they had, or begin another training: MODEL.WEIGHTS, and another OUTPUT_DIR."
        )
    raise CheckpointError(
        f"each class goes by its own name, and {said}. Give weights of the one, or data of the other. For a training "
        "on other classes MODEL.ALLOW_OTHER_CLASSES True takes the layers of the old ones, the first for the first."
    )


def put_in_rows(model: nn.Module, rows: Mapping[str, Sequence[int]]) -> None:
    """Put the rows of tensors of a model, by name, in another order, in place."""
    for name, index in rows.items():
        owner, _, tensor = name.rpartition(".")
        # Only the layer itself: where a FrozenBN is given a state without its statistics, it forgets them.
        layer = model.get_submodule(owner)
        layer.load_state_dict({tensor: layer.state_dict()[tensor][list(index)]}, strict=False)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
