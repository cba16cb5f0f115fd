"""Fill the tables of a Markdown file from files of results, so that nobody types a number into a table.

A table stands between two lines of their own::

    <!-- results: results/NAME.json -->
    (anything here is replaced)
    <!-- /results -->

``results/NAME.json#SECTION`` takes one section of a benchmark (or the rows of one config).
"""

from __future__ import annotations

import re
from pathlib import Path

from .results import Results
from .tables import to_markdown

_OPEN = re.compile(r"^<!--\s*results:\s*(?P<path>.+?)\s*-->\s*$")
_CLOSE = re.compile(r"^<!--\s*/results\s*-->\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")


class ReadmeError(ValueError):
    """The markers of a Markdown file do not fit together, or name something that is not there."""


def fill(text: str, root: str | Path) -> str:
    """Replace what stands between the markers by the tables of the files that they name.

    Filling twice gives the same as filling once. Markers inside a fenced block of code are left alone.

    Args:
        text: The Markdown text.
        root: The folder that the paths in the markers start from.

    Raises:
        ReadmeError: A marker has no partner, or its path leaves ``root``.
        ResultsError: A file of results is missing or wrong.
    """
    filled: list[str] = []
    opened: tuple[int, str] | None = None
    fenced = False
    for number, line in enumerate(text.splitlines(), start=1):
        if opened is None and _FENCE.match(line):
            fenced = not fenced
        start, end = (None, None) if fenced else (_OPEN.match(line), _CLOSE.match(line))
        if (start and opened) or (end and not opened):
            other = f"the one of line {opened[0]} is still open" if opened else "none is open"
            raise ReadmeError(
                f"`<!-- results: FILE -->` and `<!-- /results -->` must alternate; at line {number} {other}. "
                "Add the missing marker."
            )
        if start:
            opened = (number, start["path"])
        elif end and opened:
            filled += ["", *_table(opened[1], Path(root)).splitlines(), ""]
            opened = None
        if opened is None or start:
            filled.append(line)
    if opened:
        raise ReadmeError(
            f"`<!-- results: FILE -->` must be closed; the one of line {opened[0]} is not. Add `<!-- /results -->`."
        )
    return "\n".join(filled) + ("\n" if text.endswith("\n") else "")


def _table(path: str, root: Path) -> str:
    path, _, section = path.partition("#")
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()):
        raise ReadmeError(
            f"a marker must name a file inside {root}; {path} is outside. Use a path like results/NAME.json."
        )
    results = Results.read(file)
    return to_markdown(results.section(section) if section else results)
