"""Annotations that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

from ode_detect.media.errors import DatasetError, Problem, describe


def refuse(problems: Sequence[Problem], source: object) -> None:
    """Stop at what reading cannot repair.

    Args:
        problems: what was found.
        source: the annotations, for the message.

    Raises:
        DatasetError: a problem has nothing done about it.
    """
    fatal = [problem for problem in problems if not problem.done]
    if fatal:
        raise DatasetError(
            f"{source} cannot be used as COCO JSON, or VOC XML, with its pictures:\n{describe(fatal)}\n"
            "Correct them, or have tools/check_dataset.py list all of them (and write a repaired copy by --fix)."
        )
