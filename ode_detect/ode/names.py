"""Check a name that a user wrote against the known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name that does not exist; the message lists those that do."""


def check_name(name: object, known: Iterable[str], what: str) -> str:
    """Return ``name`` if it is known.

    Args:
        name: what the user wrote.
        known: the names that exist.
        what: what is named, for the message ("method", "norm").

    Raises:
        UnknownNameError: lists the known names and the nearest one.
    """
    names = list(known)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = next((f" Did you mean {n!r}?" for n in names if near and n.lower() == near[0]), "")
    raise UnknownNameError(f"unknown {what} {name!r}; known are {', '.join(sorted(names))}.{hint}")
