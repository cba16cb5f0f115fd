"""Text from outside (names of networks, data sets, classes and files; commands) in Markdown, where it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

_SPECIAL = re.compile(r"[\\`*\[\]|~]|!(?=\[)|(?<![^\W_])_|_(?![^\W_])")
# What begins a list, a heading or a rule.
_BEGINS = re.compile(r"\s*(?:[-+](?=[-\s]|$)|[#=]|\d+(?=[.)](?:\s|$)))")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def text(value: object) -> str:
    """Words of a paragraph, a heading, a cell or a description, in one line: no link, picture, tag or emphasis.

    An underscore within a word is none and stays as it is.
    """
    line = " ".join(str(value).splitlines())
    line = re.sub(r"[&<>]", lambda found: _ENTITIES[found[0]], _SPECIAL.sub(r"\\\g<0>", line))
    begins = _BEGINS.match(line)
    if not begins:
        return line
    place = begins.end() if begins[0][-1].isdigit() else begins.end() - 1
    return f"{line[:place]}\\{line[place:]}"


def code(value: object) -> str:
    """A span of code, in a cell too."""
    line = " ".join(str(value).splitlines()).replace("|", "\\|")
    if not line:
        return ""
    ticks = "`" * (1 + _longest_run(line))
    return f"{ticks}{line}{ticks}" if len(ticks) == 1 else f"{ticks} {line} {ticks}"


def fence(value: object) -> str:
    """What a block of code with that content is fenced by."""
    return "`" * max(3, 1 + _longest_run(str(value)))


def fold(summary: str, content: Iterable[str]) -> str:
    """Lines of Markdown that are shown on a click, on GitHub and on a page of MkDocs (its extension md_in_html)."""
    return "\n".join(['<details markdown="1">', f"<summary>{text(summary)}</summary>", "", *content, "", "</details>"])


def address(path: object) -> str:
    """Where a picture or a link leads."""
    return quote(str(path), safe="/.~-_:@", errors="surrogateescape")


def _longest_run(value: str) -> int:
    return max((len(run) for run in re.findall("`+", value)), default=0)
