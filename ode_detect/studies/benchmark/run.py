"""From sections to results and plots."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ode_detect.engine.provenance import provenance
from ode_detect.ode.names import check_name
from ode_detect.report.protocol import clauses, in_words
from ode_detect.report.ratios import Panel, plot_panels, plot_ratios
from ode_detect.report.results import Results, Row
from ode_detect.report.rows import Comparison
from ode_detect.studies.process_memory import keep_freed_memory
from ode_detect.studies.timing import MAX_ROUNDS, MIN_ROUNDS, Case, measure
from ode_detect.task import ConfigError

from . import classification, conversion, detector, export, flow, gradients, threads

SECONDS = 8.0
PROTOCOL = clauses(
    "times",
    (
        "one process, in threads one for each way to wait",
        "the sides of a case take turns: two rounds of warm-up, then as many rounds as fit into its time, "
        f"{MIN_ROUNDS} to {MAX_ROUNDS} (the number is in the file), without garbage collection",
        "the C library keeps freed memory",
        "random weights",
        "float32 unless said",
        "wall times are medians and mean little on another machine or day",
    ),
)


class Cases(Protocol):
    """What a section brings."""

    def __call__(self, *, quick: bool) -> Iterator[Case]:
        """Yield the cases; ``quick`` makes them tiny, to see that they run."""


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        about: one line for people.
        cases: its cases.
        requires: packages that it needs and ours does not.
    """

    about: str
    cases: Cases
    requires: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]


SECTIONS: dict[str, Section] = {
    "conversion": Section("residual networks against themselves with flows", conversion.cases),
    "flow": Section("a fixed-step flow against residual blocks, a plain loop and torchdiffeq", flow.cases),
    "gradients": Section("bytes, time and exactness of each gradient, by steps", gradients.cases),
    "detector": Section("R-101-FPN Faster R-CNN, optimised for inference, against stock Detectron2", detector.cases),
    "dial": Section("time of the R-101 backbone by the steps of res4", detector.dial_cases),
    "classification": Section("training of classifiers by our trainer against a plain loop", classification.cases),
    "export": Section("a classifier with flows in onnxruntime against PyTorch", export.cases, export.REQUIRED),
    "threads": Section("training steps, by how threads wait, alone and with a busy process", threads.cases),
}


def run_benchmark(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    command: str,
    output: Path | None = None,
    seconds: float = SECONDS,
    tell: Callable[[str], None] = print,
) -> Results:
    """Measure sections, and write what is measured as soon as a section is through.

    Sections that are not measured again stay in the file: numbers that stand together are of one commit on one machine.

    Args:
        names: the sections; empty takes all.
        quick: tiny sizes and few rounds, to see that everything runs. The numbers mean nothing.
        command: what the user wrote, for the results.
        output: the file; None writes none.
        seconds: about how long the rounds of a case of weight 1 take.
        tell: takes a line after each case.

    Raises:
        UnknownNameError: there is no such section.
        ConfigError: nothing is left to measure, since packages are missing; or other sections are in the file, measured
            otherwise.
        OSError: the file cannot be written.
    """
    chosen = [check_name(name, SECTIONS, "section of the benchmark") for name in names] or list(SECTIONS)
    about = {"what": _what(quick), **provenance(command), "protocol": PROTOCOL}
    results = _others(output, chosen, about) if output else None
    keep_freed_memory()
    measured = False
    for name in dict.fromkeys(chosen):
        section = SECTIONS[name]
        if section.missing:
            tell(f"{name}: left out, because {', '.join(section.missing)} is not installed")
            continue
        rows: list[Row] = []
        comparisons: list[Comparison] = []
        for case in section.cases(quick=quick):
            new_rows, new_comparisons = measure(case, section=name, seconds=0.0 if quick else seconds)
            rows += new_rows
            comparisons += new_comparisons
            tell(f"{name}: {case.name}" + "".join(f"; {c.ratio:.4g} of {_side(c)}" for c in new_comparisons))
        part = Results(**about, rows=tuple(rows), comparisons=tuple(comparisons))
        results, measured = _joined(results, part, name), True
        if output:
            results.write(output)
    if results is None or not measured:
        raise ConfigError("a benchmark measures something, and nothing was left; install what is missing.")
    return results


def _what(quick: bool) -> str:
    return "benchmark on a CPU" + (" (quick: the numbers mean nothing)" if quick else "")


def _others(output: Path, chosen: Sequence[str], about: dict[str, Any]) -> Results | None:
    """What an earlier benchmark left in the file, if its other sections may stand in one file with the new ones."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a"):
        pass  # before hours of measuring, not after
    if not output.read_text():
        output.unlink()
        return None
    before = Results.read(output)
    then = {key: getattr(before, key) for key in ("what", "protocol", "commit", "machine")}
    different = [
        key
        for key, value in then.items()
        if (in_words(value) != in_words(about[key]) if key == "protocol" else value != about[key])
    ]
    if not different:
        return before
    others = [name for name in dict.fromkeys(row.config for row in before.rows) if name not in chosen]
    if others:
        raise ConfigError(
            f"{output} holds {', '.join(others)}, of another {' and another '.join(different)}, which "
            "cannot stand beside what is measured now; give another --output, or measure those sections too."
        )
    return None


def _joined(before: Results | None, part: Results, section: str) -> Results:
    """The results with one section replaced."""
    if before is None:
        return part
    rows = [row for row in before.rows if row.config != section]
    names = {row.name for row in rows}
    comparisons = [c for c in before.comparisons if {c.ours, c.other} <= names]
    return replace(
        part,
        command="\n".join(dict.fromkeys([*(before.command.splitlines() if rows else []), part.command])),
        rows=(*rows, *part.rows),
        comparisons=(*comparisons, *part.comparisons),
    )


def _side(comparison: Comparison) -> str:
    return comparison.sides[1]


def write_plots(results: Results, path: Path) -> list[Path]:
    """Draw what the sections of ``results`` show, next to its file: ``NAME_flow.png`` and so on.

    Args:
        results: what `run_benchmark` gave.
        path: the file of the results.

    Returns:
        The pictures.
    """
    written = []
    for section in dict.fromkeys(row.config for row in results.rows):
        part = results.section(section)
        picture = path.with_name(f"{path.stem}_{section}.png")
        if section == "gradients":
            plot_panels(_by_steps(part), "Steps", picture)
        else:
            plot_ratios([c for c in part.comparisons if c.quantity == "latency_ms"], picture)
        written.append(picture)
    return written


def _by_steps(results: Results) -> list[Panel]:
    """Bytes kept, and time relative to plain backpropagation, against the steps; two panels per stage."""
    rows = [row for row in results.rows if "latency_ms" in row.cost]
    stages = dict.fromkeys(row.case.rpartition(", training step")[0] for row in rows)
    panels = []
    for stage in dict.fromkeys(name.rpartition(", ")[0] for name in stages):
        kept: dict[str, list[tuple[float, float]]] = {}
        time: dict[str, list[tuple[float, float]]] = {}
        mine = [row for row in rows if row.name.startswith(f"{stage}, ")]
        plain = {r.cost["steps"]: r.cost["latency_ms"] for r in mine if r.side == gradients.BACKPROP}
        for row in mine:
            mode, steps = row.side, row.cost["steps"]
            kept.setdefault(mode, []).append((steps, row.cost["kept_mib"]))
            time.setdefault(mode, []).append((steps, row.cost["latency_ms"] / plain[steps]))
        panels += [
            Panel(stage, "Kept for the gradient (MiB)", kept, logarithmic=True),
            Panel(stage, "Time of a training step\nrelative to plain backpropagation", time),
        ]
    return panels
