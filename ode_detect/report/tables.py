"""Results as tables, in Markdown and for the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from . import markdown
from .results import Results
from .rows import FRACTIONS, Comparison, Row, is_fraction, shown_as

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


_HEADINGS = {
    **{"ece": "ECE", "nll": "NLL", "top1": "top-1", "top5": "top-5"},
    **{"top1_half_step": "top-1, half the step", "top1_other_method": "top-1, other method"},
}


def to_markdown(results: Results) -> str:
    """Write the results as a Markdown table, with protocol, machine, command and commit below it.

    Seeds of one network become one line, mean and standard deviation. Only columns that have a number are shown.
    """
    header, lines = _table(results)
    rows = [list(map(markdown.text, line)) for line in [header, *lines]]
    rule = ["---", "---", *("---:" for _ in header[2:])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
    commands = ", ".join(map(markdown.code, results.command.splitlines()))
    notes = [markdown.text(note) for note in (*_notes(results), f"Protocol: {results.protocol}")]
    notes += [f"Made by {commands}, {markdown.text(_origin(results))}."]
    return table + "\n\n" + "\n".join(f"<sub>{note}</sub><br>" for note in notes).removesuffix("<br>")


def to_text(results: Results) -> str:
    """Write the same table as ``to_markdown`` for a terminal."""
    header, lines = _table(results)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    notes = [*_notes(results), f"protocol: {results.protocol}", f"command: {results.command}", _origin(results)]
    return "\n".join([results.what, "", row(header), row(["-" * w for w in widths]), *map(row, lines), "", *notes])


def _table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Lay out heading and lines: network, role, seeds (if any has several), metrics, costs; or ratios."""
    if results.comparisons:
        return _comparison_table(results)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in results.rows:
        groups.setdefault((row.name, row.role, row.config), []).append(row)
    seeds = any(len(group) > 1 for group in groups.values())
    metrics, costs = _shown(results)
    header = ["network", "role", *(["seeds"] if seeds else []), *map(heading, [*metrics, *costs])]
    lines = []
    for (name, role, _), group in groups.items():
        line = [name, ROLE_WORDS[role], *([str(len(group))] if seeds else [])]
        for metric in metrics:
            factor, form = shown_as(metric)
            line.append(_mean([row.metrics[metric] * factor for row in group if metric in row.metrics], form))
        for cost in costs:
            values = [row.cost[cost] * COSTS.get(cost, ("", 1.0))[1] for row in group if cost in row.cost]
            line.append(short(statistics.fmean(values)) if values else "")
        lines.append(line)
    return header, lines


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
    names = {(row.name, row.role, row.config) for row in results.rows}
    if len(names) < len(results.rows):
        notes.append("Several seeds: mean ± standard deviation; costs are means.")
    shown = {name for names in _shown(results) for name in names}
    hidden = [name for names in _quantities(results) for name in names if name not in shown]
    if hidden:
        notes.append(f"In the file of the results only: {', '.join(hidden)}.")
    roles = {row.role for row in results.rows}
    missing = [role for role in ("twin", "ablation") if role not in roles]
    if "ode" in roles and missing:
        notes.append(f"Not measured here: {' and '.join(f'the {role}' for role in missing)}.")
    return notes


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
