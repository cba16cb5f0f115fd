"""A page of results: one HTML file that needs no other file, and the same in Markdown.

The templates are Jinja2's, in ``templates``; what is written from outside (names, commands) is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from ode_detect.media.files import write_text

from . import markdown
from .comparison import Table
from .plots import COLOURS

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


class PageError(ValueError):
    """Something that cannot stand on a page."""


@dataclass(frozen=True)
class Figure:
    """A picture on a page.

    Attributes:
        path: a png, jpg or webp file.
        alt: what a reader who cannot see it should know.
        caption: below it; "" for none.
        wide: it takes the whole width, and scrolls in its own box where that is too narrow.

    Raises:
        PageError: no description, or a file of another kind.
    """

    path: Path
    alt: str
    caption: str = ""
    wide: bool = False

    def __post_init__(self) -> None:
        """Check description and suffix."""
        if not self.alt.strip():
            raise PageError(f"a picture on a page needs a description, and {self.path} has none; give `alt`.")
        if self.path.suffix.lower() not in _TYPES:
            raise PageError(f"a picture on a page is {', '.join(_TYPES)}, not {self.path.name}; write it as png.")


@dataclass(frozen=True)
class Section:
    """Pictures under one heading.

    Attributes:
        title: heading.
        figures: in their order.
        text: above the pictures; "" for none.
        rows: figures stand in rows of so many, one for each network; 0 lets them flow.
        legend: (colour, meaning) of what is drawn in the pictures.
    """

    title: str
    figures: tuple[Figure, ...]
    text: str = ""
    rows: int = 0
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
        title: heading and name of the page.
        about: what was compared on what, one line.
        summary: sentences on top.
        warnings: what a reader must know before believing the numbers.
        numbers: the table.
        differences: each network against its twin; None if none has one.
        sections: pictures.
        keys: config keys in which the networks differ, with the value of each.
        protocol: how the numbers were made, clause by clause.
        commands: that made the numbers.
        machine: that they were measured on.
        commit: of the code.
        date: ISO 8601.
    """

    title: str
    about: str
    summary: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: Table
    differences: Table | None
    sections: tuple[Section, ...]
    keys: Mapping[str, tuple[str, ...]]
    protocol: tuple[str, ...]
    commands: tuple[str, ...]
    machine: Mapping[str, Any]
    commit: str
    date: str

    def write(self, folder: str | Path) -> tuple[Path, Path]:
        """Write ``comparison.html``, with its pictures in it, and ``comparison.md``, which names them.

        Args:
            folder: where; pictures of the Markdown page are named relative to it.

        Returns:
            Both files.
        """
        folder = Path(folder)
        html, markdown = folder / "comparison.html", folder / "comparison.md"
        for path, text in ((html, self.html()), (markdown, self.markdown(folder))):
            write_text(path, text)
        return html, markdown

    def html(self) -> str:
        """The page as HTML; every picture is in it, and nothing is loaded from elsewhere."""
        return _environment().get_template("comparison.html").render(page=self, colours=COLOURS)

    def markdown(self, folder: Path) -> str:
        """The page as Markdown.

        Args:
            folder: what the paths of pictures are relative to.
        """

        def relative(path: Path) -> str:
            return str(path.relative_to(folder) if path.is_relative_to(folder) else path)

        return _environment().get_template("comparison.md").render(page=self, relative=relative)


def data_uri(path: Path) -> str:
    """A picture as an address that holds it."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix.lower()]};base64,{content}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ode_detect.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = lambda path: Markup(data_uri(path))
    # A name such as faster_rcnn_ode may go on in the next line after an underscore.
    environment.filters["breakable"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))
    environment.filters |= {"md": markdown.text, "code": markdown.code, "fence": markdown.fence}
    environment.filters["address"] = markdown.address
    return environment
