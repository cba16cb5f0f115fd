"""The networks that a config file describes: as it is, and by the lines of its header that name others.

A line gives a network a name and the keys in which it differs from the file::

    #   mnist_rknet: MODEL.ODE.METHOD rk4 MODEL.ODE.STEPS 1
    #     The RK-Net of Chen et al. 2018.

Lines that stand further in belong to the one above: one that begins with a config key goes on with its keys, others say
what the network is. ``NAME: as it is`` names the network of the file itself, which has the name of the file otherwise.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ROLE = "MODEL.ODE.ROLE"
_AS_IT_IS = "as it is"
_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")
# Characters that a header has at most.
_LONGEST = 2**20
_NAMED = re.compile(r"#   (?P<name>[\w-]+): (?P<keys>.+)")
_CONTINUED = re.compile(r"#     +(?P<text>\S.*)")
_COMMAND = re.compile(r"#   (?P<command>python tools/.+)")


@dataclass(frozen=True)
class Recipe:
    """One network of a config file.

    Attributes:
        name: of the network.
        file: the config.
        keys: KEY, VALUE, ... that make the network of the file; () for the file as it is.
        about: what the header says of it.
        beside: the name of its folder, beside that of the file; "" for that of the file.
        ending: of its folder, for a role that the header does not name.
    """

    name: str
    file: str
    keys: tuple[str, ...] = ()
    about: str = ""
    beside: str = ""
    ending: str = ""

    def settings(self) -> dict[str, str]:
        """The keys with their values."""
        return dict(zip(self.keys[::2], self.keys[1::2], strict=True))

    def folder(self, output: str) -> str:
        """Where its runs go.

        Args:
            output: OUTPUT_DIR of the file as it is.
        """
        return f"{Path(output).parent / self.beside if self.beside else Path(output)}{self.ending}"


def read_recipes(file: str | Path) -> dict[str, Recipe]:
    """The networks of a config by their names, that of the file as it is first.

    Raises:
        ValueError: a line of the header gives a key without a value, or a name that another line has.
    """
    lines = header(file)
    own = Recipe(Path(file).stem, str(file), about=_first_paragraph(lines))
    found: dict[str, Recipe] = {}
    for recipe in _named(lines, str(file)):
        if recipe.name in found or (not recipe.keys and own.name != Path(file).stem):
            raise ValueError(f"{file} names each of its networks once, and {recipe.name!r} is one too many; rename it.")
        if recipe.keys:
            found[recipe.name] = recipe
        else:
            own = Recipe(recipe.name, own.file, about=recipe.about or own.about)
    return {own.name: own, **found}


def in_role(recipe: Recipe, role: str, own_role: str) -> Recipe:
    """The same network in a role; with the name and folder that the header gives it, or else with the role appended.

    Args:
        recipe: the network.
        role: "ode", "twin" or "ablation".
        own_role: that of the file as it is.
    """
    settings = {key: value for key, value in recipe.settings().items() if key != _ROLE}
    settings |= {_ROLE: role} if role != own_role else {}
    named = read_recipes(recipe.file)
    for other in named.values():
        if {key: value for key, value in other.settings().items() if (key, value) != (_ROLE, own_role)} == settings:
            return other
    stem = recipe.name if recipe.keys else Path(recipe.file).stem
    keys = tuple(itertools.chain.from_iterable(settings.items()))
    return Recipe(f"{stem}_{role}", recipe.file, keys, beside=recipe.beside, ending=f"_{role}")


def moved(missing: str | Path) -> str:
    """Where the recipe of a config that is gone is now, as the end of a message; "" if no header beside it names it."""
    path = Path(missing)
    for file in sorted(file for file in path.parent.glob("*.yaml") if file.is_file()):
        try:
            recipe = read_recipes(file).get(path.stem)
        except (OSError, ValueError):
            continue
        if recipe and file != path:
            return f" {path.stem} is a network of {file} now: give that file{' and' if recipe.keys else ''} " + (
                f"{shlex.join(recipe.keys)}." if recipe.keys else "as it is."
            )
    return ""


def commands(file: str | Path) -> list[str]:
    """The commands in the header of a config, each in one line."""
    found: list[str] = []
    goes_on = False
    for line in header(file):
        match = _COMMAND.fullmatch(line)
        if match:
            found.append(match["command"])
        elif goes_on:
            found[-1] += f" {line.lstrip('# ')}"
        goes_on = bool(match or goes_on) and line.endswith("\\")
        if goes_on:
            found[-1] = found[-1].rstrip("\\ ")
    return found


def to_markdown(root: Path, configs: str) -> str:
    """A table of all networks of a folder of configs: name, what it is, and the command that runs it.

    A file whose header evaluates by ``--eval-only`` has weights that are published; so do its other networks.

    Args:
        root: the folder from which the commands are given.
        configs: the folder of the configs in it. Those below ``base`` are not run by themselves.
    """
    rows = ["| network | what it is | command |", "| --- | --- | --- |"]
    files = [file for file in (root / configs).rglob("*.yaml") if file.parent.name != "base" and states_claim(file)]
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        name = file.relative_to(root).as_posix()
        flags = " --eval-only" if any("--eval-only" in line for line in commands(file)) else ""
        for recipe in read_recipes(file).values():
            keys = [*recipe.keys, "OUTPUT_DIR", f"output/{recipe.name}"] if recipe.keys else []
            command = f"python tools/train_net.py{flags} {shlex.join(['--config-file', name, *keys])}"
            rows.append(f"| {recipe.name} | {_sentence(recipe.about)} | `{command}` |")
    return "\n".join(rows)


def states_claim(file: str | Path) -> bool:
    """Whether the header states a claim, as those of the project do; others are a user's own."""
    return any(line.startswith("# Claim: ") for line in header(file))


def header(file: str | Path) -> list[str]:
    """The lines of a config before its first key."""
    with Path(file).open(encoding="utf-8", errors="replace") as opened:
        lines = opened.read(_LONGEST).splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def _named(lines: Iterable[str], file: str) -> Iterable[Recipe]:
    """The networks that lines name, in their order."""
    found: list[tuple[str, list[str], list[str]]] = []
    inside = False
    for line in lines:
        named, continued = _NAMED.fullmatch(line), _CONTINUED.fullmatch(line)
        words = _words(named["keys"]) if named else None
        if named and words is not None:
            found.append((named["name"], words, []))
        elif inside and continued:
            words = _words(continued["text"])
            found[-1][1].extend(words or [])
            found[-1][2].extend([] if words else [continued["text"]])
        inside = bool((named and words is not None) or (inside and continued))
    for name, words, about in found:
        if len(words) % 2:
            raise ValueError(
                f"keys and values come in pairs, and {words[-1]} of {name} in the header of {file} has no value; write "
                "KEY VALUE."
            )
        yield Recipe(name, file, tuple(words), " ".join(about), beside=name if words else "")


def _words(text: str) -> list[str] | None:
    """KEY, VALUE, ... of a line; None for what is no such line."""
    if text == _AS_IT_IS:
        return []
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe
        return None
    return words if all(_KEY.fullmatch(key) for key in words[::2]) else None


def _first_paragraph(lines: Iterable[str]) -> str:
    text = itertools.takewhile(lambda line: line.strip("# "), lines)
    return " ".join(line.lstrip("# ") for line in text)


def _sentence(text: str) -> str:
    # A point in a number, in a file name or after "al" ends no sentence.
    return re.split(r"(?<=[.;])(?<!al\.)\s", text.strip(), maxsplit=1)[0].rstrip(";.").replace("|", "\\|")
