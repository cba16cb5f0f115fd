"""Networks compared, in words and tables: means over seeds, differences to the twin, what is missing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .metrics import COSTS, in_order, quantity
from .rows import Row
from .tables import ROLE_WORDS, ordered, short

_GROUPS = {
    "Size and work": ("parameters", "backbone_parameters", "macs", "evaluations", "backward_evaluations"),
    "Training": ("train_step_ms", "train_memory_mib", "kept_mib", "train_minutes"),
    "Inference": ("latency_ms", "pictures_per_second"),
}
_QUARTILES = tuple[float, float, float]
NO_REASON = "the run gives no such number"


@dataclass(frozen=True)
class Network:
    """One network with a row for each seed.

    Attributes:
        name: as in the rows.
        role: one of `ode_detect.report.rows.ROLES`.
        rows: one per seed.
    """

    name: str
    role: str
    rows: tuple[Row, ...]

    def values(self, quantity: str) -> list[float]:
        """A metric or a cost, of the seeds that have it."""
        found = [row.metrics.get(quantity, row.cost.get(quantity)) for row in self.rows]
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        small: what qualifies it.
        note: number of the note that says why it is empty; 0 for none.
    """

    text: str
    small: str = ""
    note: int = 0


@dataclass(frozen=True)
class Line:
    """One line of a table: a quantity with a cell for each column."""

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with one column for each network.

    Attributes:
        caption: what it shows.
        columns: (network, role in words, and what it is held against).
        groups: (heading, lines).
        notes: why cells are empty; the first is number 1.
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compared:
    """The networks, and what each is held against.

    Attributes:
        networks: in the order of the page.
        twins: network -> its twin.
        ablations: network -> its ablation.
        ratios: (network, other, cost) -> ratio of what was measured in turns: median over rounds, and quartiles.
        reasons: (network, quantity) -> why there is no such number.
    """

    networks: tuple[Network, ...]
    twins: Mapping[str, str] = field(default_factory=dict)
    ablations: Mapping[str, str] = field(default_factory=dict)
    ratios: Mapping[tuple[str, str, str], _QUARTILES] = field(default_factory=dict)
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Network:
        """The network of that name."""
        return next(network for network in self.networks if network.name == name)

    @property
    def seeds(self) -> int:
        """How many seeds the network with the most has."""
        return max(len(network.rows) for network in self.networks)


def group(rows: Iterable[Row]) -> tuple[Network, ...]:
    """Rows as networks, in the order in which they first occur."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.name, []).append(row)
    return tuple(Network(name, mine[0].role, tuple(mine)) for name, mine in found.items())


def numbers(compared: Compared) -> Table:
    """Mean and standard deviation of every number; what is missing points to a note with the reason."""
    notes: list[str] = []

    def line(quantity: str) -> Line:
        cells = []
        for network in compared.networks:
            values = network.values(quantity)
            if values:
                few = f"{len(values)} of {len(network.rows)} seeds" if _partial(network, quantity, values) else ""
                cells.append(Cell(_mean(values, quantity), few))
                continue
            reason = compared.reasons.get((network.name, quantity), NO_REASON)
            if reason not in notes:
                notes.append(reason)
            cells.append(Cell("–", note=notes.index(reason) + 1))
        return Line(title(quantity), tuple(cells))

    groups = tuple((name, tuple(map(line, quantities))) for name, quantities in _quantities(compared))
    spread = "One seed" if compared.seeds == 1 else "Mean ± standard deviation over seeds"
    caption = f"{spread}. ↑ more is better, ↓ less is better"
    return Table(caption, _columns(compared.networks), groups, tuple(notes))


def differences(compared: Compared) -> Table | None:
    """What each network is to its twin: differences of metrics, ratios of costs. None if none has a twin."""
    shown = [network for network in compared.networks if network.name in compared.twins]
    if not shown:
        return None
    groups = []
    for name, quantities in _quantities(compared):
        lines = []
        for one in quantities:
            cells = tuple(_against(compared, network, one) for network in shown)
            if any(cell.text for cell in cells):
                lines.append(Line(title(one).replace(" (%)", " (points)"), cells))
        if lines:
            groups.append((name, tuple(lines)))
    columns = tuple((n.name, f"{ROLE_WORDS[n.role]} against {compared.twins[n.name]}") for n in shown)
    what = "Differences of one seed, spread unknown" if compared.seeds == 1 else "Differences of means ± spread"
    caption = f"{what}; points are percentage points. Costs as ratios: below 1 is less than the twin"
    return Table(caption, columns, tuple(groups))


def summary(compared: Compared, metric: str) -> tuple[str, ...]:
    """A few sentences: each network with its main metric, then what the differences are worth.

    Args:
        compared: the networks.
        metric: the main metric.
    """
    sentences = ["; ".join(_stated(network, metric) for network in compared.networks) + "."]
    for network in compared.networks:
        if network.role in ("twin", "ablation"):
            continue
        for words, others in (("its twin", compared.twins), ("its ablation", compared.ablations)):
            if network.name in others:
                sentences += _difference_in_words(compared, network, compared[others[network.name]], words, metric)
    few = [network for network in compared.networks if len(network.rows) < 3]
    if few:
        fewest = min(len(network.rows) for network in few)
        many = "One seed says" if fewest == 1 else f"{fewest} seeds say"
        which = f" ({', '.join(network.name for network in few)})" if len(few) < len(compared.networks) else ""
        sentences.append(f"{many} nothing about significance{which}.")
    return tuple(sentences)


def spread(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How far the difference of two single runs strays over seeds: the root of the summed variances.

    Returns:
        None if one side has fewer than two seeds.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    return math.hypot(statistics.stdev(first), statistics.stdev(second))


def title(name: str) -> str:
    """What a metric or a cost is called, with its unit and an arrow in the direction of better."""
    shown = quantity(name)
    # The arrow stays in the line of its word.
    return shown.heading + {"less": "\u00a0↓", "more": "\u00a0↑", "": ""}[shown.better]


def _quantities(compared: Compared) -> list[tuple[str, list[str]]]:
    """The groups of a table, with what any network has in each, or would have but for a reason."""
    rows = [row for network in compared.networks for row in network.rows]
    wanted = [quantity for _, quantity in compared.reasons]
    metrics = [name for row in rows for name in row.metrics]
    costs = [name for row in rows for name in row.cost]
    known = [name for group in _GROUPS.values() for name in group]
    metrics += [name for name in wanted if name not in known and name not in costs]
    groups = [("Quality", in_order(metrics))]
    groups += [(name, [q for q in group if q in costs or q in wanted]) for name, group in _GROUPS.items()]
    groups.append(("Other", ordered([name for name in costs if name not in known], ())))
    return [(name, quantities) for name, quantities in groups if quantities]


def _columns(networks: Iterable[Network]) -> tuple[tuple[str, str], ...]:
    return tuple((network.name, ROLE_WORDS[network.role]) for network in networks)


def _partial(network: Network, quantity: str, values: Sequence[float]) -> bool:
    """Whether seeds are missing of what every seed has: metrics and training times."""
    by_seed = any(quantity in row.metrics for row in network.rows) or quantity == "train_minutes"
    return by_seed and len(values) < len(network.rows)


def _mean(values: Sequence[float], name: str) -> str:
    factor, form = quantity(name).factor, f".{quantity(name).digits}f"
    if name not in COSTS:
        text = f"{factor * statistics.fmean(values):{form}}"
        return f"{text} ± {factor * statistics.stdev(values):{form}}" if len(values) > 1 else text
    text = short(factor * statistics.fmean(values))
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{text} ± {short(factor * deviation)}" if deviation > 0 else text


def _against(compared: Compared, network: Network, quantity: str) -> Cell:
    twin = compared[compared.twins[network.name]]
    ours, theirs = network.values(quantity), twin.values(quantity)
    if not ours or not theirs:
        return Cell("")
    if any(quantity in row.metrics for row in network.rows):
        difference, verdict = _difference(ours, theirs, quantity)
        return Cell(difference, verdict if compared.seeds > 1 else "")
    measured = compared.ratios.get((network.name, twin.name, quantity))
    if measured:
        return Cell(f"× {measured[0]:.3f}", f"quartiles {measured[1]:.3f} to {measured[2]:.3f}")
    if not statistics.fmean(theirs):
        return Cell("")  # a twin has no evaluations of a field
    return Cell(f"× {statistics.fmean(ours) / statistics.fmean(theirs):.3f}")


def _difference(ours: Sequence[float], theirs: Sequence[float], name: str) -> tuple[str, str]:
    factor, form = quantity(name).factor, f".{quantity(name).digits}f"
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    text = f"{factor * difference:+{form}}".replace("-", "−")
    strays = spread(ours, theirs)
    if strays is None:
        return text, "one seed, spread unknown"
    seeds = f"{len(ours)}" if len(ours) == len(theirs) else f"{len(ours)} and {len(theirs)}"
    within = "within" if abs(difference) <= strays else "beyond"
    return f"{text} ± {factor * strays:{form}}", f"{within} the spread of {seeds} seeds"


def _stated(network: Network, metric: str) -> str:
    values, parameters = network.values(metric), network.values("parameters")
    unit = " %" if quantity(metric).is_fraction else ""
    scored = f"{metric} {_mean(values, metric)}{unit}" if values else f"no {metric}"
    size = f" with {_mean(parameters, 'parameters')} M parameters" if parameters else ""
    return f"{network.name} ({ROLE_WORDS[network.role]}): {scored}{size}"


def _difference_in_words(compared: Compared, network: Network, other: Network, words: str, metric: str) -> list[str]:
    ours, theirs = network.values(metric), other.values(metric)
    if not ours or not theirs:
        return []
    difference, verdict = _difference(ours, theirs, metric)
    unit = " percentage points" if quantity(metric).is_fraction else ""
    ratios = []
    for cost, what in (("parameters", "parameters"), ("macs", "multiply-adds"), ("latency_ms", "latency")):
        mine, their = network.values(cost), other.values(cost)
        measured = compared.ratios.get((network.name, other.name, cost))
        if mine and their and statistics.fmean(their):
            ratios.append(
                f"{measured[0] if measured else statistics.fmean(mine) / statistics.fmean(their):.2f} × the {what}"
            )
    costs = f", at {', '.join(ratios)}" if ratios else ""
    return [f"{network.name} against {words}: {metric} {difference}{unit} ({verdict}){costs}."]
