"""How many pieces the flows of a network need: a trained one projected on fewer, and one grown by splitting them."""

from __future__ import annotations

import copy
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.classes import data_categories
from ode_detect.engine.config import ConfigError, load_config
from ode_detect.engine.lock import hold
from ode_detect.engine.provenance import check_marks, marks, provenance
from ode_detect.engine.records import holds_run, write_records
from ode_detect.engine.run import Run, cost, evaluate, load_network, open_run
from ode_detect.engine.trainer import autocast, build_network, on_gpu, training_stream
from ode_detect.media.files import read_object, whole, write_text
from ode_detect.ode.flows import flows_of
from ode_detect.ode.pieces import PiecewiseConstant
from ode_detect.ode.refitting.distillation import distil
from ode_detect.ode.refitting.refit import project_pieces, split_pieces
from ode_detect.ode.solvers import TABLEAUS, FixedStep
from ode_detect.report.plots import Panel, plot_panels
from ode_detect.report.results import Results
from ode_detect.report.rows import Row, is_fraction
from ode_detect.studies.compare.runs import Training, check_runs, train_missing

logger = logging.getLogger("ode_detect.engine")

# What was evaluated, in the folder of a projection.
_KEPT = "measured.json"
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
        weights: the checkpoint; "" takes what `ode_detect.engine.run.fill` takes.
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
    run = open_run(
        cfg,
        command=command,
        config_file=config_file,
        resume=False,
        evaluating=True,
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
    kept = _Kept(folder, run, model, wanted)
    write_records(run.cfg, run.folder, run.command)
    kept.add(f"pieces_{pieces}", partial(_measured, run, model))
    hows = ("projected", "distilled") if wanted.iterations else ("projected",)
    missing = {c: names for c in wanted.counts if not kept.has(names := [f"pieces_{c}_{how}" for how in hows])}
    batches = list(itertools.islice(training_stream(run.cfg, run.task), wanted.batches)) if missing else []
    for count, names in missing.items():
        fewer = copy.deepcopy(model)
        for name in names:
            with _config_errors():
                if name.endswith("projected"):
                    report = project_pieces(fewer, batches[:FITTED_BATCHES], count=count)
                    logger.info("projected on %d pieces:\n%s", count, report)
                else:
                    _distil(run, fewer, model, batches, wanted.iterations)
            run.task.learn_anew(run.cfg, fewer)
            own = asked.clone()
            own.MODEL.ODE.NUM_PIECES, own.MODEL.ODE.STEPS, own.MODEL.ODE.DURATION = count, steps, int(duration)
            _write_network(fewer, own, folder / name, run)
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


@dataclass(frozen=True)
class Growth:
    """What is asked of `grow`.

    Attributes:
        counts: pieces of each flow in each stage of the training, each twice the one before.
        iterations: of each stage.

    Raises:
        ConfigError: the counts do not double, or there are other numbers of iterations.
    """

    counts: tuple[int, ...]
    iterations: tuple[int, ...]

    def __post_init__(self) -> None:
        doubling = all(b == 2 * a for a, b in itertools.pairwise(self.counts))
        if len(self.counts) < 2 or self.counts[0] < 1 or not doubling:
            raise ConfigError(
                f"a network grows by splitting each piece in two, and {list(self.counts)} do not double; give "
                "1 2 4 8, for example."
            )
        if len(self.iterations) != len(self.counts) or min(self.iterations) < 1:
            raise ConfigError(
                f"each number of pieces is trained for its own number of iterations, 1 or more, and there are "
                f"{len(self.counts)} and {len(self.iterations)}: {list(self.iterations)}."
            )


def grow(
    config_file: str,
    overrides: Sequence[str],
    wanted: Growth,
    *,
    tool: Sequence[str],
    command: str,
    folder: Path,
) -> Results:
    """Train a network stage by stage, splitting its pieces in between; and one that has all of them from the start.

    Each stage is a training of its own, with its own schedule and optimizer, that starts from the split weights of the
    one before. The other network has as many iterations as all stages together. What is finished is taken, and what
    was stopped is gone on with.

    Args:
        config_file: of the whole network, with ``MODEL.ODE.NUM_PIECES`` the last count and ``DURATION`` set, since the
            time of the flows does not change.
        overrides: key, value, ...
        wanted: the stages.
        tool: the command that ``tools/train_net.py``'s arguments are added to.
        command: for the records.
        folder: gets a run folder for each stage and for the other network, and ``growth.json``.

    Returns:
        A row for each network, the grown one with the minutes of all stages.

    Raises:
        ConfigError: a config that cannot be grown; a training failed.
        KeyboardInterrupt: stopped; the same command goes on.

    Source: Chang et al. 2018, "Multi-level Residual Networks from Dynamical Systems View".
    """
    cfg = load_config(config_file, overrides)
    _check_grown(cfg, wanted)
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    words = [word for pair in pairs for word in pair if pair[0] not in ("SEED", "OUTPUT_DIR")]
    starts = [cfg.MODEL.WEIGHTS, *(str(folder / f"pieces_{count}_start.pth") for count in wanted.counts[1:])]
    stages = []
    for count, iterations, weights in zip(wanted.counts, wanted.iterations, starts, strict=True):
        keys = {"MODEL.ODE.NUM_PIECES": count, "MODEL.ODE.STEPS": count, "SOLVER.MAX_ITER": iterations}
        stages.append(_training(f"pieces_{count}", config_file, cfg, folder, words, {**keys, "MODEL.WEIGHTS": weights}))
    keys = {"MODEL.ODE.STEPS": wanted.counts[-1], "SOLVER.MAX_ITER": sum(wanted.iterations)}
    other = _training("from_the_start", config_file, cfg, folder, words, keys)
    check_runs([*stages, other], training=True)
    _check_order(stages)
    for index, stage in enumerate(stages):
        if index and stage.state == "missing":
            _split(stages[index - 1], starts[index])
        train_missing([stage], tool)
    train_missing([other], tool)
    parts = [Results.read(one.folder) for one in (*stages, other)]
    minutes = sum(part.rows[0].cost["train_minutes"] for part in parts[:-1])
    grown, start = parts[-2].rows[0], parts[-1].rows[0]
    path = ", ".join(f"{c} for {n}" for c, n in zip(wanted.counts, wanted.iterations, strict=True))
    results = Results(
        what=f"Pieces of {Path(config_file).stem}, grown: {parts[-1].what}",
        **{**provenance(command), "commit": ", ".join(dict.fromkeys(part.commit for part in parts))},
        protocol=f"grown: pieces of each flow and iterations, {path}, a schedule of its own for each; from the start: "
        f"{wanted.counts[-1]} pieces for {sum(wanted.iterations)} iterations; {parts[-1].protocol}; "
        "minutes of training as each run logged them, whatever else the machine did",
        rows=(
            replace(grown, name="grown", cost={**grown.cost, "train_minutes": round(minutes, 2)}),
            replace(start, name="from_the_start"),
        ),
    )
    results.write(folder / "growth.json")
    return results


def _training(
    name: str, config_file: str, cfg: CfgNode, folder: Path, words: Sequence[str], keys: dict[str, Any]
) -> Training:
    overrides = (*words, *(str(word) for pair in keys.items() for word in pair))
    return Training(name=name, config_file=config_file, seed=cfg.SEED, folder=folder / name, overrides=overrides)


def _check_order(stages: Sequence[Training]) -> None:
    """A stage starts from the one before: it cannot be there if that is not finished."""
    for before, after in itertools.pairwise(stages):
        if before.state != "finished" and after.state != "missing":
            raise ConfigError(
                f"each stage starts from the one before, and {after.folder} was trained while {before.folder} is "
                f"{before.state}; move {after.folder} and those after it away, or give another --output."
            )


def _check_grown(cfg: CfgNode, wanted: Growth) -> None:
    ode = cfg.MODEL.ODE
    if ode.PIECES != "piecewise" or ode.METHOD not in TABLEAUS or ode.STEPS not in (0, ode.NUM_PIECES):
        raise ConfigError(
            f"a network grows by one piece and one step for each, and MODEL.ODE.PIECES is {ode.PIECES}, METHOD "
            f"{ode.METHOD}, STEPS {ode.STEPS}; set PIECES piecewise, METHOD euler and STEPS 0."
        )
    if ode.ROLE != "ode" or wanted.counts[-1] != ode.NUM_PIECES or not ode.DURATION or cfg.SEED < 0:
        raise ConfigError(
            f"a network is grown to MODEL.ODE.NUM_PIECES of its config, in a time that does not change, and ROLE is "
            f"{ode.ROLE}, NUM_PIECES {ode.NUM_PIECES}, DURATION {ode.DURATION:g}, SEED {cfg.SEED}; set NUM_PIECES "
            f"{wanted.counts[-1]}, and DURATION above 0 (1, for example), and a SEED of 0 or more."
        )


def _split(stage: Training, path: str) -> None:
    """Write the weights of a finished stage with twice the pieces."""
    cfg = stage.config()
    model = build_network(cfg)
    checkpointer = Checkpointer(model, str(stage.folder))
    checkpointer.load_weights(checkpointer.get_checkpoint_file(), whole=True)
    split_pieces(model)
    with whole(path) as partial:
        torch.save({"model": model.state_dict(), "categories": list(checkpointer.coverage.categories)}, partial)


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


class _Kept:
    """Rows that are measured once, in the folder of a projection."""

    def __init__(self, folder: Path, run: Run, model: nn.Module, wanted: Projection) -> None:
        self._path, self._run, self._lock = folder / _KEPT, run, hold(folder)
        self._marks = {**marks(run.cfg, model), "distillation": [wanted.iterations, wanted.batches]}
        self.rows: dict[str, Row] = {}
        self.commands = [run.command]
        kept = read_object(self._path)
        if kept is None:
            return
        check_marks(folder, "projection", kept["marks"], self._marks)
        self.rows = {row["name"]: Row(**row) for row in kept["rows"]}
        self.commands = list(dict.fromkeys([*kept["commands"], run.command]))

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= self.rows.keys()

    def add(self, name: str, measure: Callable[[], tuple[dict[str, float], dict[str, float]]]) -> None:
        """Measure and write, if it is not there."""
        if name not in self.rows:
            metrics, figures = measure()
            self.rows[name] = Row(
                name=name,
                role="ode",
                seed=self._run.cfg.SEED,
                config=self._run.config_file,
                metrics=metrics,
                cost=figures,
            )
            rows = [asdict(row) for row in self.rows.values()]
            content = {"marks": self._marks, "commands": self.commands, "rows": rows}
            write_text(self._path, json.dumps(content, indent=1) + "\n")
            metric = self._run.task.score
            logger.info("%s: %s %.4f", name, metric, metrics.get(metric, float("nan")))


def _measured(run: Run, model: nn.Module) -> tuple[dict[str, float], dict[str, float]]:
    return run.task.metrics(evaluate(run, model)), cost(run, model, minutes=None)


def _write_network(model: nn.Module, cfg: CfgNode, stem: Path, run: Run) -> None:
    with whole(stem.with_suffix(".pth")) as partial:
        torch.save({"model": model.state_dict(), "categories": data_categories(run.cfg, run.task)}, partial)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(stem.with_suffix(".pth")), str(stem)
    write_text(stem.with_suffix(".yaml"), f"# Made by: {run.command}\n{cfg.dump()}")


def _projection_protocol(run: Run, wanted: Projection, used: str, pieces: int) -> str:
    cfg, batch = run.cfg, run.cfg.SOLVER.IMS_PER_BATCH
    parts = [f"tested on {cfg.DATASETS.TEST[0]}, weights of {used}", run.task.protocol(cfg)]
    parts.append(f"full pieces: pieces_{pieces}")
    parts.append(f"projection by least squares on {min(FITTED_BATCHES, wanted.batches)} training batches of {batch}")
    if wanted.iterations:
        precision = "autocast" if cfg.SOLVER.AMP.ENABLED and not on_gpu(cfg) else "float32"
        parts.append(
            f"distillation from the flows of the network with {pieces} pieces: {wanted.iterations} iterations of Adam, "
            f"{precision}, "
            f"on {wanted.batches} training batches of {batch}, no labels, statistics of BatchNorm as projected"
        )
    return "; ".join(parts)


def _plot(rows: Sequence[Row], metric: str, path: Path) -> None:
    """Quality against parameters: the checkpoint ends each curve."""
    factor = 100.0 if is_fraction(metric) else 1.0
    first, *points = ((round(row.cost["parameters"] / 1e6, 3), factor * row.metrics[metric]) for row in rows)
    curves: dict[str, list[tuple[float, float]]] = {}
    for row, point in zip(rows[1:], points, strict=True):
        curves.setdefault(row.name.rpartition("_")[2], [first]).append(point)
    panel = Panel(f"{metric} by parameters", f"{metric} (%)" if factor > 1 else metric, curves)
    plot_panels([panel], "Parameters (M)", path)


def _check_folder(folder: Path) -> None:
    if holds_run(folder):
        raise ConfigError(f"{folder} holds a run; give another --output, such as {folder / 'pieces'}.")
