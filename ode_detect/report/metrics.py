"""Quantities of results: how each is called and shown, and which way is better. A task declares its metrics here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path


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
# Shared by tasks: means over classes, which say little where there is top1.
PRECISION_RECALL_F1 = tuple(fraction(name, detail="top1") for name in ("precision", "recall", "f1"))
_DECLARED: list[tuple[Quantity, ...]] = []


def declare(*metrics: Quantity) -> None:
    """Make the metrics of a task known, in the order of their columns; a second time nothing happens.

    Raises:
        ValueError: another task has a metric of the same name that is shown in another way.
    """
    if metrics in _DECLARED:
        return
    known = {one.name: one for group in _DECLARED for one in group}
    for one in metrics:
        if known.get(one.name, one) != one:
            raise ValueError(
                f"a metric is shown in one way, and {one.name} is declared as {known[one.name]} and as {one}; give one "
                "of them another name."
            )
    _DECLARED.append(metrics)


@cache
def _declare_ours() -> None:
    """Declare ``METRICS`` of the file ``metrics.py`` of each task, which imports no network."""
    for file in sorted(Path(__file__).parents[1].glob("*/metrics.py")):
        if file.parent.name != "report":
            declare(*import_module(f"ode_detect.{file.parent.name}.metrics").METRICS)


def _groups() -> list[tuple[Quantity, ...]]:
    _declare_ours()
    return _DECLARED


def quantity(name: str) -> Quantity:
    """What is known of a metric or a cost; one that nobody declared is a number without unit and direction."""
    known = [*COSTS.values(), *(one for group in _groups() for one in group)]
    exact = next((one for one in known if one.name == name), None)
    family = next((one for one in known if one.family and name.startswith(one.name)), None)
    if exact or not family:
        return exact or Quantity(name)
    return Quantity(name, "", family.unit, family.factor, family.digits, family.better)


def names() -> list[str]:
    """Names of all metrics that are declared."""
    return list(dict.fromkeys(one.name for group in _groups() for one in group))


def in_order(found: Iterable[str]) -> list[str]:
    """Metrics in the order of the task that has most of them; those that it does not have follow as they come."""
    there = list(dict.fromkeys(found))
    groups = [[one.name for one in group] for group in _groups()]
    order = max(groups, key=lambda group: len(set(group) & set(there)), default=[])
    return [name for name in order if name in there] + [name for name in there if name not in order]
