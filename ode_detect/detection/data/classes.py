"""Classes of data sets, compared with those of other data sets and of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        of: its name.
        names: in the network's order.
        xml: it is VOC XML, whose classes are the names that occur unless CLASSES names them.
    """

    of: str
    names: tuple[str, ...]
    xml: bool


def difference(one: Classes, other: Classes) -> str:
    """What is wrong if two data sets have other classes, or in another order, and what to do; "" if nothing is."""
    if one.names == other.names:
        return ""
    lacking = [each for each in one.names if each not in other.names]
    more = [each for each in other.names if each not in one.names]
    found = [f"{other.of} lacks {listed(lacking)}"] * bool(lacking) + [f"{one.of} lacks {listed(more)}"] * bool(more)
    if not set(one.names) & set(other.names):
        found = ["they have none in common; if they mean the same, correct the names first"]
    # The order of a file cannot be chosen, that of CLASSES can.
    every = [*other.names, *lacking] if one.xml and not other.xml else [*one.names, *more]
    entries = [each.of for each in (one, other) if each.xml]
    files = [each.of for each in (one, other) if not each.xml]
    todo = [f"write CLASSES: [{', '.join(every)}] in DATASETS.CUSTOM for {' and '.join(entries)}"] * bool(entries)
    todo += [f"give the annotations of {' and '.join(files)} the categories {', '.join(every)}"] * bool(files)
    return (
        "data sets of one network have the same classes in the same order, also those that have no object in one of "
        f"them. {one.of} has {listed(one.names)}, and {other.of} has {listed(other.names)}: "
        f"{', and '.join(found) or 'another order'}. To do: {'; '.join(todo)}; and set NUM_CLASSES {len(every)}."
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
