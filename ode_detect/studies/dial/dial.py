"""The dial of one checkpoint: quality and cost by steps and methods, measured once and kept in a folder."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context

from ode_detect.engine.config import tolerances
from ode_detect.engine.lock import hold
from ode_detect.engine.records import holds_run, write_records
from ode_detect.engine.run import Run, open_evaluation
from ode_detect.engine.train import cost, evaluate, load_network
from ode_detect.ode import Adaptive, SolveError
from ode_detect.ode.adaptive import takes_steps
from ode_detect.ode.dial import LeftOut, SolverChange, changed_solver, check_method, chosen_solvers, solved_by
from ode_detect.ode.flows import find_flow, flows_of
from ode_detect.ode.tally import now
from ode_detect.studies.kept import Kept, marks
from ode_detect.studies.timing import rotate
from ode_detect.task import ConfigError

from .settings import Measured, Setting
from .statistics import Statistics

logger = logging.getLogger("ode_detect.studies")

# What was evaluated, in the folder of a dial.
_KEPT = "evaluations.json"
# Of a test set, at most so many pictures are timed.
PICTURES = 20


class Dial:
    """One checkpoint on the first test set of its config, at any setting.

    What was evaluated is kept in the folder and not evaluated again, in a later command either, as long as config,
    weights and commit are the same. Times are never kept: those that are compared are measured side by side.

    Args:
        cfg: the config, not frozen.
        command: for the records.
        config_file: for the records.
        weights: a checkpoint; "" takes what `ode_detect.engine.train.fill` takes.
        folder: where everything is written; not that of a run.

    Attributes:
        folder: where everything is written.
        kept: what is in the folder, and what it depends on.
        asked: the config as it was given, with the seed that was drawn.
        run: the evaluation.
        model: the network.
        weights: the file that it was filled from.
        statistics: those of its BatchNorms, by setting.
        flows: the flows by path.
        full: the setting of the config.
        metric: name of the main metric.
        better: "max" or "min".
        measured: all that is known, by the setting's name.

    Raises:
        ConfigError: a network without flows or one to be optimised, a folder with a run, or one with the dial of
            another config, other weights or another commit, or one that another command is writing into.
    """

    def __init__(self, cfg: CfgNode, *, command: str, config_file: str, weights: str, folder: Path) -> None:
        _check(cfg, folder)
        self.asked = cfg.clone()
        cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
        self.folder, self._lock = folder, hold(folder)
        self.kept = Kept(folder / _KEPT)
        if cfg.SEED < 0 and self.kept.content:
            cfg.SEED = self.kept.content["seed"]  # that was drawn then
        # What the folder says of the commands before stays, if this one is refused.
        self.run: Run = open_evaluation(
            cfg,
            command=command,
            config_file=config_file,
            folder=folder / "sweep",
            records=False,
        )
        self.asked.SEED = self.run.cfg.SEED
        self.model, self.weights = load_network(self.run, weights)
        try:
            self.flows = flows_of(self.model)
        except ValueError as error:
            raise ConfigError(f"{error} MODEL.ODE.ROLE ode makes them, in MODEL.ODE.STAGES.") from error
        self.full = Setting(tuple((path, block.solver) for path, block in self.flows.items()))
        # "bbox/AP50" is "AP50" in the rows.
        self.metric, self.better = self.run.task.score, self.run.task.better
        self.statistics = Statistics(self.run, self.model, folder / "statistics.pth")
        self.measured: dict[str, Measured] = {}
        self.kept.check("dial", marks(self.run.cfg, self.model), command)
        if self.kept.content:
            self._take_up(self.kept.content["settings"])

    def settings(
        self, steps: Sequence[int], methods: Sequence[str], flows: Sequence[str] | None = None
    ) -> list[Setting]:
        """The full setting, and every method with every number of steps.

        Args:
            steps: numbers of steps; methods that choose their own come once, with the tolerances of the config.
            methods: of ours or of torchdiffeq.
            flows: change only these flows; None changes all.

        Raises:
            ConfigError: an impossible request.
        """
        found = {self.full.name: self.full}
        try:
            for method in methods:
                for count in steps if check_method(method) or takes_steps(Adaptive(method)) else [None]:
                    change = SolverChange(steps=count, method=method, flow=flows, **tolerances(self.run.cfg))
                    chosen = chosen_solvers(self.model, change)
                    setting = self.full.with_flows(chosen)
                    if self._possible(setting):
                        found.setdefault(setting.name, setting)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return list(found.values())

    def _possible(self, setting: Setting) -> bool:
        """Whether the flows last long enough for the blocks that are to be kept; other settings are always so."""
        try:
            for path, solver in setting.solvers:
                if isinstance(solver, LeftOut):
                    list(solver.grid(self.flows[path].duration))
        except ValueError as error:
            logger.warning("%s is left out: %s", setting.name, error)
            return False
        return True

    def paths(self, flows: Sequence[str] | None) -> list[str]:
        """The paths of flows by their names, each once; of all flows for None."""
        named = self.flows if flows is None else [find_flow(self.flows, name) for name in flows]
        return list(dict.fromkeys(named))

    def evaluate(self, setting: Setting) -> Measured:
        """Quality and cost at a setting; what is in the folder is taken from there."""
        if setting.name not in self.measured:
            began = time.perf_counter()
            metrics: dict[str, float] = {}
            figures: dict[str, float] = {}
            try:
                if setting != self.full:
                    self.statistics.estimate(setting)
                with self.at(setting):
                    figures = cost(self.run, self.model, minutes=None)
                    metrics = self.run.task.metrics(evaluate(self.run, self.model))
            except SolveError as error:
                logger.warning("%s is left out: %s", setting.name, error)
            self.measured[setting.name] = Measured(setting, metrics, figures)
            self.keep()
            score = f"{self.metric} {metrics[self.metric]:.4f}" if self.metric in metrics else f"no {self.metric}"
            logger.info("%s: %s, in %.1f s", setting.name, score, time.perf_counter() - began)
        return self.measured[setting.name]

    @property
    def known(self) -> list[str]:
        """The names of all settings with a quality."""
        return [name for name in self.measured if self.quality(name) is not None]

    def quality(self, name: str) -> float | None:
        """The main metric at a measured setting, turned so that more is better; None if there is none."""
        value = self.measured[name].metrics.get(self.metric)
        return value if value is None or self.better == "max" else -value

    def times(self, names: Sequence[str]) -> dict[str, float]:
        """Milliseconds for one picture: the median over pictures of the faster of two calls.

        The settings take turns on each picture, so that a machine that slows down slows all of them.

        Args:
            names: of measured settings.
        """
        loader = self.run.task.test_loader(self.run.cfg, self.run.cfg.DATASETS.TEST[0])
        # One at a time, however many a batch of the loader holds.
        batches = [[picture] for picture in itertools.islice(itertools.chain.from_iterable(loader), PICTURES)]
        logger.info("timing %d settings on %d pictures", len(names), len(batches))
        sides = {name: partial(self.at, self.measured[name].setting) for name in names}
        device = next(self.model.parameters()).device
        with torch.no_grad(), inference_context(self.model):
            taken = rotate(sides, self.model, batches, clock=partial(now, device))
        return {name: statistics.median(1000 * value for value in values) for name, values in taken.items()}

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """The network at a setting, with the statistics that belong to it."""
        with solved_by(self.model, dict(setting.solvers)), self.statistics.at(setting):
            yield

    def _take_up(self, settings: Mapping[str, Any]) -> None:
        # What was evaluated with statistics that are lost cannot be timed or chosen without them.
        if not self.statistics.read():
            return
        for name, entry in settings.items():
            solvers = {}
            for path, solver in self.full.solvers:
                method, steps = entry["solvers"][path]
                solvers[path] = changed_solver(solver, method=method, steps=steps, **tolerances(self.run.cfg))
            self.measured[name] = Measured(self.full.with_flows(solvers), entry["metrics"], entry["cost"])
        logger.info("%d settings are known from an earlier sweep in %s", len(self.measured), self.folder)

    def keep(self) -> None:
        """Write what was measured into the folder."""
        write_records(self.run.cfg, self.run.folder, self.run.command)
        # Statistics first: an evaluation that is known has its own.
        self.statistics.write()
        settings = {}
        for name, m in self.measured.items():
            solvers = {p: [s.method, s.steps if takes_steps(s) else None] for p, s in m.setting.solvers}
            settings[name] = {"solvers": solvers, "metrics": m.metrics, "cost": m.cost}
        self.kept.write(seed=self.run.cfg.SEED, settings=settings)


def _check(cfg: CfgNode, folder: Path) -> None:
    if holds_run(folder):
        raise ConfigError(
            f"{folder} holds a run, whose config.yaml a dial would overwrite; give another --output, such as "
            f"{folder / 'dial'}."
        )
    if cfg.MODEL.OPTIMIZE_FOR_INFERENCE:
        raise ConfigError(
            "a dial measures the network as it was trained, and MODEL.OPTIMIZE_FOR_INFERENCE asks for an optimised "
            "copy; set it to False here, and to True where the chosen config.yaml is used."
        )
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            "a dial measures one pass of the network, and TEST.AUG.ENABLED asks for one of each copy of a picture; set "
            "it to False here, and to True where the chosen config.yaml is used."
        )
