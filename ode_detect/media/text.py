"""Text files that a user brings: in whatever encoding they were saved, and no deeper or larger than they may be."""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .errors import DatasetError
from .names import is_file

# The standard that an encoding's name stands for in practice: programs write its larger successor under the old name.
_SUCCESSORS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}
# Codecs of Python that no text file is saved in; some of them take quadratic time.
_NO_FILES = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"})
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.:-]*)["']""")
# Containers within containers. COCO JSON has six at most; Python itself gives up at about a thousand.
_DEEPEST = 32
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALL_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, with a byte order mark or without, or UTF-16 or UTF-32.

    Raises:
        DatasetError: it cannot be opened, or is in another encoding.
    """
    return _decoded(path, _bytes(path))


def read_json(path: Path) -> Any:
    """Read JSON in any encoding of `read_text`.

    Whole numbers beyond 64 bits become floating point (of hundreds of digits: infinity).

    Raises:
        DatasetError: it cannot be opened, is no JSON, or is nested more than 32 deep.
    """
    text = _decoded(path, _bytes(path))
    data = text.encode()
    try:
        # A function of ours for each number, and a walk through all values, only where the bytes give a reason.
        content = json.loads(text, parse_int=_whole if b"0" * 19 in data.translate(_ALL_ZEROS) else None)
        deep = _may_be_deep(data) and _is_deep(content)
    except RecursionError:
        deep = True
    except ValueError as error:
        raise DatasetError(f"{path} is no JSON ({error}). Export it again, or correct that place.") from error
    if deep:
        raise DatasetError(
            f"JSON of annotations nests lists and objects at most {_DEEPEST} deep, and {path} is deeper. "
            "Export it again."
        )
    return content


def read_xml(path: Path) -> ElementTree.Element:
    """Read XML, in the encoding that it declares if Python knows it, else in any of `read_text`.

    Raises:
        DatasetError: it cannot be opened, is no XML, or defines entities, which may unfold to gigabytes.
    """
    data = _bytes(path)
    text = _decoded(path, data, _declared(data))
    if "<!ENTITY" in text:
        raise DatasetError(f"XML of annotations defines no entities, and {path} does. Take <!ENTITY ...> out of it.")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{path} is not XML ({error}). Correct it, or leave it out.") from error


def is_ascii(path: Path) -> bool:
    """Whether every program reads a file alike, whatever encoding it expects."""
    return path.read_bytes().isascii()


def _bytes(path: Path) -> bytes:
    # A pipe or a device might never end.
    if not is_file(path):
        raise DatasetError(f"{path} is not there, or is no file to be read. Check the path.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be opened ({error}). Check the path.") from error


def _decoded(path: Path, data: bytes, declared: str = "") -> str:
    # By byte order mark or, without one, by where the zeros of the first characters are.
    found = json.detect_encoding(data)
    if declared and found == "utf-8":
        # Some editors save UTF-8 under any declaration.
        with contextlib.suppress(UnicodeError, LookupError):
            return data.decode(declared)
    try:
        return data.decode(found)
    except UnicodeError as error:
        raise DatasetError(
            f"a text file is UTF-8, and {path} is not ({error}). Open it in an editor, and save it as UTF-8."
        ) from error


def _declared(data: bytes) -> str:
    """The encoding that XML declares; "" for none, and for one in which the declaration could not be read as ASCII."""
    match = _DECLARED.match(data[:1024])
    name = match[1].decode("ascii") if match else ""
    try:
        name = codecs.lookup(name).name if name else ""
    except LookupError:
        return ""
    return "" if name in _NO_FILES or name.startswith(("utf-16", "utf-32")) else _SUCCESSORS.get(name, name)


def _whole(digits: str) -> int | float:
    value = int(digits) if len(digits) <= 20 else float(digits)
    return value if -(2**63) <= value < 2**63 else float(value)


def _may_be_deep(data: bytes) -> bool:
    """Whether more brackets stand within one another than may; those in strings count too, so that it is no proof."""
    brackets = data.translate(None, _NO_BRACKETS)
    for _ in range(_DEEPEST // 2):  # each time the innermost level, or two of different brackets
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(_DEEPEST):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [value for values in inside for value in values]
    return any(isinstance(one, (dict, list)) for one in level)
