"""The dial of one checkpoint: quality and cost by steps and methods, measured once and kept in a folder."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.evaluator import inference_context
from torch import Tensor

from ode_detect.engine.build import training_stream
from ode_detect.engine.classes import data_categories
from ode_detect.engine.config import tolerances
from ode_detect.engine.lock import hold
from ode_detect.engine.provenance import provenance
from ode_detect.engine.records import holds_run, write_records
from ode_detect.engine.run import Run, open_evaluation
from ode_detect.engine.train import cost, evaluate, load_network
from ode_detect.engine.weights import load_weights_only
from ode_detect.media.files import read_object, say_unreadable, whole, write_text
from ode_detect.ode import Adaptive, SolveError, estimate_statistics
from ode_detect.ode.adaptive import Solver, takes_steps
from ode_detect.ode.dial import LeftOut, SolverChange, changed_solver, check_method, chosen_solvers, solved_by
from ode_detect.ode.flows import find_flow, flow_names, flows_of
from ode_detect.ode.statistics import StatisticsError, batch_norms
from ode_detect.report.dial import plot_dial
from ode_detect.report.plots import MetricsError
from ode_detect.report.protocol import COSTS_OF_ONE_PICTURE, FULL_STEPS, LATENCY, TEST, Clause, Protocol, clauses
from ode_detect.report.results import Results, Row
from ode_detect.studies.kept import check_marks, marks
from ode_detect.task import ConfigError

logger = logging.getLogger("ode_detect.studies")

# What was evaluated, in the folder of a dial.
_KEPT = "evaluations.json"
# Of a test set, at most so many pictures are timed.
PICTURES = 20


@dataclass(frozen=True)
class Setting:
    """How each flow of a network is solved.

    Attributes:
        solvers: (path of the flow, solver), in the order of the network.
    """

    solvers: tuple[tuple[str, Solver], ...]

    @property
    def name(self) -> str:
        """Such as "euler_2" where all flows are solved alike; "euler_1-2-2", "euler_1-rk4_2-euler_2" where not."""
        methods = {solver.method for _, solver in self.solvers}
        steps = [str(solver.steps) for _, solver in self.solvers if takes_steps(solver)]
        if len(methods) == 1 and len(steps) == len(self.solvers):
            return f"{methods.pop()}_{steps[0] if len(set(steps)) == 1 else '-'.join(steps)}"
        if len({solver for _, solver in self.solvers}) == 1:
            return methods.pop()
        return "-".join(f"{s.method}_{s.steps}" if takes_steps(s) else s.method for _, s in self.solvers)

    def with_flows(self, solvers: Mapping[str, Solver]) -> Setting:
        """The setting with other solvers for some flows."""
        return Setting(tuple((path, solvers.get(path, solver)) for path, solver in self.solvers))

    def differs(self, other: Setting) -> set[str]:
        """The flows that two settings of one network solve in different ways."""
        return {path for (path, a), (_, b) in zip(self.solvers, other.solvers, strict=True) if a != b}


@dataclass(frozen=True)
class Measured:
    """What was measured at a setting.

    Attributes:
        setting: the setting.
        metrics: of the test set; empty if the network could not be solved or gave nothing that can be evaluated.
        cost: parameters, and evaluations and multiply-adds of one picture.
    """

    setting: Setting
    metrics: dict[str, float]
    cost: dict[str, float]


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
        self._asked = cfg.clone()
        cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
        self.folder, self._lock = folder, hold(folder)
        kept = read_object(folder / _KEPT) or {}
        if cfg.SEED < 0 and kept:
            cfg.SEED = kept["seed"]  # that was drawn then
        # What the folder says of the commands before stays, if this one is refused.
        self.run: Run = open_evaluation(
            cfg,
            command=command,
            config_file=config_file,
            folder=folder / "sweep",
            records=False,
        )
        self._asked.SEED = self.run.cfg.SEED
        self.model, self.weights = load_network(self.run, weights)
        try:
            self.flows = flows_of(self.model)
        except ValueError as error:
            raise ConfigError(f"{error} MODEL.ODE.ROLE ode makes them, in MODEL.ODE.STAGES.") from error
        self.full = Setting(tuple((path, block.solver) for path, block in self.flows.items()))
        # "bbox/AP50" is "AP50" in the rows.
        self.metric, self.better = self.run.task.score, self.run.task.better
        estimating = bool(batch_norms(self.model)) and self.run.cfg.SOLVER.DIAL.STATISTICS_BATCHES > 0
        self.statistics_batches = self.run.cfg.SOLVER.DIAL.STATISTICS_BATCHES if estimating else 0
        self._own = self._statistics()
        self._estimated: dict[str, dict[str, Tensor]] = {}
        self.measured: dict[str, Measured] = {}
        self._marks = marks(self.run.cfg, self.model)
        self._commands = list(dict.fromkeys([*kept.get("commands", []), command]))
        if kept:
            self._take_up(kept)

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
                self._estimate(setting)
                with self.at(setting):
                    figures = cost(self.run, self.model, minutes=None)
                    metrics = self.run.task.metrics(evaluate(self.run, self.model))
            except SolveError as error:
                logger.warning("%s is left out: %s", setting.name, error)
            self.measured[setting.name] = Measured(setting, metrics, figures)
            self._write()
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
        taken: dict[str, list[float]] = {name: [] for name in names}
        with torch.no_grad(), inference_context(self.model):
            for name in names:
                self._seconds(name, batches[0])  # for warming up
            for turn, batch in enumerate(batches):
                # Whoever begins changes from picture to picture.
                order = [*names[turn % len(names) :], *names[: turn % len(names)]]
                first = {name: self._seconds(name, batch) for name in order}
                for name in order:
                    taken[name].append(1000 * min(first[name], self._seconds(name, batch)))
        return {name: statistics.median(values) for name, values in taken.items()}

    def _seconds(self, name: str, batch: Any) -> float:
        with self.at(self.measured[name].setting):
            began = _now()
            self.model(batch)
            return _now() - began

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """The network at a setting, with the statistics that belong to it."""
        own = self._estimated.get(setting.name)
        with solved_by(self.model, dict(setting.solvers)):
            if own:
                self._set_statistics(own)
            try:
                yield
            finally:
                if own:
                    self._set_statistics(self._own)

    def write_choice(self, setting: Setting, claim: str) -> Path:
        """Write the config of a setting, and a checkpoint if it has statistics, or knows training pictures, of its own.

        ``config.yaml`` is the latest choice; that of each setting stays as ``NAME.yaml`` with ``NAME.pth``.

        Args:
            setting: a measured setting.
            claim: what it is good for, one line.

        Returns:
            ``config.yaml``.
        """
        weights = self.weights
        if setting != self.full:
            with self.at(setting):
                model = copy.deepcopy(self.model)
            if self.run.task.renew(self.run.cfg, model) or setting.name in self._estimated:
                weights = str(self.folder / f"{setting.name}.pth")
                categories = data_categories(self.run.cfg, self.run.task)
                _save({"model": model.state_dict(), "categories": categories}, weights)
        cfg = self._asked.clone()
        cfg.MODEL.WEIGHTS = weights
        names = flow_names(self.flows)
        cfg.MODEL.ODE.FLOWS = [_entry(names[path], solver) for path, solver in setting.solvers]
        # A folder without the checkpoints of the run, which would be taken instead of these weights.
        cfg.OUTPUT_DIR = str(self.folder)
        text = f"# {claim}\n# Made by: {self.run.command}\n{cfg.dump()}"
        for name in (f"{setting.name}.yaml", "config.yaml"):
            write_text(self.folder / name, text)
        return self.folder / "config.yaml"

    def report(self, times: Mapping[str, float]) -> Results:
        """Write dial.json and dial.png.

        Args:
            times: milliseconds by the name of the setting; settings without a time or without metrics are left out.
        """
        self._write()
        cfg, task = self.run.cfg, self.run.task
        known = [m for m in self.measured.values() if m.metrics and m.setting.name in times]
        results = Results(
            what=f"The dial of {Path(self.run.config_file).stem}: {task.name}, {cfg.DATASETS.TEST[0]}",
            **{**provenance("\n".join(self._commands)), "commit": self._marks["commit"]},
            protocol=self._protocol([m.setting for m in known]),
            rows=tuple(
                Row(
                    name=m.setting.name,
                    role="ode",
                    seed=cfg.SEED,
                    config=self.run.config_file,
                    metrics=m.metrics,
                    cost={**m.cost, "latency_ms": round(times[m.setting.name], 3)},
                )
                for m in sorted(known, key=lambda m: (m.cost["evaluations"], times[m.setting.name]))
            ),
        )
        results.write(self.folder / "dial.json")
        try:
            plot_dial(results.rows, self.metric, self.folder / "dial.png", full=[self.full.name], better=self.better)
        except MetricsError as error:
            logger.warning("not drawn: %s", error)
        return results

    def picked(self, count: int) -> str:
        """What a choice among so many measured settings is worth."""
        return f"on {self.run.cfg.DATASETS.TEST[0]} itself among {count} settings: not an independent estimate"

    def _protocol(self, shown: Sequence[Setting]) -> Protocol:
        cfg = self.run.cfg
        stated = [
            Clause(TEST, f"tested on {cfg.DATASETS.TEST[0]}, weights of {self.weights}"),
            *clauses("metrics", self.run.task.protocol(cfg)),
            Clause(FULL_STEPS, self.full.name),
        ]
        if self.statistics_batches:
            batches = f"{self.statistics_batches} training batches of {cfg.SOLVER.IMS_PER_BATCH}"
            text = (
                "BatchNorm statistics: of the full steps the running averages in the checkpoint, of all other settings "
                f"estimated from {batches}"
            )
            # A setting that is here was solved, so what has no statistics of its own could not be estimated.
            fell_back = [s.name for s in shown if s != self.full and s.name not in self._estimated]
            if fell_back:
                text += f", but for {', '.join(fell_back)}: not finite, so those of the full steps"
            stated.append(Clause("statistics", text))
        latency = (
            f"latency: median over up to {PICTURES} test pictures of the faster of two calls, the settings in turn on "
            f"each, {torch.get_num_threads()} threads"
        )
        picked = f"a setting picked by these rows is picked {self.picked(len(shown))}"
        return (*stated, COSTS_OF_ONE_PICTURE, Clause(LATENCY, latency), Clause("picked", picked))

    def _estimate(self, setting: Setting) -> None:
        """Statistics for a setting; those of the full one are the checkpoint's own."""
        if not self.statistics_batches or setting == self.full:
            return
        batches = itertools.islice(training_stream(self.run.cfg, self.run.task), self.statistics_batches)
        try:
            with solved_by(self.model, dict(setting.solvers)):
                estimate_statistics(self.model, batches)
                self._estimated[setting.name] = self._statistics()
        except StatisticsError as error:
            logger.warning("%s keeps the statistics of the full steps: %s", setting.name, error)
        finally:
            self._set_statistics(self._own)

    def _statistics(self) -> dict[str, Tensor]:
        named = batch_norms(self.model)
        return {f"{path}.{n}": b.clone() for path, norm in named.items() for n, b in norm.named_buffers(recurse=False)}

    def _set_statistics(self, values: Mapping[str, Tensor]) -> None:
        # Of the network as a whole it would be a state without the statistics of a FrozenBN, which then forgets them.
        for path, norm in batch_norms(self.model).items():
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(values[f"{path}.{name}"])

    def _take_up(self, kept: dict[str, Any]) -> None:
        check_marks(self.folder, "dial", kept["marks"], self._marks)
        file = self.folder / "statistics.pth"
        if file.exists():
            try:
                self._estimated = load_weights_only(str(file))
            except Exception as error:  # what a broken file makes its reader raise is nobody's contract
                # What was evaluated with these statistics cannot be timed or chosen without them.
                say_unreadable(file, error)
                return
        for name, entry in kept["settings"].items():
            solvers = {}
            for path, solver in self.full.solvers:
                method, steps = entry["solvers"][path]
                solvers[path] = changed_solver(solver, method=method, steps=steps, **tolerances(self.run.cfg))
            self.measured[name] = Measured(self.full.with_flows(solvers), entry["metrics"], entry["cost"])
        logger.info("%d settings are known from an earlier sweep in %s", len(self.measured), self.folder)

    def _write(self) -> None:
        """Statistics first: an evaluation that is known has its own."""
        write_records(self.run.cfg, self.run.folder, self.run.command)
        if self._estimated:
            _save(self._estimated, self.folder / "statistics.pth")
        kept: dict[str, Any] = {"marks": self._marks, "seed": self.run.cfg.SEED, "commands": self._commands}
        kept["settings"] = {}
        for name, m in self.measured.items():
            solvers = {p: [s.method, s.steps if takes_steps(s) else None] for p, s in m.setting.solvers}
            kept["settings"][name] = {"solvers": solvers, "metrics": m.metrics, "cost": m.cost}
        write_text(self.folder / _KEPT, json.dumps(kept, indent=1) + "\n")


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


def _entry(name: str, solver: Solver) -> dict[str, Any]:
    steps = {"STEPS": solver.steps} if takes_steps(solver) else {}
    return {"FLOW": name, "METHOD": solver.method, **steps}


def _save(value: Any, path: str | Path) -> None:
    with whole(path) as partial:
        torch.save(value, partial)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
