"""The one shape of every number that is claimed: what was measured, by which command, on which machine.

A file holds one ``Results``; a row is one network, one seed, or one side of a benchmark, whose ratios are then stated
as comparisons of rows. Tables are written from it and never by hand.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ode_detect.report import markdown
from ode_detect.report.files import write_text
from ode_detect.report.rows import (
    FRACTIONS,
    Comparison,
    ResultsError,
    Row,
    check_types,
    is_fraction,
    read_json,
    shown_as,
    unknown_name,
)

ROLE_WORDS = {"ode": "ODE", "twin": "twin", "ablation": "ablation", "baseline": "baseline", "floor": "floor"}
# How a cost is shown: heading and factor.
COSTS = {
    "parameters": ("parameters (M)", 1e-6),
    "backbone_parameters": ("backbone parameters (M)", 1e-6),
    "macs": ("multiply-adds (G)", 1e-9),
    "evaluations": ("evaluations", 1.0),
    "backward_evaluations": ("backward evaluations", 1.0),
    "latency_ms": ("latency (ms)", 1.0),
    "pictures_per_second": ("pictures per second", 1.0),
    "train_step_ms": ("training step (ms)", 1.0),
    "train_memory_mib": ("training memory (MiB)", 1.0),
    "train_minutes": ("training (min)", 1.0),
    "kept_mib": ("kept for the gradient (MiB)", 1.0),
    "held_mib": ("held by the process (MiB)", 1.0),
}
# A table of more quantities than these leaves out the details, which are in the file.
_WIDEST = 12
_DETAILS = (
    *("AP75", "APs", "APm", "APl", "mask_AP75", "AP50_2007", "AP50_2010", "best_f1", "best_f1_threshold"),
    *("nll", "unfamiliar"),
    *("backbone_parameters", "backward_evaluations", "pictures_per_second", "train_minutes", "kept_mib", "held_mib"),
)
# Beside top1 these means over classes say little that is new.
_DETAILS_OF_CLASSIFIERS = ("precision", "recall", "f1")
# Columns of words, which are flush left.
_WORDS = ("network", "role", "case", "quantity")
_NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}
# What is compared within one process only.
_TIMES = ("latency_ms", "pictures_per_second", "train_step_ms")
_HEADINGS = {
    **{"ece": "ECE", "nll": "NLL", "top1": "top-1", "top5": "top-5"},
    **{"top1_half_step": "top-1, half the step", "top1_other_method": "top-1, other method"},
}


@dataclass(frozen=True)
class Results:
    """Rows that may be compared, because one protocol made them.

    Attributes:
        what: What was measured, the title of the table.
        command: The command that gives these numbers again.
        commit: The commit it ran on, see ``commit``.
        date: The day, ISO 8601.
        machine: See ``machine``.
        protocol: Data, split, and how the metrics are computed.
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
    protocol: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        texts = dict.fromkeys(("what", "command", "commit", "date", "protocol"), str)
        check_types(self, "results", **texts, machine=Mapping, rows=Sequence, comparisons=Sequence)
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
                    "rows": tuple(Row(**row) for row in value["rows"]),
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
            them. Such parts may differ in ``what`` and ``protocol``, and both are told. Times, which were measured in
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
            first, other = getattr(parts[0], field), getattr(part, field)
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
        protocol="; ".join(joined_protocol([(word, p.protocol) for word, p in zip(words, parts, strict=True)])),
        rows=tuple(row for part in parts for row in part.rows),
        comparisons=tuple(comparison for part in parts for comparison in part.comparisons),
    )


def joined_protocol(protocols: Sequence[tuple[str, str]]) -> list[str]:
    """The clauses of several protocols: in what they differ, with the name of each, then what they share.

    Args:
        protocols: Name and protocol.
    """
    stated = [(name, protocol.split("; ")) for name, protocol in protocols]
    alike = [clause for clause in stated[0][1] if all(clause in clauses for _, clauses in stated)]
    return [*(f"{name}: {clause}" for name, clauses in stated for clause in clauses if clause not in alike), *alike]


def _named(part: Results, name: str) -> Results:
    def row(row: Row) -> Row:
        cost = {key: value for key, value in row.cost.items() if key not in _TIMES}
        return replace(row, name=f"{name}_{row.name}" if name else row.name, cost=cost)

    if part.comparisons:
        raise ResultsError(f"the ratios of a benchmark are not merged under names; {part.what!r} has some.")
    clauses = [clause for clause in part.protocol.split("; ") if not clause.startswith("latency: ")]
    if name:
        clauses = [re.sub(r"^(full \w+: )", rf"\g<1>{name}_", clause) for clause in clauses]
    return replace(part, protocol="; ".join(clauses), rows=tuple(map(row, part.rows)))


def machine() -> dict[str, Any]:
    """Describe this machine: ``cpu`` (model), ``cores`` (usable by this process), ``python``, ``torch`` if there."""
    described: dict[str, Any] = {"cpu": _cpu_model(), "cores": _cores(), "python": platform.python_version()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        described["torch"] = importlib.metadata.version("torch")
    return described


def commit(root: str | Path | None = None) -> str:
    """Name the commit of a work tree.

    Args:
        root: A folder of the work tree; None takes the one that this package lies in, if it is part of one.

    Returns:
        The hash, with ``-dirty`` if a tracked file outside ``results/`` differs from it (results are what a run writes,
        so they say nothing about what ran), or ``unknown`` without git.
    """
    folder = Path(__file__).parent if root is None else Path(root)
    tracked = root is not None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
    head = _git(folder, "rev-parse", "--verify", "HEAD") if tracked else None
    if not head:
        return "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return f"{head[:12]}-dirty" if changed else head[:12]


def to_markdown(results: Results, *, columns: Sequence[str] = (), page: str = "") -> str:
    """Write the results as a Markdown table; protocol, commands and machine are folded away below it.

    Seeds of one network become one line, mean and standard deviation. Only columns that have a number are shown; one
    that says the same in each row stands in the line below the table instead.

    Args:
        results: What to show.
        columns: Metrics and costs by their names in the file, and ``role``, in this order; () for the usual ones.
        page: The address of the page that has protocol and commands. The table then has a link to it, and no fold.
    """
    header, lines, alike = _without_constants(*_table(results, columns))
    rows = [list(map(markdown.text, line)) for line in [header, *lines]]
    rule = ["---" if name in _WORDS else "---:" for name in header]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
    said = " ".join(map(markdown.text, [*_notes(results), *alike]))
    if page:
        address = markdown.address(page)
        said = f"{said} Protocol and commands: [{markdown.text(page)}]({address}).".lstrip()
        return f"{table}\n\n{said}"
    return "\n\n".join([table, *([said] if said else []), _fold(results)])


def _without_constants(header: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Take out the columns that say the same in each row, but the first; what they say, in a sentence, is the third."""
    constant = {i for i in range(1, len(header)) if len(lines) > 1 and len({line[i] for line in lines}) == 1}
    # The number of seeds is in the notes.
    alike = [f"{header[i]} {lines[0][i]}" for i in sorted(constant) if lines[0][i] and header[i] != "seeds"]
    kept = [i for i in range(len(header)) if i not in constant]
    sentence = [f"The same in each row: {'; '.join(alike)}."] if alike else []
    return [header[i] for i in kept], [[line[i] for i in kept] for line in lines], sentence


def _fold(results: Results) -> str:
    hidden = _hidden(results)
    ticks = markdown.fence(results.command)
    content = [f"- {markdown.text(clause)}" for clause in results.protocol.split("; ")]
    content += ["", f"{ticks}text", *results.command.splitlines(), ticks, ""]
    content.append(" ".join(map(markdown.text, [*hidden, f"Made with {_origin(results)}."])))
    return markdown.fold("Protocol, commands and machine", content)


def to_text(results: Results) -> str:
    """Write the same table as ``to_markdown`` for a terminal."""
    header, lines = _table(results)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    notes = [*_notes(results), *_hidden(results)]
    notes += [f"protocol: {results.protocol}", f"command: {results.command}", _origin(results)]
    return "\n".join([results.what, "", row(header), row(["-" * w for w in widths]), *map(row, lines), "", *notes])


def _table(results: Results, columns: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Lay out heading and lines: network, role, seeds (if any has several), metrics, costs; or ratios."""
    if results.comparisons:
        return _comparison_table(results)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.name, row.role, row.config), []).append(row)
    seeds = any(len(group) > 1 for group in groups.values())
    role = not columns or "role" in columns
    quantities = [name for name in columns if name != "role"] or [name for names in _shown(results) for name in names]
    header = ["network", *(["role"] if role else []), *(["seeds"] if seeds else []), *map(heading, quantities)]
    lines = []
    for (name, role_name, _), group in groups.items():
        line = [name, *([ROLE_WORDS[role_name]] if role else []), *([str(len(group))] if seeds else [])]
        lines.append([*line, *(_cell(group, quantity) for quantity in quantities)])
    return header, lines


def _cell(group: Sequence[Row], quantity: str) -> str:
    """A metric of the seeds of one network, with its spread; or the mean of a cost."""
    factor, form = shown_as(quantity)
    metrics = [row.metrics[quantity] * factor for row in group if quantity in row.metrics]
    costs = [row.cost[quantity] * COSTS.get(quantity, ("", 1.0))[1] for row in group if quantity in row.cost]
    return short(statistics.fmean(costs)) if costs else _mean(metrics, form)


def _quantities(results: Results) -> tuple[list[str], list[str]]:
    metrics = ordered((name for row in results.rows for name in row.metrics), FRACTIONS)
    return metrics, ordered((name for row in results.rows for name in row.cost), tuple(COSTS))


def _shown(results: Results) -> tuple[list[str], list[str]]:
    """The metrics and costs of a table: all, or without the details if they are too many."""
    metrics, costs = _quantities(results)
    if len(metrics) + len(costs) <= _WIDEST:
        return metrics, costs
    details = _DETAILS + (_DETAILS_OF_CLASSIFIERS if "top1" in metrics else ())
    return [name for name in metrics if name not in details], [name for name in costs if name not in details]


def _comparison_table(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = {row.name: row for row in results.rows}
    lines = []
    for comparison in results.comparisons:
        sides = [_side(rows[name], comparison) for name in (comparison.ours, comparison.other)]
        ratio = _ratio(comparison.ratio)
        if comparison.low != comparison.high:
            ratio += f" ({_ratio(comparison.low)} to {_ratio(comparison.high)})"
        verdict = {None: "", True: ", met", False: ", missed"}[comparison.met]
        aim = "" if comparison.aim is None else f"at most {comparison.aim:g}{verdict}"
        lines.append([comparison.case, heading(comparison.quantity), *sides, ratio, aim])
    return ["case", "quantity", "ours", "other", "ratio", "aim"], lines


def _side(row: Row, comparison: Comparison) -> str:
    """What one side is called in its case, and what was measured."""
    name = row.name.removeprefix(f"{comparison.case}: ")
    value = row.cost.get(comparison.quantity)
    return name if value is None else f"{name}: {short(value * COSTS.get(comparison.quantity, ('', 1.0))[1])}"


def heading(quantity: str) -> str:
    """What a metric or a cost is called above a column, with its unit."""
    if quantity in COSTS:
        return COSTS[quantity][0]
    words = _HEADINGS.get(quantity) or quantity.replace("_", " ").replace("f1", "F1")
    return f"{words} (%)" if is_fraction(quantity) else words


def _ratio(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:.3f}"


def _notes(results: Results) -> list[str]:
    notes = []
    if results.comparisons:
        return ["A ratio is ours over the other; of times, the median over rounds that alternate both, with quartiles."]
    seeds = Counter((row.name, row.role, row.config) for row in results.rows)
    if max(seeds.values()) > 1:
        number = (
            _NUMBERS.get(max(seeds.values()), f"{max(seeds.values())}") if len(set(seeds.values())) == 1 else "Several"
        )
        notes.append(f"{number} seeds: mean ± standard deviation; costs are means.")
    roles = {row.role for row in results.rows}
    missing = [role for role in ("twin", "ablation") if role not in roles]
    if "ode" in roles and missing:
        notes.append(f"Not measured here: {' and '.join(f'the {role}' for role in missing)}.")
    return notes


def _hidden(results: Results) -> list[str]:
    """What a table leaves out, in a sentence."""
    shown = {name for names in _shown(results) for name in names}
    hidden = [name for names in _quantities(results) for name in names if name not in shown]
    return [f"In the file of the results only: {', '.join(hidden)}."] if hidden and not results.comparisons else []


def _origin(results: Results) -> str:
    described = ", ".join(
        {"cpu": f"{value}", "cores": f"{value} cores"}.get(key, f"{key} {value}")
        for key, value in results.machine.items()
    )
    return f"commit {results.commit}, {results.date}, {described}"


def _mean(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{spread}"


def short(value: float) -> str:
    """Write a number with three significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}" if value != int(value) else f"{int(value):,}"


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Each name once: those of ``first`` in its order, then the others in theirs."""
    present = dict.fromkeys(names)
    return [name for name in first if name in present] + [name for name in present if name not in first]


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
    missing = [name for name in known if name not in value and name != "comparisons"]
    if missing:
        raise ResultsError(f"{what} must have the keys {', '.join(known)}; {', '.join(missing)} is missing. Add it.")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1
