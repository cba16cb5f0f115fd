"""Names of files and classes as other systems write them: decomposed, with backslashes, in several lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

# Control characters, line breaks, halves of characters, and what is none: no file of text and no drawing holds them.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def one_line(name: str) -> str:
    """A name as it can be printed and drawn: line breaks and what is unprintable become a blank; see `same_name`."""
    return same_name(_UNPRINTABLE.sub(" ", name))


def same_name(name: str) -> str:
    """The composed form of a name (NFC). macOS writes it decomposed, which looks the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    r"""A name of a file with its bytes that are no UTF-8 written out, as in ``caf\udce9.jpg``."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that is too long to be one, for pipes and devices."""
    try:
        return path.is_file()
    except OSError:
        return False


def by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, list[str]]:
    """The files of a folder that have one of these suffixes, in any case: `same_name` of the stem -> names, sorted.

    Hidden files are left out: macOS puts a ``._p1.xml`` next to each ``p1.xml`` on drives of other systems.
    """
    wanted = frozenset(suffixes)
    found: dict[str, list[str]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in wanted and not file.name.startswith("."):
            found.setdefault(same_name(file.stem), []).append(file.name)
    return found


def other_spellings(folder: Path, names: Iterable[str]) -> dict[str, str]:
    r"""Find the files that are meant by names that are not there as they are written.

    Args:
        folder: where they are.
        names: paths in it. Those of ASCII without a backslash are taken as they are.

    Returns:
        Name -> path of the file in the folder, for each name that is not there where another spelling is: composed or
        decomposed, ``/`` for ``\``.
    """
    inside: dict[Path, dict[str, str]] = {}
    found: dict[str, str] = {}
    for name in names:
        if (name.isascii() and "\\" not in name) or is_file(folder / name):
            continue
        here = folder
        for part in Path(name.replace("\\", "/")).parts:
            if here not in inside:
                inside[here] = _listed(here)
            if part != ".." and same_name(part) not in inside[here]:
                break
            here = here / inside[here].get(same_name(part), part)
        else:
            if is_file(here):
                found[name] = str(here.relative_to(folder))
    return found


def _listed(folder: Path) -> dict[str, str]:
    try:
        return {same_name(path.name): path.name for path in folder.iterdir()}
    except (OSError, ValueError):
        return {}
