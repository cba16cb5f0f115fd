"""The flows of a model: listing them, and finding one by its name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .block import ODEBlock
from .names import check_name


def flows_of(model: nn.Module) -> dict[str, ODEBlock]:
    """Return the flows of a model by their path in it, in the order of the model.

    Raises:
        ValueError: there is none.
    """
    flows = {name or "ODEBlock": m for name, m in model.named_modules() if isinstance(m, ODEBlock)}
    if not flows:
        raise ValueError(
            f"a model with flows is needed, and this {type(model).__name__} has no ODEBlock; make stages of it flows."
        )
    return flows


def find_flow(flows: Mapping[str, ODEBlock], name: str) -> str:
    """Return the path of the flow that a name means.

    Args:
        flows: what `flows_of` gave.
        name: the path ("backbone.bottom_up.res4.1.flow"), the block's own name ("res4.flow"), or whole words of one of
            them ("res4").

    Raises:
        ValueError: no flow is called so, or several are; the known names are listed.
    """
    exact = [path for path, block in flows.items() if name in (path, block.name)]
    fits = exact or [p for p, block in flows.items() if name and (_within(name, p) or _within(name, block.name))]
    if len(fits) > 1:
        raise ValueError(f"a name must mean one flow, and {name!r} means {', '.join(fits)}; write one of these.")
    return fits[0] if fits else check_name(name, flow_names(flows).values(), "flow")


def flow_names(flows: Mapping[str, ODEBlock]) -> dict[str, str]:
    """Return a name for each flow, by path: the block's own, or the path where other blocks have that name too."""
    names = [block.name for block in flows.values()]
    unnamed = "ODEBlock"  # what a block is called that was given no name
    return {
        path: block.name if names.count(block.name) == 1 and block.name != unnamed else path
        for path, block in flows.items()
    }


def _within(name: str, path: str) -> bool:
    return f".{name}." in f".{path}."
