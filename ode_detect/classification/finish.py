"""What a trained classifier learns about its training pictures before it is handed out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ode_detect.classification.data.datasets import reference_data
from ode_detect.classification.data.mapper import Example, Mapper

from .model import Classifier

# So many training pictures are enough to know their spread.
_MOST = 10_000


def finish_classifier(cfg: CfgNode, model: Classifier) -> None:
    """Let the classifier know the features of its training pictures, so that it can recognise pictures unlike them.

    Args:
        cfg: for the training data, and ``TEST.FAMILIAR_SHARE``.
        model: trained, in evaluation mode. Its ``familiarity`` is filled.

    Raises:
        DatasetError: as for `ode_detect.classification.data.datasets.train_data`.
        FloatingPointError: features that are not finite.
    """
    trained_on, held_out, mapper = reference_data(cfg)
    some, others = _some(trained_on), _some(held_out)
    labels = torch.tensor([record["label"] for record in some], device=model.device)
    model.familiarity.fit(_features(model, some, mapper, cfg.TEST.BATCH), labels)
    model.familiarity.calibrate(_features(model, others, mapper, cfg.TEST.BATCH), cfg.TEST.FAMILIAR_SHARE)


def _some(dicts: Sequence[Example]) -> Sequence[Example]:
    order = torch.randperm(len(dicts), generator=torch.Generator().manual_seed(0))[:_MOST]
    return [dicts[index] for index in order.tolist()]


def _features(model: Classifier, dicts: Sequence[Example], mapper: Mapper, batch: int) -> Tensor:
    parts = [
        torch.stack([output["features"] for output in model([mapper(record) for record in group])])
        for group in _groups(dicts, batch)
    ]
    return torch.cat(parts)


def _groups(dicts: Sequence[Example], size: int) -> Iterator[list[Example]]:
    rest = iter(dicts)
    while group := list(itertools.islice(rest, size)):
        yield group
