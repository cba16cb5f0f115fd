"""Layers that draw at random (dropout, stochastic depth): with one, a field gives another value each time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_KNOWN = ("torch.nn.", __name__.partition(".")[0] + ".")


def random_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, float]]:
    """Yield the layers that draw at random in training, as (name, layer, the share that is dropped or drawn)."""
    for name, layer in module.named_modules():
        share = _share(layer)
        if share > 0:
            yield name, layer, share


def draws_masks(field: nn.Module) -> bool:
    """Whether an evaluation draws at random now, by a layer that we know."""
    return any(layer.training and _share(layer) > 0 for layer in field.modules())


def may_draw(field: nn.Module) -> bool:
    """Whether an evaluation may draw at random now: only torch's own layers and our fields are known not to."""
    return any(
        not type(layer).__module__.startswith(_KNOWN) or (layer.training and _share(layer) > 0)
        for layer in field.modules()
    )


def _share(layer: nn.Module) -> float:
    if isinstance(layer, nn.RReLU):
        return layer.upper - layer.lower
    if isinstance(layer, (nn.MultiheadAttention, nn.RNNBase)):
        return layer.dropout
    # Of modules as they are: asking for an attribute that is not there takes long.
    own = vars(layer)
    # timm's DropPath and DropBlock have a drop_prob; torch's dropout, torchvision's StochasticDepth and DropBlock a p.
    share = own.get("drop_prob")
    if "p" in own and ("Drop" in type(layer).__name__ or "StochasticDepth" in type(layer).__name__):
        share = own["p"]
    return float(share) if isinstance(share, (int, float)) else 0.0
