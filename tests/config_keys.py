"""Which keys a function adds to a config, and which keys the source of the package reads."""

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ode_detect.engine.config import default_values, flat
from ode_detect.engine.config_reference import read_keys

from .conftest import ROOT


def added(add: Callable[[CfgNode], None]) -> dict[str, Any]:
    """The keys that are not Detectron2's, or have another default there, with their defaults."""
    before, cfg = flat(get_cfg()), get_cfg()
    add(cfg)
    return {key: value for key, value in flat(cfg).items() if key not in before or before[key] != value}


def assert_documented(defaults: Mapping[str, Any]) -> None:
    """Assert that keys have their defaults in a whole config, and on the page of keys, with type and comment."""
    everything, page = default_values(), {key.name: key for key in read_keys()}
    for key, value in defaults.items():
        assert everything[key] == value, key
        assert eval(page[key].default, {}) == value, key
        assert page[key].type == type(value).__name__, key
        assert page[key].comment, key


@functools.cache
def keys_read() -> frozenset[str]:
    """The keys that the source reads as ``cfg.A.B``, or as ``a.B`` in a function that says ``a = cfg.A``."""
    found: set[str] = set()
    for path in (ROOT / "ode_detect").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found.update(_read_in(node))
    return frozenset(found)


def _read_in(function: ast.FunctionDef) -> Iterator[str]:
    names: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]
            for left, right in pairs:
                if isinstance(left, ast.Name) and (key := _key(right, {})):
                    names[left.id] = key
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and (key := _key(node, names)):
            yield key


def _key(node: ast.expr, names: dict[str, str]) -> str:
    """The key that an expression stands for; "" if it is none."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and node.attr != "cfg":
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in names:
        return ".".join([names[node.id], *parts])
    is_cfg = isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id == "cfg")
    return ".".join(parts) if is_cfg else ""
