"""Fewer pieces for the flows of a trained network, by projection and distillation."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ode_detect.engine.build import autocast, on_gpu, training_stream
from ode_detect.engine.classes import data_categories
from ode_detect.engine.provenance import provenance
from ode_detect.engine.records import holds_run, write_records
from ode_detect.engine.run import Run, open_evaluation
from ode_detect.engine.train import cost, evaluate, load_network
from ode_detect.media.files import whole, write_text
from ode_detect.ode.flows import flows_of
from ode_detect.ode.pieces import PiecewiseConstant
from ode_detect.ode.refitting.distillation import distil
from ode_detect.ode.refitting.refit import project_pieces
from ode_detect.ode.solvers import FixedStep
from ode_detect.report.metrics import quantity
from ode_detect.report.protocol import FULL_PIECES, TEST, Clause, Protocol, clauses
from ode_detect.report.ratios import Panel, plot_panels
from ode_detect.report.results import Results
from ode_detect.report.rows import Row
from ode_detect.studies.kept import KeptRows
from ode_detect.task import ConfigError

logger = logging.getLogger("ode_detect.studies")

# The projection is solved for on so many training batches; distillation has all that it is given.
FITTED_BATCHES = 4


@dataclass(frozen=True)
class Projection:
    """What is asked of `project`.

    Attributes:
        counts: pieces of each flow after it.
        iterations: of distillation after each projection, a training batch each; 0 for none.
        batches: different training batches in that.

    Raises:
        ConfigError: a number that is too small, or one given twice.
    """

    counts: tuple[int, ...]
    iterations: int = 0
    batches: int = 40

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1 or len(set(self.counts)) < len(self.counts):
            raise ConfigError(f"a projection goes to 1 piece or more, each number once, not {list(self.counts)}.")
        if self.iterations < 0 or self.batches < 1:
            raise ConfigError(
                f"a distillation has 0 iterations or more on 1 batch or more, not {self.iterations} on {self.batches}."
            )


def project(cfg: CfgNode, wanted: Projection, *, command: str, config_file: str, weights: str, folder: Path) -> Results:
    """Project the flows of a checkpoint on fewer pieces, distil, and evaluate each network.

    Time and steps of the flows stay. What was evaluated is kept in the folder and not made again, as long as config,
    weights and commit are the same.

    Args:
        cfg: of the checkpoint, not frozen. All its flows have one number of pieces, more than any that is wanted.
        wanted: to how many, and how long to distil.
        command: for the records.
        config_file: for the records.
        weights: the checkpoint; "" takes what `ode_detect.engine.train.fill` takes.
        folder: gets ``pieces.json`` and ``pieces.png``, and for each network ``NAME.pth`` and ``NAME.yaml``, a config
            for ``tools/train_net.py --eval-only``; not that of a run.

    Returns:
        A row for the checkpoint ("pieces_8"), for each projection ("pieces_4_projected") and each distillation
        ("pieces_4_distilled").

    Raises:
        ConfigError: flows that cannot be projected so, a folder with something else, or a negative SEED.
    """
    _check_folder(folder)
    if cfg.SEED < 0:
        raise ConfigError(f"what was measured is kept for one seed, and SEED is {cfg.SEED}; give one of 0 or more.")
    asked = cfg.clone()
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    # What the folder says of an earlier command stays, if this one is refused.
    run = open_evaluation(
        cfg,
        command=command,
        config_file=config_file,
        folder=folder / "evaluation",
        records=False,
    )
    model, used = load_network(run, weights)
    pieces, steps, duration = _uniform(model)
    if max(wanted.counts) >= pieces:
        raise ConfigError(
            f"a projection saves pieces, and the flows of {used} have {pieces} each, while {max(wanted.counts)} were "
            "asked for; give fewer, or grow a network by --grow."
        )
    kept = KeptRows(folder, "projection", run, model, {"distillation": [wanted.iterations, wanted.batches]})
    write_records(run.cfg, run.folder, run.command)
    kept.add(f"pieces_{pieces}", partial(_measured, run, model))
    hows = ("projected", "distilled") if wanted.iterations else ("projected",)
    missing = {c: names for c in wanted.counts if not kept.has(names := [f"pieces_{c}_{how}" for how in hows])}
    batches = list(itertools.islice(training_stream(run.cfg, run.task), wanted.batches)) if missing else []
    for count, names in missing.items():
        own = asked.clone()
        own.MODEL.ODE.NUM_PIECES, own.MODEL.ODE.STEPS, own.MODEL.ODE.DURATION = count, steps, int(duration)
        for name, fewer in zip(names, _fewer(run, model, count, batches, wanted.iterations), strict=True):
            _write_network(fewer, own.clone(), folder / name, run)
            kept.add(name, partial(_measured, run, fewer))
    results = Results(
        what=f"Pieces of {Path(config_file).stem}: {run.task.name}, {run.cfg.DATASETS.TEST[0]}",
        **provenance("\n".join(kept.commands)),
        protocol=_projection_protocol(run, wanted, used, pieces),
        rows=tuple(kept.rows.values()),
    )
    results.write(folder / "pieces.json")
    _plot(results.rows, run.task.score, folder / "pieces.png")
    return results


def _fewer(run: Run, model: nn.Module, count: int, batches: Sequence[Any], iterations: int) -> Iterator[nn.Module]:
    """The network with so many pieces: as it is projected, and then, if there are iterations, as it is distilled."""
    fewer = copy.deepcopy(model)
    with _config_errors():
        report = project_pieces(fewer, batches[:FITTED_BATCHES], count=count)
    logger.info("projected on %d pieces:\n%s", count, report)
    run.task.renew(run.cfg, fewer)
    yield fewer
    if iterations:
        with _config_errors():
            _distil(run, fewer, model, batches, iterations)
        run.task.renew(run.cfg, fewer)
        yield fewer


def _uniform(model: nn.Module) -> tuple[int, int, float]:
    """Pieces, steps and time of the flows, which a config can say only if they are those of all.

    Raises:
        ConfigError: there is no flow, or they differ.
    """
    try:
        flows = flows_of(model)
    except ValueError as error:
        raise ConfigError(f"{error} MODEL.ODE.ROLE ode makes them.") from error
    found = {
        name: (len(b.field.pieces), b.solver.steps, b.field.duration)
        if isinstance(b.field, PiecewiseConstant) and isinstance(b.solver, FixedStep)
        else None
        for name, b in flows.items()
    }
    first = next(iter(found.values()))
    if first is None or set(found.values()) != {first}:
        listed = ", ".join(f"{name} {value or 'no pieces or no fixed steps'}" for name, value in found.items())
        raise ConfigError(
            "MODEL.ODE.NUM_PIECES, STEPS and DURATION are numbers for all flows, which must have them alike to be "
            f"projected here, and they are: {listed}. Call ode_detect.ode.project_pieces for each flow instead."
        )
    return first


def _distil(run: Run, fewer: nn.Module, teacher: nn.Module, batches: Sequence[Any], iterations: int) -> None:
    logger.info("distilling for %d iterations", iterations)
    # In half precision, which a GPU would take, these gradients vanish.
    with nullcontext() if on_gpu(run.cfg) else autocast(run.cfg):
        losses = distil(fewer, teacher, batches, iterations=iterations, seed=run.cfg.SEED)
    logger.info("distillation: loss %.4f at first, %.4f at last", losses[0], losses[-1])


@contextmanager
def _config_errors() -> Iterator[None]:
    """What cannot be projected or distilled is so by its config."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _measured(run: Run, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
    return run.task.metrics(evaluate(run, model)), cost(run, model, minutes=None)


def _write_network(model: nn.Module, cfg: CfgNode, stem: Path, run: Run) -> None:
    with whole(stem.with_suffix(".pth")) as partial:
        torch.save({"model": model.state_dict(), "categories": data_categories(run.cfg, run.task)}, partial)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(stem.with_suffix(".pth")), str(stem)
    write_text(stem.with_suffix(".yaml"), f"# Made by: {run.command}\n{cfg.dump()}")


def _projection_protocol(run: Run, wanted: Projection, used: str, pieces: int) -> Protocol:
    cfg, batch = run.cfg, run.cfg.SOLVER.IMS_PER_BATCH
    fitted = f"projection by least squares on {min(FITTED_BATCHES, wanted.batches)} training batches of {batch}"
    stated = [
        Clause(TEST, f"tested on {cfg.DATASETS.TEST[0]}, weights of {used}"),
        *clauses("metrics", run.task.protocol(cfg)),
        Clause(FULL_PIECES, f"pieces_{pieces}"),
        Clause("projection", fitted),
    ]
    if wanted.iterations:
        precision = "autocast" if cfg.SOLVER.AMP.ENABLED and not on_gpu(cfg) else "float32"
        distilled = (
            f"distillation from the flows of the network with {pieces} pieces: {wanted.iterations} iterations of Adam, "
            f"{precision}, "
            f"on {wanted.batches} training batches of {batch}, no labels, statistics of BatchNorm as projected"
        )
        stated.append(Clause("distillation", distilled))
    return tuple(stated)


def _plot(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Quality against parameters: the checkpoint ends each curve."""
    factor = quantity(metric).factor
    first, *points = ((round(row.cost["parameters"] / 1e6, 3), factor * row.metrics[metric]) for row in rows)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row, point in zip(rows[1:], points, strict=True):
        curves.setdefault(row.name.rpartition("_")[2], [first]).append(point)
    panel = Panel(f"{metric} by parameters", f"{metric} (%)" if factor > 1 else metric, curves)
    plot_panels([panel], "Parameters (M)", path)


def _check_folder(folder: Path) -> None:
    if holds_run(folder):
        raise ConfigError(f"{folder} holds a run; give another --output, such as {folder / 'pieces'}.")
