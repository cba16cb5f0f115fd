"""The reference of our config keys, read from the sources that add them: the comment above each key, and its default.

The source is parsed, not run, so that the documentation is built without torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .config_values import INTERVALS, REFUSED, UNUSED

# One in each room that has keys.
SOURCES = sorted(Path(__file__).parents[1].glob("*/config.py"))
# What stands in a comment as it would in a config: values, lists and mappings, and the names of keys.
_CODE = re.compile(r'"[^"]*"|\[\{.*?\}\]|\[[^\]]*\]|\{[^}]*\}|\b[A-Z]+(?:\.[A-Z][A-Z0-9_]*)+\b|\b[A-Z]+(?:_[A-Z]+)+\b')


class ConfigReferenceError(ValueError):
    """A config key that cannot be documented; the message says what to write where."""


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
        name: in full, such as ``MODEL.ODE.STEPS``.
        type: of the default: ``str``, ``int``, ``float``, ``bool`` or ``list``.
        default: as it is written in the source.
        comment: what it does, in one paragraph.
    """

    name: str
    type: str
    default: str
    comment: str

    @property
    def section(self) -> str:
        """What stands before the last dot; "" for a key of the top."""
        return self.name.rpartition(".")[0]


def read_keys(source: str | None = None) -> list[Key]:
    """The keys that the functions ``add_...(cfg)`` of a module add, in their order.

    Args:
        source: the text of the module; None reads the ``config.py`` of all rooms.

    Raises:
        ConfigReferenceError: a key without a comment just above it, or without a default that can be read.
    """
    if source is None:
        return [key for path in SOURCES for key in read_keys(path.read_text(encoding="utf-8"))]
    text = source
    lines = text.splitlines()
    keys = []
    for statement in _assignments(ast.parse(text)):
        name = ast.unparse(statement.targets[0]).removeprefix("cfg.")
        value = statement.value
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("CfgNode"):
            continue  # a section; its keys follow
        comment = _comment_above(lines, statement.lineno - 1)
        if not comment:
            raise ConfigReferenceError(
                f"every config key has a comment just above it, and {name} (line {statement.lineno}) has none. Write "
                "there what it does, with its unit or its values: the documentation is made of it."
            )
        keys.append(Key(name, _type(name, value), ast.get_source_segment(text, value) or "", comment))
    return keys


def to_markdown(keys: Iterable[Key]) -> str:
    """A section for each group of keys, and in it a heading, type, default and comment for each key."""
    groups: dict[str, list[Key]] = {}
    for key in keys:
        groups.setdefault(key.section, []).append(key)
    lines = []
    for section in sorted(groups):
        lines += [f"## {section or 'Top level'}", ""]
        for key in groups[section]:
            values = f", in `{INTERVALS[key.name]}`" if key.name in INTERVALS else ""
            head = f"{key.type}{values}, default `{key.default}`"
            lines += [f"### `{key.name}`", "", head, "", _in_code(key.comment), ""]
    return "\n".join(lines)


def unused_to_markdown() -> str:
    """A table of the keys and values of Detectron2 that are refused, and why."""
    refused = {f"`{key}`": why for key, why in UNUSED.items()}
    refused |= {f"`{key}: {value}`": why for (key, value), why in REFUSED.items()}
    return "\n".join(["| refused | since |", "| --- | --- |", *(f"| {key} | {why} |" for key, why in refused.items())])


def _assignments(module: ast.Module) -> Iterator[ast.Assign]:
    for function in module.body:
        if isinstance(function, ast.FunctionDef) and function.name.lstrip("_").startswith("add_"):
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("cfg."):
                    yield node


def _comment_above(lines: list[str], index: int) -> str:
    """The comment that ends in the line before ``index``, as one paragraph."""
    start = index
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return " ".join(line.strip().lstrip("#").strip() for line in lines[start:index])


def _type(name: str, value: ast.expr) -> str:
    chosen = value.body if isinstance(value, ast.IfExp) else value
    try:
        return type(ast.literal_eval(chosen)).__name__
    except ValueError as error:
        raise ConfigReferenceError(
            f"the default of a config key is a literal, and that of {name} is {ast.unparse(value)}. Write the value."
        ) from error


def _in_code(comment: str) -> str:
    return _CODE.sub(lambda found: f"`{found[0]}`", comment)
