"""What MkDocs cannot do by itself: tables from results/, the config keys from the code, pictures outside docs/.

A page shows a picture of results/ as ``![...](../results/NAME)``, as it lies in the repository; in the site it is at
``results/NAME``.

Markers in a page, each on a line of its own:

- ``<!-- results: results/NAME.json -->`` and ``<!-- /results -->``: the table of a file, as in README.md;
- ``<!-- other results -->``: the tables and pictures of all files in results/ that no page names;
- ``<!-- config keys -->``: the reference of our config keys;
- ``<!-- unused keys -->``: the keys of Detectron2 that are refused;
- ``<!-- configs -->``: the files in configs/ that can be run, with what their headers say.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from ode_detect.engine.config_reference import read_keys, to_markdown, unused_to_markdown
from ode_detect.report.readme import fill
from ode_detect.report.results import Results

PICTURES = (".png", ".jpg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pictures of results/ part of the site, at ``results/NAME``."""
    root = _root(config)
    for picture in _pictures(root):
        file = File.generated(config, picture.relative_to(root).as_posix(), abs_src_path=str(picture))
        files.append(file)
    return files


def on_page_markdown(markdown: str, *, config: MkDocsConfig, **_: Any) -> str:
    """Fill the markers of a page."""
    root = _root(config)
    try:
        if "<!-- other results -->" in markdown:
            pages = "\n".join(file.read_text(encoding="utf-8") for file in Path(config.docs_dir).rglob("*.md"))
            markdown = markdown.replace("<!-- other results -->", other_results(pages, root))
        if "<!-- config keys -->" in markdown:
            markdown = markdown.replace("<!-- config keys -->", to_markdown(read_keys()))
        markdown = markdown.replace("<!-- unused keys -->", unused_to_markdown())
        if "<!-- configs -->" in markdown:
            markdown = markdown.replace("<!-- configs -->", configs(root))
        return fill(markdown, root).replace("](../results/", "](results/")
    except ValueError as error:
        raise PluginError(str(error)) from error


def other_results(pages: str, root: Path) -> str:
    """A section for each file of results that the pages do not name: title, pictures, and the marker of its table."""
    sections = []
    files = sorted((root / "results").glob("*.json"))
    for file in files:
        name = file.relative_to(root).as_posix()
        if re.search(rf"results:\s*{re.escape(name)}\b", pages):
            continue
        shown = [p.relative_to(root).as_posix() for p in _pictures(root) if _file_of(p, files) == file]
        pictures = [f"![{Path(path).stem.replace('_', ' ')}]({path})\n" for path in shown if f"{path})" not in pages]
        title = Results.read(file).what
        sections += [f"## {title}", "", *pictures, f"<!-- results: {name} -->", "<!-- /results -->", ""]
    return "\n".join(sections)


def _file_of(picture: Path, files: list[Path]) -> Path | None:
    """The file of results that a picture belongs to: the one with the longest name that its own begins with."""
    return max((f for f in files if picture.stem.startswith(f.stem)), key=lambda f: len(f.stem), default=None)


def configs(root: Path) -> str:
    """A table of the configs that state a claim: file, first sentence of its header, and of its claim.

    Those that state none are a user's own; the tests see to it that ours do.
    """
    lines = ["| config | what it is | claim |", "| --- | --- | --- |"]
    files = sorted((root / "configs").rglob("*.yaml"), key=lambda file: (len(file.parts), file))
    for file in files:
        header = _header(file) if file.parent.name != "base" else None
        if header:
            lines.append(f"| `{file.relative_to(root / 'configs').as_posix()}` | {' | '.join(header)} |")
    return "\n".join(lines)


def _header(file: Path) -> tuple[str, str] | None:
    """First sentence of the header of a config, and the first of its claim; None without a claim."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    comment = [line.lstrip("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    paragraphs = " ".join(line or "\n" for line in comment).split("\n")
    claims = [text.strip().removeprefix("Claim: ") for text in paragraphs if text.strip().startswith("Claim: ")]
    return (_sentence(paragraphs[0]), _sentence(claims[0])) if claims else None


def _sentence(text: str) -> str:
    # A point in a number, a file name or "et al." ends no sentence, and neither does a mark in parentheses.
    return (
        re.split(r"(?<=[.;:])(?<!\bal\.)\s(?![^()]*\))", text.strip(), maxsplit=1)[0].rstrip(";:.").replace("|", "\\|")
    )


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).resolve().parent


def _pictures(root: Path) -> list[Path]:
    return sorted(path for path in (root / "results").iterdir() if path.suffix in PICTURES)
