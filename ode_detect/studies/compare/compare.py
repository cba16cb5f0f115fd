"""From runs to results and page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ode_detect.engine.lock import alone_in
from ode_detect.engine.provenance import provenance
from ode_detect.engine.records import holds_run
from ode_detect.engine.run import open_evaluation
from ode_detect.engine.train import evaluate_only, load_network
from ode_detect.report.comparison import Compared, differences, group, numbers, summary
from ode_detect.report.page import Page
from ode_detect.report.protocol import LATENCY, MINUTES, TEST, TRAINING, Clause, Protocol, about, joined
from ode_detect.report.results import Results
from ode_detect.report.rows import Row
from ode_detect.report.tables import ROLE_WORDS
from ode_detect.studies.trainings import Training, check_runs, train_missing
from ode_detect.task import ConfigError

from . import figures
from .figures import Folders
from .measure import MANY, ONE, PICTURES, STEP, Loaded, costs_of, ratios_of, sizes, time_networks, with_times
from .runs import differing_keys, plan
from .turned import CHANGES, TURNED, turned


@dataclass(frozen=True)
class Request:
    """What is compared, and how.

    Attributes:
        configs: the files.
        output: folder of the page.
        command: for the records.
        roles: each network is taken in these; () takes it in its own.
        networks: those of these names in the headers of the configs; () takes each config as it is.
        seeds: how many, from 0: one number for all networks, or one for each.
        overrides: key, value, ... for all networks.
        weights: a checkpoint for each network, instead of runs; () takes the runs.
        train: the command of ``tools/train_net.py``, to train what is missing; () trains nothing.
        evaluate: evaluate the last weights of each run instead of taking what the run says.
        turn: evaluate the networks with seed 0 also with half the step and by another method.
        dials: files of dials to draw, next to those that the runs hold.
        seconds: for timing one picture, again for a batch, and again for a training step.
    """

    configs: tuple[str, ...]
    output: Path
    command: str
    roles: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    overrides: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: bool = False
    turn: bool = False
    dials: tuple[Path, ...] = ()
    seconds: float = 20.0


@dataclass(frozen=True)
class Scored:
    """One training with its numbers.

    Attributes:
        training: config and seed.
        cfg: resolved.
        results: of its run or evaluation.
        row: the one of the test set, under the name of the network.
        evaluation: the folder of its evaluation on the test set.
    """

    training: Training
    cfg: CfgNode
    results: Results
    row: Row
    evaluation: Path


def compare(request: Request) -> tuple[Results, list[Path]]:
    """Train or take the networks, measure them side by side, write page and results.

    Args:
        request: what is compared.

    Returns:
        The results, and the files that were written: page (HTML, Markdown), results and times.

    Raises:
        ConfigError: networks that cannot be compared, or runs that are not there, not finished or not those of their
            configs.
        CheckpointError: weights that do not fit.
        DatasetError: test data that is not there.
    """
    trainings = plan(request.configs, request.seeds, request.overrides, roles=request.roles, networks=request.networks)
    _check_request(request, trainings)
    if not request.weights:
        check_runs(trainings, training=bool(request.train))
        if request.train:
            train_missing(trainings, request.train)
    with alone_in(request.output):
        return _compare(request, trainings)


def _compare(request: Request, trainings: Sequence[Training]) -> tuple[Results, list[Path]]:
    names = list(dict.fromkeys(one.name for one in trainings))
    given = dict(zip(names, request.weights, strict=True)) if request.weights else {}
    scored = [_scored(request, training, given.get(training.name, "")) for training in trainings]
    loaded = [_loaded(request, one) for one in scored if one.training.seed == 0]
    twins, ablations = opponents(loaded)
    steps, costs, reasons = costs_of(loaded)
    times, ratios = time_networks(loaded, steps, _held_against(loaded, twins), seconds=request.seconds)
    if request.turn:
        scored = _with_turned(scored, loaded)
    results = _results(request, scored, loaded, with_times(costs, times), times)
    compared = Compared(
        networks=group(results.rows),
        twins=twins,
        ablations=ablations,
        ratios=ratios_of(ratios),
        reasons={**_reasons(request, results.rows), **reasons},
    )
    results.write(request.output / "results.json")
    timing = replace(results, what=f"times of {results.what}", rows=tuple(times), comparisons=tuple(ratios))
    timing.write(request.output / "timing.json")
    page = _page(request, scored, loaded, compared, results)
    return results, [*page.write(request.output), request.output / "results.json", request.output / "timing.json"]


def opponents(loaded: Sequence[Loaded]) -> tuple[dict[str, str], dict[str, str]]:
    """The twin and the ablation of each network: those that differ from it in the fewest config keys.

    Returns:
        Network -> twin, for all but twins; network -> ablation, for all but twins and ablations.
    """

    def nearest(one: Loaded, role: str) -> str | None:
        others = [other for other in loaded if other.role == role]
        if not others:
            return None
        return min(others, key=lambda other: len(differing_keys({"a": one.run.cfg, "b": other.run.cfg}))).name

    twins = {n.name: nearest(n, "twin") for n in loaded if n.role != "twin"}
    ablations = {n.name: nearest(n, "ablation") for n in loaded if n.role not in ("twin", "ablation")}
    return {k: v for k, v in twins.items() if v}, {k: v for k, v in ablations.items() if v}


def _held_against(loaded: Sequence[Loaded], twins: Mapping[str, str]) -> dict[str, str]:
    """What times are related to: the twin; without one, the first network."""
    return dict(twins) or {n.name: loaded[0].name for n in loaded[1:]}


def _check_request(request: Request, trainings: Sequence[Training]) -> None:
    if holds_run(request.output):
        raise ConfigError(
            f"a comparison has a folder of its own, and {request.output} holds a run. Give another --output."
        )
    earlier = request.output / "results.json"
    if earlier.exists():
        compared = {row.name for row in Results.read(earlier).rows}
        if compared != {one.name for one in trainings}:
            raise ConfigError(
                f"{earlier} holds a comparison of other networks ({', '.join(sorted(compared))}), which would be "
                "overwritten. Give another --output, or delete that folder."
            )
    if request.weights and (request.train or request.evaluate or max(request.seeds) > 1):
        raise ConfigError(
            "--weights takes one checkpoint for each network, and --train, --evaluate and --seeds make no sense with "
            "it; leave them out."
        )
    networks = dict.fromkeys(one.name for one in trainings)
    if request.weights and len(request.weights) != len(networks):
        raise ConfigError(
            f"--weights takes one checkpoint for each network, in their order, and there are {len(request.weights)} "
            f"for {len(networks)}. Give one for each of {', '.join(networks)}."
        )


def _scored(request: Request, training: Training, weights: str) -> Scored:
    """The numbers of one training: what its run says, or evaluated here; with weights, those of these."""
    cfg = training.config()
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    test = cfg.DATASETS.TEST[0]
    if not (weights or request.evaluate):
        results = Results.read(training.folder)
        row = _row_of(results, test, training)
        return Scored(training, cfg, results, row, training.folder / "inference" / test)
    folder = request.output / "evaluations" / f"{training.name}_seed_{training.seed}"
    if weights:
        cfg.MODEL.WEIGHTS = weights
        cfg.OUTPUT_DIR = str(folder)  # without checkpoints, which would be taken instead of these weights
    run = open_evaluation(
        cfg if weights else _after_training(cfg),
        command=request.command,
        config_file=training.config_file,
        folder=folder,
    )
    results = evaluate_only(run)
    row = _row_of(results, test, training)
    if request.evaluate:
        trained = Results.read(training.folder)
        row = replace(row, cost={**_row_of(trained, test, training).cost, **row.cost})
        # How it was trained, as the run says; how it is evaluated, as it was now.
        tested = Clause(TEST, f"tested on {test} with the last weights, evaluated anew")
        evaluated = (clause for clause in results.protocol if clause.key != TEST)
        results = replace(trained, protocol=(*about(trained.protocol, TRAINING), tested, *evaluated), rows=(row,))
    return Scored(training, cfg, results, row, folder / "inference" / test)


def _after_training(cfg: CfgNode) -> CfgNode:
    """The config without the weights that the training began with, so that the last ones of its run are taken."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    return cfg


def _row_of(results: Results, test: str, training: Training) -> Row:
    """The row of the first test set, under the network's name."""
    mine = [row for row in results.rows if row.name.endswith(f", {test}")] or list(results.rows[:1])
    return replace(mine[0], name=training.name, seed=training.seed, config=training.config_file)


def _loaded(request: Request, one: Scored) -> Loaded:
    """The network of a training with its last weights."""
    run = open_evaluation(
        one.cfg.clone() if request.weights else _after_training(one.cfg),
        command=request.command,
        config_file=one.training.config_file,
        folder=request.output / "evaluations" / f"{one.training.name}_seed_{one.training.seed}",
        records=False,
    )
    model, _ = load_network(run)
    return Loaded(one.row.name, one.row.role, run, model)


def _with_turned(scored: Sequence[Scored], loaded: Sequence[Loaded]) -> list[Scored]:
    found = {network.name: turned(network) for network in loaded}

    def more(one: Scored) -> Scored:
        metrics = {**one.row.metrics, **(found[one.row.name] if one.training.seed == 0 else {})}
        clause = Clause("turned", f"half_step and other_method: networks with seed 0, {TURNED}")
        results = replace(one.results, protocol=(*one.results.protocol, clause))
        return replace(one, row=replace(one.row, metrics=metrics), results=results)

    return [more(one) for one in scored]


def _results(
    request: Request,
    scored: Sequence[Scored],
    loaded: Sequence[Loaded],
    costs: Mapping[str, Mapping[str, float]],
    times: Sequence[Row],
) -> Results:
    """One row for each network and seed; what was measured once stands in that of the first seed."""
    networks = {network.name: network for network in loaded}
    rows = []
    for one in scored:
        # Sizes do not depend on the seed.
        measured = costs[one.row.name] if one.training.seed == 0 else sizes(networks[one.row.name].model)
        rows.append(replace(one.row, cost={**one.row.cost, **measured}))
    commands = [line for one in scored for line in one.results.command.splitlines()]
    now = provenance(request.command)
    task, test = loaded[0].run.task, loaded[0].run.cfg.DATASETS.TEST[0]
    return Results(
        what=f"{task.name}, {test}: {', '.join(networks)}",
        command="\n".join(dict.fromkeys([*commands, request.command])),
        commit=", ".join(dict.fromkeys([*(one.results.commit for one in scored), now["commit"]])),
        date=now["date"],
        machine=now["machine"],
        protocol=_protocol(scored, times),
        rows=tuple(sorted(rows, key=lambda row: list(networks).index(row.name))),
    )


def _protocol(scored: Sequence[Scored], times: Sequence[Row]) -> Protocol:
    """Clause by clause: in what the runs differ, what they share, how it was measured here."""
    stated = [(f"{one.row.name}, seed {one.row.seed}", one.results.protocol) for one in scored]
    rounds = {row.case: int(row.cost["rounds"]) for row in times}
    batch = next(name for name in rounds if name.startswith(MANY))
    step = f"networks in turns, median of {rounds[STEP]} rounds" if STEP in rounds else "not timed"
    latency = (
        f"latency: one picture at a time, {batch.removeprefix(f'{MANY} of ')} at a time for pictures per second, the "
        f"networks in turns in one process on the first {PICTURES} test pictures, median of {rounds[ONE]} and "
        f"{rounds[batch]} rounds, threads: {torch.get_num_threads()}"
    )
    return (
        *joined(stated),
        Clause(LATENCY, latency),
        Clause("training step", f"a training step: forward and backward on the first training batch, {step}"),
        *_MEASURED,
        MINUTES,
    )


# How the costs of networks are measured.
_MEASURED = (
    Clause(
        "memory",
        "training memory: growth of the memory in use in one forward and backward pass of the first training batch, "
        "gradients included, weights and optimizer not",
    ),
    Clause("memory", "kept for the gradient: what autograd keeps of that forward pass"),
    Clause("evaluations", "evaluations: of all fields for one test picture"),
    Clause(
        "evaluations",
        "backward evaluations: of all fields in the backward pass of one training step, 0 where the forward pass is "
        "kept",
    ),
    Clause("seeds", "time, memory and evaluations of the networks with seed 0"),
)


def _reasons(request: Request, rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Why a number that other networks have is missing in one."""
    rows = list(rows)
    metrics = dict.fromkeys(name for row in rows for name in row.metrics)
    reasons = {}
    for row in rows:
        for metric in metrics:
            if metric not in row.metrics and metric.endswith(tuple(CHANGES)):
                reasons[row.name, metric] = "no flows, or not solved in that way"
            elif metric not in row.metrics:
                reasons[row.name, metric] = (
                    "the evaluation gave no such number, or an earlier version evaluated; --evaluate does it again"
                )
        if "train_minutes" not in row.cost:
            why = "weights were given, so nothing is known of their training" if request.weights else "not logged"
            reasons[row.name, "train_minutes"] = why
    return reasons


def _page(
    request: Request, scored: Sequence[Scored], loaded: Sequence[Loaded], compared: Compared, results: Results
) -> Page:
    task, names = loaded[0].run.task, [n.name for n in loaded]
    folder = request.output / "pictures"
    found = [
        Folders(
            network=one.row.name,
            role=ROLE_WORDS[one.row.role],
            seed=one.row.seed,
            run=None if request.weights else one.training.folder,
            evaluation=one.evaluation,
        )
        for one in scored
    ]
    sections = (
        figures.training_section(found, task, names, folder),
        figures.curves_section(found, task, names, folder),
        figures.confusion_section(found, folder),
        figures.dial_section(found, request.dials, task, folder),
        figures.examples_section(loaded, folder),
    )
    keys = differing_keys({one.row.name: one.cfg for one in scored if one.training.seed == 0})
    test = loaded[0].run.cfg.DATASETS.TEST[0]
    most = max(request.seeds)
    counts = " to ".join(map(str, sorted({min(request.seeds), most})))
    seeds = f"{counts} seeds" if most > 1 else "one seed"
    return Page(
        title=f"{', '.join(names[:-1])} and {names[-1]}",
        about=f"{task.name} on {test}, {seeds}; {results.date}",
        summary=summary(compared, task.score),
        warnings=tuple(_warnings(request, scored, compared, keys)),
        numbers=numbers(compared),
        differences=differences(compared),
        sections=tuple(section for section in sections if section),
        keys=keys,
        protocol=tuple(map(str, results.protocol)),
        commands=tuple(results.command.splitlines()),
        machine=results.machine,
        commit=results.commit,
        date=results.date,
    )


def _warnings(
    request: Request, scored: Sequence[Scored], compared: Compared, keys: Mapping[str, tuple[str, ...]]
) -> Iterable[str]:
    unlike = {key: values for key, values in keys.items() if not key.startswith("MODEL.")}
    if "MODEL.WEIGHTS" in keys and not request.weights:  # what they began with
        unlike["MODEL.WEIGHTS"] = keys["MODEL.WEIGHTS"]
    if unlike:
        listed = "; ".join(f"{key}: {', '.join(values)}" for key, values in unlike.items())
        yield f"The networks were not trained alike, so differences are not those of the networks alone. {listed}."
    roles = {network.role for network in compared.networks}
    missing = [role for role in ("twin", "ablation") if role not in roles]
    if "ode" in roles and missing:
        yield (
            f"Not measured here: {' and '.join(f'the {role}' for role in missing)}. Without twin and ablation nobody "
            f"can tell what the flows do; --roles ode twin ablation compares a config with both."
        )
    machines = dict.fromkeys(_machine(one.results.machine) for one in scored)
    if len(machines) > 1:
        yield f"The runs were made on different machines, so training times cannot be compared: {'; '.join(machines)}."


def _machine(described: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in described.items() if key in ("cpu", "cores", "threads"))
