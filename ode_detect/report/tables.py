"""Results as tables, in Markdown and for the terminal."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from . import markdown
from .metrics import COSTS, in_order, quantity
from .protocol import in_words
from .results import Results
from .rows import Comparison, Row

ROLE_WORDS = {"ode": "ODE", "twin": "twin", "ablation": "ablation", "baseline": "baseline", "floor": "floor"}

# A table of more quantities than these leaves out the details, which are in the file.
_WIDEST = 12


# Columns of words are flush left.
_WORDS = ("network", "role", "case", "quantity", "ours", "other", "aim")
_SPREAD = "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
_NUMBERS = {2: "Two", 3: "Three", 4: "Four", 5: "Five"}


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
    # A spread stays with its mean, however narrow the column is.
    rows = [[markdown.text(cell).replace(" ± ", _SPREAD) for cell in line] for line in [header, *lines]]
    rule = ["---" if name in _WORDS else "---:" for name in header]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
    said = " ".join(map(markdown.text, [*_notes(results), *alike]))
    if page:
        address = markdown.address(page)
        said = f"{said} Protocol and commands: [{markdown.text(page)}]({address}).".lstrip()
        return f"{table}\n\n{said}"
    return "\n\n".join([table, *([said] if said else []), _fold(results)])


def _without_constants(header: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Take out the columns that say the same in each row; what they say, in a sentence, is the third value."""
    constant = {i for i in range(len(header)) if len(lines) > 1 and len({line[i] for line in lines}) == 1}
    constant = constant if len(constant) < len(header) else set()
    # The number of seeds is in the notes.
    alike = [f"{header[i]} {lines[0][i]}" for i in sorted(constant) if lines[0][i] and header[i] != "seeds"]
    kept = [i for i in range(len(header)) if i not in constant]
    sentence = [f"The same in each row: {'; '.join(alike)}."] if alike else []
    return [header[i] for i in kept], [[line[i] for i in kept] for line in lines], sentence


def _fold(results: Results) -> str:
    hidden = _hidden(results)
    ticks = markdown.fence(results.command)
    content = [f"- {markdown.text(clause)}" for clause in map(str, results.protocol)]
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
    notes += [f"protocol: {in_words(results.protocol)}", f"command: {results.command}", _origin(results)]
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
        lines.append([*line, *(_cell(group, one) for one in quantities)])
    return header, lines


def _cell(group: Sequence[Row], name: str) -> str:
    """A metric of the seeds of one network, with its spread; or the mean of a cost."""
    shown = quantity(name)
    metrics = [row.metrics[name] * shown.factor for row in group if name in row.metrics]
    costs = [row.cost[name] * shown.factor for row in group if name in row.cost]
    return short(statistics.fmean(costs)) if costs else _mean(metrics, f".{shown.digits}f")


def _quantities(results: Results) -> tuple[list[str], list[str]]:
    metrics = in_order(name for row in results.rows for name in row.metrics)
    return metrics, ordered((name for row in results.rows for name in row.cost), tuple(COSTS))


def _shown(results: Results) -> tuple[list[str], list[str]]:
    """The metrics and costs of a table: all, or without the details if they are too many."""
    metrics, costs = _quantities(results)
    if len(metrics) + len(costs) <= _WIDEST:
        return metrics, costs
    left_out = {name for name in (*metrics, *costs) if quantity(name).detail in ("*", *metrics)}
    return [name for name in metrics if name not in left_out], [name for name in costs if name not in left_out]


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
    name = row.side if row.case == comparison.case else row.name
    value = row.cost.get(comparison.quantity)
    return name if value is None else f"{name}: {short(value * quantity(comparison.quantity).factor)}"


def heading(name: str) -> str:
    """What a metric or a cost is called above a column, with its unit."""
    return quantity(name).heading


def _ratio(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 0.01 else f"{value:.3f}"


def _notes(results: Results) -> list[str]:
    notes = []
    if results.comparisons:
        return ["A ratio is ours over the other; of times, the median over rounds that alternate both, with quartiles."]
    seeds = Counter((row.name, row.role, row.config) for row in results.rows)
    most = max(seeds.values())
    if most > 1:
        number = _NUMBERS.get(most, str(most)) if len(set(seeds.values())) == 1 else "Several"
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
