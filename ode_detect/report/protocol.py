"""How numbers were made, clause by clause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .rows import ResultsError, check_types, unknown_name

# What a clause is about, where something looks for it.
TRAINING, TEST, LATENCY = "training", "test", "latency"
# Clauses whose text is the name of a row; they are shown with their key.
FULL_STEPS, FULL_PIECES = "full steps", "full pieces"
_NAMES_A_ROW = (FULL_STEPS, FULL_PIECES)


@dataclass(frozen=True)
class Clause:
    """One statement about how numbers were made.

    Attributes:
        key: What it is about, such as ``TRAINING``; "" where nothing looks for it.
        text: The statement, without "; ".
        part: What it holds for, where parts of the results differ in it; "" for all of them.

    Raises:
        ResultsError: A field is no text, or the text is empty.
    """

    key: str
    text: str
    part: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        check_types(self, "clause of a protocol", key=str, text=str, part=str)
        if not self.text:
            raise ResultsError(f"a clause of a protocol says something; {self.key!r} is empty. Leave it out.")

    def __str__(self) -> str:
        """The clause as readers see it."""
        said = f"{self.key}: {self.text}" if self.key in _NAMES_A_ROW else self.text
        return f"{self.part}: {said}" if self.part else said


Protocol = tuple[Clause, ...]
COSTS_OF_ONE_PICTURE = Clause("costs", "multiply-adds and evaluations of one test picture")
MINUTES = Clause("minutes", "minutes of training as each run logged them, whatever else the machine did")


def in_words(protocol: Iterable[Clause]) -> str:
    """The protocol in one line."""
    return "; ".join(map(str, protocol))


def clauses(key: str, texts: Iterable[str]) -> Protocol:
    """Several clauses about one thing."""
    return tuple(Clause(key, text) for text in texts)


def about(protocol: Iterable[Clause], key: str) -> Protocol:
    """The clauses with a key."""
    return tuple(clause for clause in protocol if clause.key == key)


def full_settings(protocol: Iterable[Clause]) -> list[str]:
    """The rows of a dial, or of several in one file, that are those of the full steps."""
    return [clause.text for clause in about(protocol, FULL_STEPS)]


def from_words(text: str) -> Protocol:
    """The clauses of a protocol that is one text, as files of results before clauses had keys hold it."""
    return tuple(map(_recognised, text.split("; ")))


def to_json(protocol: Iterable[Clause]) -> list[dict[str, str]]:
    """The protocol as a file holds it."""
    return [{key: value for key, value in asdict(clause).items() if value or key != "part"} for clause in protocol]


def from_json(value: Any) -> Protocol:
    """The protocol that a file holds: a list of clauses, or one text.

    Raises:
        ResultsError: It is something else.
    """
    if isinstance(value, str):
        return from_words(value)
    if not isinstance(value, list) or not all(isinstance(clause, Mapping) for clause in value):
        raise ResultsError("`protocol` must be a list of clauses; it is not. Give each a key and a text.")
    known = ("key", "text", "part")
    for clause in value:
        for key in clause:
            if key not in known:
                raise ResultsError(unknown_name("key of a clause of the protocol", key, known))
        if "key" not in clause or "text" not in clause:
            raise ResultsError(f"a clause of the protocol has a key and a text; one is {dict(clause)}. Add them.")
    return tuple(Clause(**clause) for clause in value)


def joined(protocols: Sequence[tuple[str, Protocol]]) -> Protocol:
    """The clauses of several protocols: in what they differ, with the name of each, then what they share.

    Args:
        protocols: Name and protocol.
    """
    stated = [(name, protocol, {str(clause) for clause in protocol}) for name, protocol in protocols]
    alike = [clause for clause in stated[0][1] if all(str(clause) in said for *_, said in stated)]
    shared = {str(clause) for clause in alike}
    own = [
        replace(clause, part=f"{name}: {clause.part}" if clause.part else name)
        for name, protocol, _ in stated
        for clause in protocol
        if str(clause) not in shared
    ]
    return (*own, *alike)


def renamed(protocol: Iterable[Clause], name: str) -> Protocol:
    """The protocol of rows that are called by a name from now on: "euler_2" is "dial_euler_2"."""
    return tuple(
        replace(clause, text=f"{name}_{clause.text}") if clause.key in _NAMES_A_ROW else clause for clause in protocol
    )


def _recognised(text: str) -> Clause:
    if names := re.fullmatch(rf"(?:(.+): )?({'|'.join(_NAMES_A_ROW)}): ([\w.-]+)", text):
        return Clause(names[2], names[3], names[1] or "")
    beginnings = {"trained ": TRAINING, "tested ": TEST, "latency: ": LATENCY}
    return Clause(next((key for words, key in beginnings.items() if text.startswith(words)), ""), text)
