"""Quantities of results: how each is called and shown, and which way is better. A task declares its metrics here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A metric or a cost.

    Attributes:
        name: as results have it.
        label: in tables; "" is the name with blanks for underscores.
        unit: of the number that is shown; "%" for a fraction in [0, 1], which is shown in percent.
        factor: the number that is shown, for each unit of the one in results.
        digits: after the point, of a metric; costs have three figures.
        better: "more", "less", or "" if neither is.
        detail: a metric in whose company a wide table leaves this one out; "*" for any, "" for never.
        family: whether names that begin with this one are shown alike.
    """

    name: str
    label: str = ""
    unit: str = ""
    factor: float = 1.0
    digits: int = 3
    better: str = ""
    detail: str = ""
    family: bool = False

    @property
    def heading(self) -> str:
        """The label with the unit, as above a column."""
        words = self.label or self.name.replace("_", " ").replace("f1", "F1")
        return f"{words} ({self.unit})" if self.unit else words

    @property
    def is_fraction(self) -> bool:
        """Whether it lies in [0, 1]."""
        return self.unit == "%"


def fraction(name: str, label: str = "", *, digits: int = 1, better: str = "more", detail: str = "") -> Quantity:
    """A metric that lies in [0, 1] and is shown in percent; see `Quantity`."""
    return Quantity(name, label, "%", 100.0, digits, better, detail)


COSTS = {
    one.name: one
    for one in (
        Quantity("parameters", unit="M", factor=1e-6, better="less"),
        Quantity("backbone_parameters", unit="M", factor=1e-6, better="less", detail="*"),
        Quantity("macs", "multiply-adds", "G", 1e-9, better="less"),
        Quantity("evaluations", better="less"),
        Quantity("backward_evaluations", better="less", detail="*"),
        Quantity("latency_ms", "latency", "ms", better="less"),
        Quantity("pictures_per_second", better="more", detail="*"),
        Quantity("train_step_ms", "training step", "ms", better="less"),
        Quantity("train_memory_mib", "training memory", "MiB", better="less"),
        Quantity("train_minutes", "training", "min", better="less", detail="*"),
        Quantity("kept_mib", "kept for the gradient", "MiB", better="less", detail="*"),
        Quantity("held_mib", "held by the process", "MiB", better="less", detail="*"),
    )
}
_DECLARED: list[tuple[Quantity, ...]] = []


def declare(*metrics: Quantity) -> None:
    """Make the metrics of a task known, in the order of their columns; a second time nothing happens."""
    if metrics not in _DECLARED:
        _DECLARED.append(metrics)


def quantity(name: str) -> Quantity:
    """What is known of a metric or a cost; one that nobody declared is a number without unit and direction."""
    assert _DECLARED or name in COSTS, "no task has declared its metrics; ode_detect.engine.tasks does it for all"
    known = [*COSTS.values(), *(one for group in _DECLARED for one in group)]
    for one in known:
        if one.name == name:
            return one
    family = [one for one in known if one.family and name.startswith(one.name)]
    return (
        Quantity(name, "", family[0].unit, family[0].factor, family[0].digits, family[0].better)
        if family
        else Quantity(name)
    )


def names() -> list[str]:
    """Names of all metrics that are declared."""
    return list(dict.fromkeys(one.name for group in _DECLARED for one in group))


def in_order(found: Iterable[str]) -> list[str]:
    """Metrics in the order of the task that has most of them; those that it does not have follow as they come."""
    there = list(dict.fromkeys(found))
    groups = [[one.name for one in group] for group in _DECLARED]
    order = max(groups, key=lambda group: len(set(group) & set(there)), default=[])
    return [name for name in order if name in there] + [name for name in there if name not in order]
