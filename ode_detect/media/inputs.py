"""Which pictures and videos a user means by files, folders and globs, and where what is made of each goes."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
VIDEOS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm"}
    | {".wmv"}
)


@dataclass(frozen=True)
class Input:
    """A picture or a video.

    Attributes:
        path: the file, as the user would call it.
        name: relative path for what is made of it, without clashes: "sunny/1.jpg".
        video: whether it is read as a video.
    """

    path: Path
    name: Path
    video: bool


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        inputs: pictures and videos, in the order given, folders sorted.
        problems: (path, what is wrong), for a path that is not there or a folder without pictures and videos.
    """

    inputs: tuple[Input, ...]
    problems: tuple[tuple[str, str], ...]


def find_inputs(given: Sequence[str], *, skip: Sequence[str] = ()) -> Found:
    """Find the pictures and videos that a user names.

    A folder is searched with its subfolders for files with the suffixes of `PICTURES` and `VIDEOS`; hidden ones are
    left out. A file that is named is taken whatever its suffix. What is given twice is taken once.

    Args:
        given: files, folders, globs (with ``**`` for any subfolders).
        skip: names of folders that are not searched when one of the files that follow is in the same folder:
            ``("drawn", "predictions.json")`` leaves out a ``drawn`` next to a ``predictions.json``.
    """
    files: dict[str, Path] = {}
    problems: list[tuple[str, str]] = []
    real = functools.cache(os.path.realpath)
    for pattern in given:
        # Path.glob takes no absolute pattern.
        fitting = [] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)  # noqa: PTH207
        paths = [Path(pattern)] if os.path.lexists(pattern) else sorted(map(Path, fitting))
        if not paths:
            wild = glob.has_magic(pattern)
            problems.append((pattern, "fits no file." if wild else "is not there."))
        for path in paths:
            found = _in_folder(path, skip) if path.is_dir() else [path]
            if not found and len(paths) == 1:
                problems.append((pattern, "is a folder without pictures and videos."))
            for file in found:
                # Without ".." and links in front, so that one file has one name, in one folder with the others.
                files.setdefault(os.path.join(real(str(file.parent)), file.name), file)  # noqa: PTH118  of very many
    names = _names(list(files))
    return Found(
        tuple(Input(file, names[key], file.suffix.lower() in VIDEOS) for key, file in files.items()), tuple(problems)
    )


def first_overwritten(targets: Iterable[Path], inputs: Iterable[Path]) -> tuple[Path, Path] | None:
    """The first of the files that are to be written which is one of those that are read, with what it is read as."""
    there = {}
    for target in targets:
        with contextlib.suppress(OSError, ValueError):
            found = target.lstat()
            there[found.st_dev, found.st_ino] = target
    for path in inputs if there else ():
        for look in (path.stat, path.lstat):
            with contextlib.suppress(OSError, ValueError):
                found = look()
                if (found.st_dev, found.st_ino) in there:
                    return there[found.st_dev, found.st_ino], path
    return None


def _in_folder(folder: Path, skip: Sequence[str]) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        ours = bool(skip) and any(name in files for name in skip[1:])
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (ours and f == skip[0]))
        suffixes = PICTURES | VIDEOS
        found += [
            Path(root, file)
            for file in sorted(files)
            if not file.startswith(".") and Path(file).suffix.lower() in suffixes
        ]
    return found


def _names(paths: list[str]) -> dict[str, Path]:
    """Relative to the folder that all of them have in common, so that equal names in two folders stay apart."""
    if not paths:
        return {}
    common = os.path.commonpath([str(Path(path).parent) for path in paths])
    return {path: Path(os.path.relpath(path, common)) for path in paths}
