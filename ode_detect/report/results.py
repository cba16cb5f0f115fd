"""The one shape of every number that is claimed: what was measured, by which command, on which machine.

A file holds one ``Results``; a row is one network, one seed, or one side of a benchmark, whose ratios are then stated
as comparisons of rows. Tables are written from it and never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ode_detect.media.files import write_text

from .protocol import LATENCY, Clause, Protocol, from_json, in_words, joined, renamed, to_json
from .rows import Comparison, ResultsError, Row, check_types, read_json, unknown_name

# What is compared within one process only.
_TIMES = ("latency_ms", "pictures_per_second", "train_step_ms")


@dataclass(frozen=True)
class Results:
    """Rows that may be compared, because one protocol made them.

    Attributes:
        what: What was measured, the title of the table.
        command: The command that gives these numbers again.
        commit: The commit it ran on, with ``-dirty`` if files differed from it.
        date: The day, ISO 8601.
        machine: Processor, cores and versions.
        protocol: Data, split, and how the metrics are computed, clause by clause.
        rows: One per network and seed.
        comparisons: The ratios that a benchmark states between its rows.

    Raises:
        ResultsError: A field has the wrong type, there is no row, two rows have one name and one seed, or a comparison
            names a row that is not there.
    """

    what: str
    command: str
    commit: str
    date: str
    machine: Mapping[str, Any]
    protocol: Protocol
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        texts = dict.fromkeys(("what", "command", "commit", "date"), str)
        lists = dict.fromkeys(("protocol", "rows", "comparisons"), Sequence)
        check_types(self, "results", **texts, machine=Mapping, **lists)
        if not all(isinstance(clause, Clause) for clause in self.protocol):
            raise ResultsError("the protocol of results is made of clauses; give each as Clause(key, text).")
        object.__setattr__(self, "protocol", tuple(self.protocol))
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "comparisons", tuple(self.comparisons))
        object.__setattr__(self, "machine", dict(self.machine))
        if not self.rows:
            raise ResultsError(f"results need at least one row; {self.what!r} has none. Add the rows before writing.")
        seen = set()
        for row in self.rows:
            if (row.name, row.seed) in seen:
                raise ResultsError(
                    f"a network and a seed may occur once; {row.name!r} with seed {row.seed} occurs twice in "
                    f"{self.what!r}. Leave one out, or give it another name."
                )
            seen.add((row.name, row.seed))
        names = [row.name for row in self.rows]
        for comparison in self.comparisons:
            for name in (comparison.ours, comparison.other):
                if name not in names:
                    raise ResultsError(unknown_name(f"row of the comparison {comparison.case!r}", name, names))

    def write(self, path: str | Path) -> None:
        """Write the results as JSON; a reader never sees half a file."""
        value = {key: part for key, part in asdict(self).items() if key != "comparisons" or part}
        value["protocol"] = to_json(self.protocol)
        # Most rows are of no case.
        value["rows"] = [{k: v for k, v in row.items() if k != "case" or v} for row in value["rows"]]
        write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def section(self, config: str) -> Results:
        """The rows of one config, or of one section of a benchmark, and the comparisons within them.

        Raises:
            ResultsError: There is no such row.
        """
        configs = list(dict.fromkeys(row.config for row in self.rows))
        if config not in configs:
            raise ResultsError(unknown_name(f"section of {self.what!r}", config, configs))
        rows = tuple(row for row in self.rows if row.config == config)
        names = {row.name for row in rows}
        return replace(self, rows=rows, comparisons=tuple(c for c in self.comparisons if {c.ours, c.other} <= names))

    @classmethod
    def read(cls, path: str | Path) -> Results:
        """Read results from a JSON file, or from the ``results.json`` of a run folder.

        Raises:
            ResultsError: The file is missing, is no JSON, or breaks a rule of ``Results`` or ``Row``.
        """
        path = Path(path)
        path = path / "results.json" if path.is_dir() else path
        value = read_json(path, what="results", missing="Check the path.", broken="Write it again.")
        try:
            _check_keys(cls, value, "the file")
            if not isinstance(value["rows"], list):
                raise ResultsError("`rows` must be a list; it is not. Write one object per network and seed.")
            for index, row in enumerate(value["rows"]):
                _check_keys(Row, row, f"row {index}")
            comparisons = value.get("comparisons", [])
            for index, comparison in enumerate(comparisons):
                _check_keys(Comparison, comparison, f"comparison {index}")
            return cls(
                **{
                    **value,
                    "protocol": from_json(value["protocol"]),
                    "rows": tuple(_row(row, of_cases=bool(comparisons)) for row in value["rows"]),
                    "comparisons": tuple(Comparison(**comparison) for comparison in comparisons),
                }
            )
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}") from None


def merge(paths: Iterable[str | Path], names: Sequence[str] = ()) -> Results:
    """Join the results of several runs, for example the seeds of one comparison.

    Where the runs differ in command, commit or machine, the values are listed one after another; the date is the last.

    Args:
        paths: Files of results or run folders.
        names: One for each path, which its rows are called by ("dial" makes "euler_2" into "dial_euler_2"); "" leaves
            them. Such parts may differ in ``what`` and ``protocol``, and both are stated. Times, which were measured in
            different processes, are left out.

    Raises:
        ResultsError: There is no path, the runs differ in ``what`` or ``protocol`` and have no names, a network and
            seed occur twice, or a part with a name is a benchmark.
    """
    paths = [Path(path) for path in paths]
    if not paths or (names and len(names) != len(paths)):
        raise ResultsError(
            f"there must be something to merge, and a name for each or none; there are {len(paths)} paths and "
            f"{len(names)} names. Give run folders or results.json files."
        )
    parts = [Results.read(path) for path in paths]
    for field in () if names else ("what", "protocol"):
        for path, part in zip(paths, parts, strict=True):
            first, other = _text(parts[0], field), _text(part, field)
            if first != other:
                raise ResultsError(
                    f"only results with one {field} may be merged; {paths[0]} has {first!r} and {path} has {other!r}. "
                    "Merge those that can be compared, or give each a name."
                )
    if names:
        parts = [_named(part, name) for part, name in zip(parts, names, strict=True)]
    keys = dict.fromkeys(key for part in parts for key in part.machine)
    words = [name or "the others" for name in names] or [""] * len(parts)
    return Results(
        what="; ".join(dict.fromkeys(part.what for part in parts)),
        command="\n".join(dict.fromkeys(part.command for part in parts)),
        commit=", ".join(dict.fromkeys(part.commit for part in parts)),
        date=max(part.date for part in parts),
        machine={key: _joined(part.machine.get(key) for part in parts) for key in keys},
        protocol=joined([(word, part.protocol) for word, part in zip(words, parts, strict=True)]),
        rows=tuple(row for part in parts for row in part.rows),
        comparisons=tuple(comparison for part in parts for comparison in part.comparisons),
    )


def _text(part: Results, field: str) -> str:
    value = getattr(part, field)
    return value if isinstance(value, str) else in_words(value)


def _named(part: Results, name: str) -> Results:
    def row(row: Row) -> Row:
        cost = {key: value for key, value in row.cost.items() if key not in _TIMES}
        return replace(row, name=f"{name}_{row.name}" if name else row.name, cost=cost)

    if part.comparisons:
        raise ResultsError(f"the ratios of a benchmark are not merged under names; {part.what!r} has some.")
    kept = tuple(clause for clause in part.protocol if clause.key != LATENCY)
    return replace(part, protocol=renamed(kept, name) if name else kept, rows=tuple(map(row, part.rows)))


def _row(value: Mapping[str, Any], *, of_cases: bool) -> Row:
    """A row as a file holds it; the case of rows before they had that field is in their names."""
    if of_cases and "case" not in value:
        return Row(**value, case=str(value["name"]).rpartition(": ")[0])
    return Row(**value)


def _joined(values: Iterable[Any]) -> Any:
    different = list(dict.fromkeys(value for value in values if value is not None))
    return different[0] if len(different) == 1 else "; ".join(map(str, different))


def _check_keys(kind: type[Row] | type[Comparison] | type[Results], value: object, what: str) -> None:
    known = [f.name for f in fields(kind)]
    if not isinstance(value, dict):
        raise ResultsError(f"{what} must be an object with the keys {', '.join(known)}; it is {type(value).__name__}.")
    for key in value:
        if key not in known:
            raise ResultsError(unknown_name(f"key of {what}", key, known))
    missing = [name for name in known if name not in value and name not in ("comparisons", "case")]
    if missing:
        raise ResultsError(f"{what} must have the keys {', '.join(known)}; {', '.join(missing)} is missing. Add it.")
