"""Fill the tables of a Markdown file from files of results, so that nobody types a number into a table.

A table stands between two lines of their own::

    <!-- results: results/NAME.json -->
    (anything here is replaced)
    <!-- /results -->

``results/NAME.json#SECTION`` takes one section of a benchmark (or the rows of one config). Other kinds of tables have
their own word in the place of ``results``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from .results import Results
from .tables import to_markdown

_OPEN = re.compile(r"^<!--\s*(?P<kind>\w+):\s*(?P<path>.+?)\s*-->\s*$")
_CLOSE = re.compile(r"^<!--\s*/(?P<kind>\w+)\s*-->\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")


class ReadmeError(ValueError):
    """The markers of a Markdown file do not fit together, or name something that is not there."""


# What stands between the markers of a kind: of what they name, and the folder that it is in.
Table = Callable[[str, Path], str]


def fill(text: str, root: str | Path, others: Mapping[str, Table] = MappingProxyType({})) -> str:
    """Replace what stands between the markers by the tables of what they name.

    Filling twice gives the same as filling once. Markers inside a fenced block of code are left alone.

    Args:
        text: The Markdown text.
        root: The folder that the paths in the markers start from.
        others: Kinds of tables beside ``results``, by the word in their markers.

    Raises:
        ReadmeError: A marker has no partner, or its path leaves ``root``.
        ResultsError: A file of results is missing or wrong.
    """
    kinds = {"results": _table, **others}
    filled: list[str] = []
    opened: tuple[int, str, str] | None = None
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if opened is None and _FENCE.match(line):
            fenced = not fenced
        start, end = (None if fenced else _marker(pattern, line, kinds) for pattern in (_OPEN, _CLOSE))
        if (start and opened) or (end and (not opened or opened[1] != end["kind"])):
            kind = (start or end)["kind"]  # type: ignore[index]
            other = f"the one of line {opened[0]} is still open" if opened else "none is open"
            raise ReadmeError(
                f"`<!-- {kind}: FILE -->` and `<!-- /{kind} -->` must alternate; at line {number} {other}. "
                "Add the missing marker."
            )
        if start:
            opened = (number, start["kind"], start["path"])
        elif end and opened:
            filled += ["", *kinds[opened[1]](opened[2], Path(root)).splitlines(), ""]
            opened = None
        if opened is None or start:
            filled.append(line)
    if opened:
        raise ReadmeError(
            f"`<!-- {opened[1]}: FILE -->` must be closed; the one of line {opened[0]} is not. "
            f"Add `<!-- /{opened[1]} -->`."
        )
    return "\n".join(filled) + ("\n" if text.endswith("\n") else "")


def _marker(pattern: re.Pattern[str], line: str, kinds: Mapping[str, Table]) -> re.Match[str] | None:
    match = pattern.match(line)
    return match if match and match["kind"] in kinds else None


def _table(path: str, root: Path) -> str:
    path, _, section = path.partition("#")
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ReadmeError(
            f"a marker must name a file inside {root}; {path} is outside. Use a path like results/NAME.json."
        )
    results = Results.read(file)
    return to_markdown(results.section(section) if section else results)
