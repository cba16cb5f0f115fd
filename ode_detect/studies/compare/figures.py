"""Plots and pictures of all networks of a comparison, as sections of its page."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ode_detect.report.canvas import PictureError
from ode_detect.report.dial import plot_dial
from ode_detect.report.overlays import Line, plot_lines
from ode_detect.report.page import Figure, Section
from ode_detect.report.plots import Curve, MetricsError, read_metrics, series
from ode_detect.report.protocol import full_settings
from ode_detect.report.results import Results
from ode_detect.report.rows import ResultsError
from ode_detect.report.tables import ROLE_WORDS
from ode_detect.task import Task

from .measure import Loaded

logger = logging.getLogger("ode_detect.studies")

# A data set of many classes has curves for each of them.
MOST_CURVES = 12
EXAMPLES = 4


@dataclass(frozen=True)
class Folders:
    """Where one run left what is drawn.

    Attributes:
        network: its name.
        role: in words.
        seed: of the run.
        run: its folder; None if only weights were given.
        evaluation: the folder of its evaluation on the test set.
    """

    network: str
    role: str
    seed: int
    run: Path | None
    evaluation: Path


def training_section(found: Sequence[Folders], task: Task, names: Sequence[str], folder: Path) -> Section | None:
    """The main metric and the losses over the training, all runs in one plot of each; None without records."""
    histories: list[tuple[str, list[dict[str, Any]]]] = []
    for one in found:
        file = one.run / "metrics.json" if one.run else None
        if file is None or not file.exists():
            continue
        try:
            histories.append((one.network, read_metrics(file)))
        except MetricsError as error:
            logger.warning("not drawn: %s", error)
    scalars = dict.fromkeys(key for _, history in histories for record in history for key in record)
    wanted = [task.metric, *(key for key in ("total_loss", *scalars) if key == "total_loss" or key.startswith("loss_"))]
    figures = []
    for key in dict.fromkeys(wanted):
        lines = [Line(network, *series(history, key)) for network, history in histories]
        label = key.rpartition("/")[2].replace("_", " ")
        path = folder / f"training_{key.rpartition('/')[2]}.png"
        smoothed = key != task.metric
        if _drawn(
            partial(plot_lines, lines, path, xlabel="Iteration", ylabel=label, networks=names, smoothed=smoothed)
        ):
            figures.append(Figure(path, f"{label} against the iteration, for {', '.join(names)}", label))
    if not figures:
        return None
    text = "Losses are smoothed over a tenth of the training. Thin lines: further seeds. Metrics as the evaluator logs."
    return Section("Training", tuple(figures), text)


def curves_section(found: Sequence[Folders], task: Task, names: Sequence[str], folder: Path) -> Section | None:
    """The task's curves of the last evaluation, all networks in one plot of each title."""
    titles: dict[str, list[tuple[str, Curve]]] = {}
    lacking = []
    for one in found:
        try:
            mine = task.curves(one.evaluation)
        except (ResultsError, OSError) as error:
            logger.warning("no curves of %s, seed %d: %s", one.network, one.seed, error)
            mine = ()
        for curve in mine:
            titles.setdefault(curve.title, []).append((one.network, curve))
        if not mine:
            lacking.append(f"{one.network}, seed {one.seed}")
    figures = []
    for number, (title, curves) in enumerate(list(titles.items())[:MOST_CURVES], start=1):
        path = folder / f"curve_{number}.png"
        lines = [Line(network, curve.x, curve.y) for network, curve in curves]
        first = curves[0][1]
        fractions = all(0 <= v <= 1 for _, curve in curves for v in (*curve.x, *curve.y))
        draw = partial(plot_lines, lines, path, xlabel=first.xlabel, ylabel=first.ylabel, networks=names)
        if _drawn(partial(draw, unit_square=fractions)):
            figures.append(
                Figure(path, f"{title}: {first.ylabel} against {first.xlabel}, for {', '.join(names)}", title)
            )
    notes = []
    if lacking:
        notes.append(f"Not there: {'; '.join(lacking)} (evaluated by an earlier version; --evaluate makes them).")
    if len(titles) > MOST_CURVES:
        notes.append(f"The first {MOST_CURVES} of {len(titles)} curves; the others are in the folders of the runs.")
    if not figures and not notes:
        return None
    return Section("Evaluation", tuple(figures), " ".join(notes) or "Of the last weights. Thin lines: further seeds.")


def dial_section(found: Sequence[Folders], files: Sequence[Path], task: Task, folder: Path) -> Section | None:
    """The dial of each run that has one, and those of given files; None without.

    Raises:
        ResultsError: a file that was given is not that of a dial.
    """
    metric = task.score
    known = [one.run / "dial" / "dial.json" for one in found if one.run]
    figures = []
    for number, file in enumerate(dict.fromkeys([*files, *(file for file in known if file.exists())]), start=1):
        results = Results.read(file)
        path = folder / f"dial_{number}.png"
        try:
            plot_dial(results.rows, metric, path, full=full_settings(results.protocol), better=task.better)
        except MetricsError as error:
            if file in files:
                raise ResultsError(f"{file} is not that of a dial: {error}") from error
            logger.warning("not drawn: %s", error)
            continue
        figures.append(
            Figure(path, f"{results.what}: {metric} by steps and method", f"{results.what} ({file})", wide=True)
        )
    text = "One checkpoint solved with other steps and methods, without further training."
    return Section("The dial", tuple(figures), text) if figures else None


def examples_section(networks: Sequence[Loaded], folder: Path) -> Section | None:
    """The same test pictures with what each network says about them, one row for each picture."""
    first = networks[0].run
    name = first.cfg.DATASETS.TEST[0]
    drawn = [n.run.task.examples(n.run.cfg, n.model.eval(), name, EXAMPLES) for n in networks]
    figures = []
    for index, row in enumerate(zip(*(examples.pictures for examples in drawn), strict=True), start=1):
        for network, picture in zip(networks, row, strict=True):
            path = folder / f"picture_{index}_{network.name}.jpg"
            try:
                picture.write(path)
            except PictureError as error:
                logger.warning("not drawn: %s", error)
                return None
            words = f"{network.name} ({ROLE_WORDS[network.role]}): {picture.caption}"
            figures.append(Figure(path, f"{picture.name}, {words}", words))
    if not figures:
        return None
    seed = networks[0].run.cfg.SEED
    text = f"{len(drawn[0].pictures)} pictures from all over {name}, networks of seed {seed}. {drawn[0].text}"
    return Section("The same pictures", tuple(figures), text, rows=len(networks), legend=drawn[0].legend)


def confusion_section(found: Sequence[Folders], folder: Path) -> Section | None:
    """The confusion matrices that the evaluations of the first seed drew, side by side; None without."""
    figures = []
    for one in found:
        file = one.evaluation / "confusion.png"
        if one.seed or not file.exists():
            continue
        copied = folder / f"confusion_{one.network}.png"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
        words = f"{one.network} ({one.role})"
        figures.append(Figure(copied, f"Confusion matrix of {words}", words))
    if not figures:
        return None
    return Section("Confusion", tuple(figures), f"Networks of seed {found[0].seed}.", rows=len(figures))


def _drawn(draw: Callable[[], None]) -> bool:
    """Whether there was something to draw."""
    try:
        draw()
    except MetricsError as error:
        logger.info("not drawn: %s", error)
        return False
    return True
