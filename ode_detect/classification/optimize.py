"""A classifier made ready for inference: its convolutions, not what it says about its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ode_detect.ode.inference.optimize import (
    PRECISIONS,
    Optimization,
    Prepared,
    compute_in,
    copy_for_inference,
    select,
    take_and_give,
)

from .model import Classifier, Example


def optimize_classifier(
    model: Classifier, example: list[Example], *, precision: str = "auto", tolerance: float = 0.01
) -> tuple[nn.Module, Optimization]:
    """Make a copy of a classifier that computes the same, faster. For inference only.

    The backbone and the normalisation before the pooling are treated as by `ode_detect.ode.optimize_for_inference`.
    Pixels, pooled features, logits and distances are computed in float32.

    Args:
        model: the classifier. It is not changed.
        example: a batch as it takes it, to compare and measure on.
        precision: "float32", "bfloat16", or "auto": the faster one that is within the tolerance.
        tolerance: the largest relative error, in the norm, of the logits, features and distances of the batch; for
            float32 at most 1e-4 is allowed.

    Returns:
        The copy, and what was done.

    Raises:
        OptimizationError: an output differs by more than the tolerance.
        ValueError: an unknown precision, or a tolerance out of range.
    """

    def outputs(candidate: nn.Module) -> dict[str, Tensor]:
        given: list[dict[str, Tensor]] = candidate(example)
        return {key: torch.stack([one[key] for one in given]) for key in given[0] if key != "far"}

    return select(
        model,
        prepare=lambda kind: _prepare(model, kind),
        outputs=outputs,
        run=lambda candidate: candidate(example),
        precision=precision,
        tolerance=tolerance,
    )


def _prepare(model: Classifier, precision: str) -> Prepared:
    prepared = copy_for_inference(model)
    classifier = prepared.model
    assert isinstance(classifier, Classifier)
    take_and_give(classifier.backbone, takes=PRECISIONS[precision], gives=None)
    take_and_give(classifier.norm, takes=PRECISIONS[precision], gives=torch.float32)
    for network in (classifier.backbone, classifier.norm):
        compute_in(network, precision)
    return prepared
