"""Fill the tables of a Markdown file from files of results, so that nobody types a number into a table.

A table stands between two lines of their own::

    <!-- results: results/NAME.json -->
    (anything here is replaced)
    <!-- /results -->

``results/NAME.json#SECTION`` takes one section of a benchmark (or the rows of one config). After the file a marker may
choose what of a table of networks is shown, each part behind a ``|``::

    <!-- results: results/NAME.json | columns: AP, macs | rows: a = the plain network, b | protocol: docs/results.md -->

``columns`` are metrics and costs by their names in the file, and ``role``; ``rows`` are names of networks, with what
the table calls them; ``protocol`` is the page that has protocol and commands, in the place of a fold that has them.

Other kinds of tables have their own word in the place of ``results``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from .results import Results
from .rows import unknown_name
from .tables import to_markdown

_OPEN = re.compile(r"^<!--\s*(?P<kind>\w+):\s*(?P<marker>.+?)\s*-->\s*$")
_CLOSE = re.compile(r"^<!--\s*/(?P<kind>\w+)\s*-->\s*$")
_PARTS = ("columns", "rows", "protocol")
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
        others: Kinds of tables other than ``results``, by the word in their markers.

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
            opened = (number, start["kind"], start["marker"])
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


@dataclass(frozen=True)
class _Marker:
    """What an opening marker says.

    Attributes:
        path: The file of results, with ``#SECTION``.
        columns: Those that are chosen; () for the usual ones.
        rows: The networks that are chosen, and what they are called; {} for all.
        page: The page that has protocol and commands; "" for a fold.
    """

    path: str
    columns: tuple[str, ...] = ()
    rows: dict[str, str] = field(default_factory=dict)
    page: str = ""

    @classmethod
    def parse(cls, text: str) -> _Marker:
        path, *parts = (part.strip() for part in text.split("|"))
        said = {}
        for part in parts:
            key, _, value = (word.strip() for word in part.partition(":"))
            if key not in _PARTS:
                raise ReadmeError(unknown_name(f"part of the marker of {path}", key, _PARTS))
            said[key] = value
        rows = [row.partition("=") for row in _listed(said.get("rows", ""))]
        return cls(
            path,
            columns=tuple(_listed(said.get("columns", ""))),
            rows={name.strip(): called.strip() or name.strip() for name, _, called in rows},
            page=said.get("protocol", ""),
        )


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _table(text: str, root: Path) -> str:
    marker = _Marker.parse(text)
    path, _, section = marker.path.partition("#")
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ReadmeError(
            f"a marker must name a file inside {root}; {path} is outside. Use a path like results/NAME.json."
        )
    results = Results.read(file)
    results = results.section(section) if section else results
    return to_markdown(_chosen(results, marker), columns=marker.columns, page=marker.page)


def _chosen(results: Results, marker: _Marker) -> Results:
    """The rows that a marker names, in its order and by its names."""
    if results.comparisons and (marker.columns or marker.rows):
        raise ReadmeError(
            f"rows and columns are chosen of a table of networks; {marker.path} is one of ratios. "
            "Take them out of the marker."
        )
    quantities = ["role", *(name for row in results.rows for name in (*row.metrics, *row.cost))]
    names = [row.name for row in results.rows]
    for what, chosen, known in (("column", marker.columns, quantities), ("row", marker.rows, names)):
        for name in chosen:
            if name not in known:
                raise ReadmeError(unknown_name(f"{what} of {marker.path}", name, list(dict.fromkeys(known))))
    if not marker.rows:
        return results
    rows = [
        replace(row, name=called) for name, called in marker.rows.items() for row in results.rows if row.name == name
    ]
    return replace(results, rows=tuple(rows))
