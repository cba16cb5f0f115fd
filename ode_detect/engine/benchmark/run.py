"""From sections to results and plots."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ode_detect.engine.config import ConfigError
from ode_detect.ode.names import check_name
from ode_detect.report.plots import Panel, plot_panels, plot_ratios
from ode_detect.report.results import Results, Row, commit, machine
from ode_detect.report.rows import Comparison

from . import detector, export, flow, gradients
from .measure import MAX_ROUNDS, MIN_ROUNDS, Case, measure
from .memory import keep_freed_memory

SECONDS = 8.0
PROTOCOL = (
    "one process; the sides of a case take turns: two rounds of warm-up, then as many rounds as fit into its time, "
    f"{MIN_ROUNDS} to {MAX_ROUNDS} (the number is in the file), without garbage collection; the C library keeps freed "
    "memory; random weights; float32 unless said; wall times are medians and mean little on another machine or day"
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
        requires: packages that it needs beside ours.
    """

    about: str
    cases: Cases
    requires: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]


SECTIONS: dict[str, Section] = {
    "flow": Section("a fixed-step flow against residual blocks, a plain loop and torchdiffeq", flow.cases),
    "gradients": Section("bytes, time and exactness of each gradient, by steps", gradients.cases),
    "detector": Section("R-101-FPN Faster R-CNN, optimised for inference, against stock Detectron2", detector.cases),
    "dial": Section("time of the R-101 backbone by the steps of res4", detector.dial_cases),
    "export": Section("a classifier with flows in onnxruntime against PyTorch", export.cases, export.REQUIRED),
}


def run_benchmark(
    names: Sequence[str] = (),
    *,
    quick: bool = False,
    command: str,
    seconds: float = SECONDS,
    tell: Callable[[str], None] = print,
) -> Results:
    """Measure sections.

    Args:
        names: the sections; empty takes all.
        quick: tiny sizes and few rounds, to see that everything runs. The numbers mean nothing.
        command: what the user wrote, for the results.
        seconds: about how long the rounds of a case of weight 1 take.
        tell: told a line after each case.

    Raises:
        UnknownNameError: there is no such section.
        ConfigError: nothing is left to measure, since packages are missing.
    """
    chosen = [check_name(name, SECTIONS, "section of the benchmark") for name in names] or list(SECTIONS)
    keep_freed_memory()
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for name in dict.fromkeys(chosen):
        section = SECTIONS[name]
        if section.missing:
            tell(f"{name}: left out, because {', '.join(section.missing)} is not installed")
            continue
        for case in section.cases(quick=quick):
            new_rows, new_comparisons = measure(case, section=name, seconds=0.0 if quick else seconds)
            rows += new_rows
            comparisons += new_comparisons
            tell(f"{name}: {case.name}" + "".join(f"; {c.ratio:.4g} of {_side(c)}" for c in new_comparisons))
    if not rows:
        raise ConfigError("a benchmark measures something, and nothing was left; install what is missing.")
    return Results(
        what="benchmark on a CPU" + (" (quick: the numbers mean nothing)" if quick else ""),
        command=command,
        commit=commit(),
        date=datetime.date.today().isoformat(),
        machine={**machine(), "threads": torch.get_num_threads()},
        protocol=PROTOCOL,
        rows=tuple(rows),
        comparisons=tuple(comparisons),
    )


def _side(comparison: Comparison) -> str:
    return comparison.other.removeprefix(f"{comparison.case}: ")


def write_plots(results: Results, path: Path) -> list[Path]:
    """Draw what the sections of ``results`` show, beside its file: ``NAME_flow.png`` and so on.

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
    stages = dict.fromkeys(row.name.rpartition(": ")[0].rpartition(", training step")[0] for row in rows)
    panels = []
    for stage in dict.fromkeys(name.rpartition(", ")[0] for name in stages):
        kept: dict[str, list[tuple[float, float]]] = {}
        time: dict[str, list[tuple[float, float]]] = {}
        mine = [row for row in rows if row.name.startswith(f"{stage}, ")]
        plain = {r.cost["steps"]: r.cost["latency_ms"] for r in mine if r.name.endswith(f": {gradients.BACKPROP}")}
        for row in mine:
            mode, steps = row.name.rpartition(": ")[2], row.cost["steps"]
            kept.setdefault(mode, []).append((steps, row.cost["kept_mib"]))
            time.setdefault(mode, []).append((steps, row.cost["latency_ms"] / plain[steps]))
        panels += [
            Panel(stage, "Kept for the gradient (MiB)", kept, logarithmic=True),
            Panel(stage, "Time of a training step\nrelative to plain backpropagation", time),
        ]
    return panels
