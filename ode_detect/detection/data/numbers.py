"""Numbers of annotation files that are written as text, or as whole numbers with a decimal point."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ode_detect.media.errors import Problem

NUMBERS = frozenset((int, float))
_TEXT = re.compile(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", re.ASCII)


def number(value: Any) -> Any:
    """The number that a text is, or the value as it is."""
    if type(value) is not str or not _TEXT.fullmatch(value):
        return value
    read = float(value)
    return int(value) if value.strip().lstrip("+-").isdigit() else read


def whole(value: Any) -> Any:
    """The whole number that a text or a float is, or the value as it is."""
    read = number(value)
    return int(read) if type(read) is float and read.is_integer() and abs(read) < 2**53 else read


def numbers(values: Any) -> Any:
    """A list with its texts read as numbers; the list itself where there is none."""
    if type(values) is not list or NUMBERS.issuperset(map(type, values)):
        return values
    return list(map(number, values))


_READ: dict[str, dict[str, Callable[[Any], Any]]] = {
    "images": dict.fromkeys(("id", "width", "height"), whole),
    "categories": {"id": whole},
    "annotations": {
        **dict.fromkeys(("id", "image_id", "category_id", "iscrowd", "ignore", "difficult", "num_keypoints"), whole),
        "area": number,
        "bbox": numbers,
    },
}
_ONE = {"images": "image", "categories": "category", "annotations": "annotation"}


def read_numbers(content: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Read what can be one number only: ``"12"`` and ``12.0`` of an id are 12.

    Args:
        content: in COCO's form; stays as it is.

    Returns:
        The content with numbers, and where they were something else.
    """
    read = {**content}
    where = []
    for kind, keys in _READ.items():
        changed: dict[int, dict[str, Any]] = {}
        for i, entry in enumerate(content[kind]):
            for key, reader in keys.items():
                value = entry.get(key)
                if type(value) is int or value is None:
                    continue
                new = reader(value)
                if new is not value and (type(new) is not list or new != value):
                    changed.setdefault(i, {})[key] = new
        if changed:
            read[kind] = [{**entry, **changed.get(i, {})} for i, entry in enumerate(content[kind])]
        for i, new in changed.items():
            said = ", ".join(f"{key} {content[kind][i][key]!r}" for key in new)
            where.append(f"{_ONE[kind]} {read[kind][i].get('id', i)}, {said}")
    rule = "entries with numbers written as text, or whole numbers with a decimal point"
    return read, [Problem(rule, tuple(where), "read as the numbers that they are")] if where else []
