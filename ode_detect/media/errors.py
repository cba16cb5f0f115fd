"""What is wrong with data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DatasetError(ValueError):
    """A data set that is not there or not as it should be; the message says what is expected where."""


@dataclass(frozen=True)
class Problem:
    """One rule that data break.

    Attributes:
        rule: what is wrong, as a plural: "boxes without width or height".
        where: each place, with what came in.
        done: what reading does about it ("dropped"); "" if it cannot go on.
    """

    rule: str
    where: tuple[str, ...]
    done: str = ""

    def __str__(self) -> str:
        """Count, rule, what is done, and the first places."""
        shown = "; ".join(self.where[:3]) + (f"; and {len(self.where) - 3} more" if len(self.where) > 3 else "")
        return f"{len(self.where)} {self.rule}{f', {self.done}' if self.done else ''}: {shown}"


def describe(problems: Sequence[Problem]) -> str:
    """One line for each problem, indented."""
    return "\n".join(f"  {problem}" for problem in problems)
