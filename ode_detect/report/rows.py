"""One row of results, and one comparison of two rows: what is checked before a number is believed."""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .metrics import names, quantity

ROLES = ("ode", "twin", "ablation", "baseline", "floor")
Kind = TypeVar("Kind")


class ResultsError(ValueError):
    """A result that must not be written, read, merged or shown as it is."""


@dataclass(frozen=True)
class Row:
    """The numbers of one network, trained with one seed; or of one side of a benchmark.

    Attributes:
        name: The network.
        role: One of ``ROLES``.
        seed: Random seed of the training.
        config: The file that the network was trained by, or the section of the benchmark.
        metrics: How good it is. ``AP...``, precision, recall, f1, error, top1, delta1 and the like lie in [0, 1].
        cost: What it costs: parameters, macs, evaluations, latency_ms, train_step_ms, train_memory_mib, train_minutes;
            ``kept_mib`` is what a forward pass keeps for its backward pass.
        case: Of one side of a benchmark, what the sides did alike; its name then begins with it.

    Raises:
        ResultsError: A field has the wrong type, an unknown role, or a number that is not finite or out of range.
    """

    name: str
    role: str
    seed: int
    config: str
    metrics: Mapping[str, float]
    cost: Mapping[str, float] = field(default_factory=dict)
    case: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        texts = dict.fromkeys(("name", "role", "config", "case"), str)
        check_types(self, f"row {self.name!r}", **texts, seed=int, metrics=Mapping, cost=Mapping)
        if self.case and not self.side:
            raise ResultsError(f"the name of a side is CASE: SIDE; {self.name!r} is not of {self.case!r}. Name it so.")
        if not self.name:
            raise ResultsError("a row needs the name of its network; it is empty. Fill in `name`.")
        if self.role not in ROLES:
            raise ResultsError(unknown_name(f"role of row {self.name!r}", self.role, ROLES))
        metrics = {name: _metric(f"metric {name} of row {self.name!r}", name, v) for name, v in self.metrics.items()}
        cost = {name: _number(f"cost {name} of row {self.name!r}", v) for name, v in self.cost.items()}
        for name, value in cost.items():
            if value < 0:
                raise ResultsError(
                    f"a cost must be 0 or more; {name} of row {self.name!r} is {value}. Measure it again."
                )
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "cost", cost)

    @property
    def side(self) -> str:
        """What the row is called within its case."""
        if not self.case:
            return self.name
        return self.name.removeprefix(f"{self.case}: ") if self.name.startswith(f"{self.case}: ") else ""


@dataclass(frozen=True)
class Comparison:
    """One ratio between two rows, and what was aimed at.

    Attributes:
        case: What both sides did.
        ours: Name of a row.
        other: Name of the row that it is compared with.
        quantity: What is compared: a cost (``latency_ms``, ``kept_mib``), or a metric of ``ours`` that is already
            relative to the other side (``gradient_difference``).
        ratio: Ours over the other; of times, the median over the rounds of a measurement.
        low: First quartile over the rounds; the ratio itself where there are none.
        high: Third quartile.
        aim: The ratio should be at most this; None if it is only reported.

    Raises:
        ResultsError: A field has the wrong type, or a number that is not finite or below 0.
    """

    case: str
    ours: str
    other: str
    quantity: str
    ratio: float
    low: float
    high: float
    aim: float | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        what = f"the comparison {self.case!r}"
        check_types(self, what, case=str, ours=str, other=str, quantity=str)
        for name in ("ratio", "low", "high", *(["aim"] if self.aim is not None else [])):
            value = _number(f"{name} of {what}", getattr(self, name))
            if value < 0:
                raise ResultsError(f"a ratio must be 0 or more; {name} of {what} is {value}. Measure it again.")
            object.__setattr__(self, name, value)

    @property
    def sides(self) -> tuple[str, str]:
        """What ours and the other are called within the case."""
        return self.ours.removeprefix(f"{self.case}: "), self.other.removeprefix(f"{self.case}: ")

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None if there is none."""
        return None if self.aim is None else self.ratio <= self.aim


def read_json(path: Path, *, what: str, missing: str, broken: str) -> Any:
    """Read a file of JSON.

    Args:
        path: The file.
        what: What it holds, for the message.
        missing: What to do if it cannot be read.
        broken: What to do if it is no JSON.

    Raises:
        ResultsError: One of the two.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{what} are read from a file; {path}: {error.strerror}. {missing}") from None
    except ValueError as error:
        raise ResultsError(f"a file of {what} must be JSON; {path}: {error}. {broken}") from None


@contextmanager
def built_from(path: Path, *, what: str) -> Iterator[None]:
    """Name the file in the errors of building what was read from it.

    Args:
        path: The file.
        what: What it should hold, for the message.

    Raises:
        ResultsError: It breaks a rule, or holds something else.
    """
    try:
        yield
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from None
    except (TypeError, ValueError, KeyError) as error:
        raise ResultsError(f"{path} does not hold {what} ({error}). Evaluate again.") from None


def _metric(what: str, name: str, value: object) -> float:
    spelt = {known.lower(): known for known in names()}.get(name.lower(), name)
    if spelt != name:
        raise ResultsError(f"unknown {what}; did you mean {spelt}? Metrics carry the field's names.")
    number = _number(what, value)
    if quantity(name).is_fraction and not 0 <= number <= 1:
        hint = "Divide percent by 100." if 1 < number <= 100 else "Leave out a metric that has no value."
        raise ResultsError(f"{what} must be a fraction in [0, 1]; it is {number}. {hint}")
    return number


def _number(what: str, value: object) -> float:
    """Return a plain Python number; NumPy's are accepted."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ResultsError(f"{what} must be a finite number; it is {value!r}. Leave it out if it has no value.")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_types(value: object, what: str, /, **types: type) -> None:
    """See that attributes have their types; ``what`` says in the message whose they are."""
    for name, kind in types.items():
        found = getattr(value, name)
        if not isinstance(found, kind) or isinstance(found, bool) or (kind is Sequence and isinstance(found, str)):
            raise ResultsError(
                f"`{name}` of {what} must be {kind.__name__}; it is {type(found).__name__} ({found!r}). Correct it."
            )


def build(kind: type[Kind], value: Any, **parts: Any) -> Kind:
    """A dataclass from a JSON object; fields named in ``parts`` are built in turn, by what is given there.

    Raises:
        ResultsError: it is no object, or has other keys than the fields.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise ResultsError(f"{kind.__name__} must be an object; it is {type(value).__name__}. Evaluate again.")
    for key in value:
        if key not in known:
            raise ResultsError(unknown_name(f"key of {kind.__name__}", key, known))
    missing = [name for name in known if name not in value]
    if missing:
        raise ResultsError(f"{kind.__name__} must have {', '.join(known)}; {', '.join(missing)} is missing.")
    return kind(**{key: parts[key](part) if key in parts else part for key, part in value.items()})


def check_fraction(what: str, value: object) -> float:
    """See that a number lies in [0, 1]; ``what`` says in the message what it is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ResultsError(f"{what} must be a number in [0, 1]; it is {value!r}. Correct it.")
    return float(value)


def check_count(what: str, value: object) -> None:
    """See that a number is whole and 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ResultsError(f"{what} must be a whole number of 0 or more; it is {value!r}. Correct it.")


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """Say that a name is unknown, list those that are known, and suggest the nearest."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "use one of them."
    return f"unknown {what}: {name!r}; known are {', '.join(known)}; {hint}"
