"""A run: one folder that holds everything about it, and what is done in it (train, evaluate, report)."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import secrets
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ode_detect.ode import record_solves
from ode_detect.ode.record import MultiplyAdds
from ode_detect.report.plots import plot_losses, plot_metric, read_metrics
from ode_detect.report.results import Results, Row, commit, machine

from .checkpoint import Checkpointer, CheckpointError
from .config import ConfigError
from .stream import seed_everything
from .task import Task, get_task
from .trainer import Trainer, autocast, build_network

logger = logging.getLogger("ode_detect.engine")


@dataclass(frozen=True)
class Run:
    """A run folder with its config and task.

    Attributes:
        cfg: resolved and frozen.
        task: what ``cfg.TASK`` names.
        folder: ``cfg.OUTPUT_DIR``; when only evaluating, ``evaluation`` in it.
        command: how to make it again.
        config_file: what the config was read from.
    """

    cfg: CfgNode
    task: Task
    folder: Path
    command: str
    config_file: str


def open_run(cfg: CfgNode, *, command: str, config_file: str, resume: bool, evaluating: bool = False) -> Run:
    """Prepare the run folder: log, resolved config, environment, seeds.

    Args:
        cfg: the config; its seed is drawn here if it is negative.
        command: for the records.
        config_file: for the records.
        resume: go on in a folder that holds a run.
        evaluating: only evaluate; what is there stays as it is.

    Raises:
        ConfigError: the folder holds another run, or training cannot work as configured.
        DatasetError: data that the config asks for is not there.
    """
    task = get_task(cfg)
    folder = Path(cfg.OUTPUT_DIR) / ("evaluation" if evaluating else "")
    holds_run = (folder / "last_checkpoint").exists() or (folder / "metrics.json").exists()
    if holds_run and not (resume or evaluating):
        raise ConfigError(
            f"{folder} already holds a run, which would be overwritten. Go on with it by --resume, or choose another "
            "folder by OUTPUT_DIR."
        )
    task.require([*(() if evaluating else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST])
    if not evaluating:
        _check_frozen(cfg)
    _settle_seed(cfg, folder, resume)
    changes = _changes(cfg, folder / "config.yaml") if resume else []
    cfg.freeze()
    seed_everything(cfg.SEED + comm.get_rank())
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "environment.json").write_text(json.dumps(environment(command), indent=2) + "\n")
    _log_into(folder)
    for change in changes:
        logger.warning("the run began with another value of %s", change)
    return Run(cfg, task, folder, command, config_file)


def train(run: Run, *, resume: bool) -> Results:
    """Train to the end, evaluate the last weights, write the reports.

    Args:
        run: an open run.
        resume: go on from the last checkpoint in the folder, if there is one.

    Raises:
        Interrupted: the run was asked to stop; it can be resumed.
    """
    finished = run.folder / "results.json"
    trainer = Trainer(run.cfg, run.task, lambda model: evaluate(run, model))
    trainer.resume_or_load(resume=resume)
    if trainer.start_iter >= run.cfg.SOLVER.MAX_ITER and finished.exists():
        logger.info("the run in %s is finished already", run.folder)
        return Results.read(finished)
    trainer.train()
    return report(run, trainer.checkpointer.model, trainer.last_results, minutes=trainer.seconds / 60)


def evaluate_only(run: Run) -> Results:
    """Evaluate the weights of ``MODEL.WEIGHTS``, or the last ones in the run folder, and write the reports.

    Raises:
        CheckpointError: there are no weights, or they do not fill the network.
    """
    model = build_network(run.cfg)
    checkpointer = Checkpointer(model, run.cfg.OUTPUT_DIR, allow_partial=run.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS)
    weights = run.cfg.MODEL.WEIGHTS or checkpointer.get_checkpoint_file()
    if not weights:
        raise CheckpointError(
            f"there is nothing to evaluate: MODEL.WEIGHTS is empty and {run.folder} holds no checkpoint. "
            "Give MODEL.WEIGHTS path/to/model.pth."
        )
    checkpointer.load_weights(weights, whole=True)
    return report(run, model, evaluate(run, model), minutes=None)


def evaluate(run: Run, model: nn.Module) -> dict[str, Any]:
    """Evaluate on the data sets of ``DATASETS.TEST``.

    Returns:
        The evaluator's nested results; by data set first where there are several.
    """
    results = {}
    for name in run.cfg.DATASETS.TEST:
        evaluator = run.task.evaluator(run.cfg, name, str(run.folder / "inference" / name))
        # pycocotools prints; its table belongs into the log.
        with autocast(run.cfg), contextlib.redirect_stdout(io.StringIO()) as printed:
            results[name] = inference_on_dataset(model, run.task.test_loader(run.cfg, name), evaluator) or {}
        logging.getLogger("detectron2.pycocotools").info("%s", printed.getvalue())
        scores = "  ".join(f"{key} {value:.3f}" for key, value in run.task.metrics(results[name]).items())
        logger.info("evaluated on %s: %s", name, scores)
    return next(iter(results.values()), {}) if len(results) < 2 else results


def report(run: Run, model: nn.Module, nested: dict[str, Any], *, minutes: float | None) -> Results:
    """Write results.json, plots and pictures into the run folder.

    Args:
        run: the run.
        model: its last weights.
        nested: what `evaluate` gave for them.
        minutes: time spent training; None if nothing was trained.
    """
    cfg, name = run.cfg, run.cfg.DATASETS.TEST[0] if run.cfg.DATASETS.TEST else ""
    stem, role = Path(run.config_file).stem, cfg.MODEL.ODE.ROLE
    row = Row(
        name=stem if role == "ode" else f"{stem}_{role}",
        role=role,
        seed=cfg.SEED,
        config=run.config_file,
        metrics=run.task.metrics(nested.get(name, nested)),
        cost=cost(run, model, minutes=minutes),
    )
    results = Results(
        what=f"{run.task.name}, {name}",
        command=run.command,
        commit=commit(),
        date=datetime.now(timezone.utc).date().isoformat(),
        machine=machine(),
        protocol=_protocol(cfg),
        rows=(row,),
    )
    if comm.is_main_process():
        if (run.folder / "metrics.json").exists():
            history = read_metrics(run.folder / "metrics.json")
            plot_losses(history, run.folder / "loss.png")
            plot_metric(history, [run.task.metric.replace("AP50", "AP"), run.task.metric], run.folder / "ap.png")
        if name:
            run.task.draw(cfg, model, name, run.folder / "detections.jpg")
        results.write(run.folder / "results.json")
    return results


def cost(run: Run, model: nn.Module, *, minutes: float | None) -> dict[str, float]:
    """What the model costs: parameters, and for one picture multiply-adds, evaluations and time.

    Args:
        run: the run, for its first test pictures (up to 10).
        model: on its device.
        minutes: time spent training, if any.
    """
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    if minutes is not None:
        figures["train_minutes"] = round(minutes, 2)
        figures["train_memory_mib"] = _peak_memory_mib(run.cfg.MODEL.DEVICE)
    if not run.cfg.DATASETS.TEST:
        return figures
    batches = list(itertools.islice(run.task.test_loader(run.cfg, run.cfg.DATASETS.TEST[0]), 10))
    seconds = []
    with inference_context(model), torch.no_grad(), autocast(run.cfg):
        with MultiplyAdds() as counter, record_solves(model, measure=False) as record:
            model(batches[0])
        for batch in batches:
            began = time.perf_counter()
            model(batch)
            if run.cfg.MODEL.DEVICE != "cpu":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - began) / len(batch))
    figures["macs"] = counter.total
    figures["evaluations"] = record.total.forward_evaluations
    figures["latency_ms"] = round(statistics.median(seconds) * 1e3, 2)
    return figures


def environment(command: str) -> dict[str, Any]:
    """Command, commit, machine and the versions of the packages that matter."""
    versions = {}
    for package in ("torch", "torchvision", "detectron2", "torchdiffeq", "numpy", "pycocotools", "ode_detect"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "command": command,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _log_into(folder: Path) -> None:
    """Everything into log.txt; on the terminal what we say ourselves, and others' warnings."""
    for name in ("ode_detect", "detectron2", "fvcore"):
        log = setup_logger(str(folder / "log.txt"), distributed_rank=comm.get_rank(), name=name)
        terminal = [h for h in log.handlers if type(h) is logging.StreamHandler]
        for handler in terminal:
            handler.setLevel(logging.INFO if name == "ode_detect" else logging.WARNING)


def _settle_seed(cfg: CfgNode, folder: Path, resume: bool) -> None:
    """Draw the seed if the config leaves it open; a resumed run keeps the one it began with."""
    if cfg.SEED >= 0:
        return
    begun = folder / "config.yaml"
    if resume and begun.exists():
        cfg.SEED = CfgNode.load_yaml_with_base(str(begun))["SEED"]
    else:
        cfg.SEED = secrets.randbelow(2**31)


def _changes(cfg: CfgNode, begun: Path) -> list[str]:
    """The keys in which a config differs from the one that a run began with, each with both values."""
    if not begun.exists():
        return []
    before, now = _flat(CfgNode.load_yaml_with_base(str(begun))), _flat(CfgNode.load_cfg(cfg.dump()))
    return [f"{k}: {before[k]!r}, now {now[k]!r}" for k in now if k in before and before[k] != now[k]]


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def _check_frozen(cfg: CfgNode) -> None:
    norms = {"MODEL.RESNETS.NORM": cfg.MODEL.RESNETS.NORM, "MODEL.ODE.NORM": cfg.MODEL.ODE.NORM}
    frozen = [key for key, norm in norms.items() if norm == "FrozenBN"]
    if frozen and not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"{frozen[0]} is FrozenBN, which never learns, and MODEL.WEIGHTS is empty: without pretrained statistics "
            "the features explode. Give MODEL.WEIGHTS, or train from scratch with GN."
        )


def _protocol(cfg: CfgNode) -> str:
    trained = (
        f"trained on {', '.join(cfg.DATASETS.TRAIN)}: {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH}"
    )
    start = f"from {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "from scratch"
    precision = "autocast" if cfg.SOLVER.AMP.ENABLED else "float32"
    return (
        f"{trained} pictures, {start}, {precision}; tested on {', '.join(cfg.DATASETS.TEST)} with the last weights; "
        "AP by pycocotools; multiply-adds, evaluations and latency of one test picture"
    )


def _peak_memory_mib(device: str) -> float:
    """Peak memory: of the GPU, or of the whole process (resident) on a CPU."""
    if device != "cpu":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
