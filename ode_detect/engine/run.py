"""A run: one folder that holds everything about a training or an evaluation."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ode_detect.media.places import refuse_as_path
from ode_detect.task import ConfigError, Task

from .config import default_values, flat, load_config
from .config_values import unread
from .distributed import from_main
from .lock import Lock, hold
from .optimizer import check_warmup
from .records import begun_config, changes_to, holds_run, in_words, write_records
from .scaling import linear_rule, scaled_to_processes
from .stream import seed_everything
from .tasks import get_task

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
        lock: no other command writes into the folder.
    """

    cfg: CfgNode
    task: Task
    folder: Path
    command: str
    config_file: str
    lock: Lock | None = field(default=None, repr=False, compare=False)


def open_training(cfg: CfgNode, *, command: str, config_file: str, resume: bool) -> Run:
    """Prepare the folder ``OUTPUT_DIR`` for a training: log, resolved config, environment, seeds.

    Args:
        cfg: the config; its seed is drawn here if it is negative.
        command: for the records.
        config_file: for the records.
        resume: go on in a folder that holds a run.

    Raises:
        ConfigError: the folder holds another run, another command is writing into it, or training cannot work as
            configured.
        DatasetError: data that the config asks for is not there.
    """
    task = get_task(cfg)
    cfg, notes = scaled_to_processes(cfg, comm.get_world_size())
    notes += [] if notes else linear_rule(cfg, load_config(config_file), config_file)
    folder = Path(cfg.OUTPUT_DIR)
    # Before what the folder holds is looked at, if it is there at all; an error leaves no empty folder.
    there = from_main(folder.exists)
    lock = hold(folder) if there else None
    begun = holds_run(folder)
    if begun and not resume:
        raise ConfigError(
            f"{folder} already holds a run, which would be overwritten. Go on with it by --resume, or choose another "
            "folder by OUTPUT_DIR."
        )
    warnings = _check_data(cfg, task, cfg.DATASETS.TRAIN)
    _check_frozen(cfg)
    warnings += check_warmup(cfg)
    before = from_main(lambda: begun_config(folder)) if resume else None
    _settle_seed(cfg, before)
    changes = changes_to(cfg, before, resumed=(folder / "last_checkpoint").exists()) if before else {}
    run = _opened(Run(cfg, task, folder, command, config_file, lock), held=there, benchmark=cfg.CUDNN_BENCHMARK)
    if comm.is_main_process():
        resumed = resume and begun
        write_records(cfg, folder, command, begun=before if resumed else None, resumed=resumed, changes=changes)
        warnings += [f"the run began with another value of {change}" for change in in_words(changes)]
    _log(folder, warnings, notes)
    return run


def open_evaluation(
    cfg: CfgNode, *, command: str, config_file: str, folder: Path | None = None, records: bool = True
) -> Run:
    """Prepare the folder of an evaluation: log, resolved config, environment, seeds; that of the training stays.

    Args:
        cfg: the config; its seed, if it is negative, is that of the run in ``OUTPUT_DIR``, or else drawn here.
        command: for the records.
        config_file: for the records.
        folder: where everything is written; None is ``evaluation`` in ``OUTPUT_DIR``.
        records: write config and environment; if not, `write_records` does it later.

    Raises:
        ConfigError: another command is writing into the folder, or the network cannot be evaluated as configured.
        DatasetError: data that the config asks for is not there.
    """
    task = get_task(cfg)
    folder = folder or Path(cfg.OUTPUT_DIR) / "evaluation"
    # Before what the folder holds is looked at, if it is there at all; an error leaves no empty folder.
    there = from_main(folder.exists)
    lock = hold(folder) if there else None
    warnings = _check_data(cfg, task, ())
    _settle_seed(cfg, from_main(lambda: begun_config(Path(cfg.OUTPUT_DIR))))
    run = _opened(Run(cfg, task, folder, command, config_file, lock), held=there, benchmark=False)
    if comm.is_main_process() and records:
        write_records(cfg, folder, command)
    _log(folder, warnings)
    return run


def _check_data(cfg: CfgNode, task: Task, train: Sequence[str]) -> list[str]:
    """Check data sets and norms.

    Returns:
        Warnings.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; a run is evaluated on at least one data set, so name one.")
    for name in cfg.DATASETS.TEST:
        refuse_as_path(name)
    task.require([*train, *cfg.DATASETS.TEST])
    task.check_test(cfg)
    return [*_check_norm(cfg, comm.get_world_size()), *unread(flat(cfg), default_values())]


def _opened(run: Run, *, held: bool, benchmark: bool) -> Run:
    """Freeze the config, seed everything, and take the folder unless it is held already; in all processes."""
    run.cfg.freeze()
    seed_everything(run.cfg.SEED)
    torch.backends.cudnn.benchmark = benchmark
    comm.synchronize()  # All have looked at the folder before one writes into it.
    return run if held else replace(run, lock=hold(run.folder))


def _log(folder: Path, warnings: Iterable[str], notes: Iterable[str] = ()) -> None:
    """Begin the log in the folder; only the main process says something."""
    if not comm.is_main_process():
        _keep_quiet()
        return
    _log_into(folder)
    for warning in warnings:
        logger.warning("%s", warning)
    for note in notes:
        logger.info("%s", note)


def tested(run: Run, model: nn.Module) -> nn.Module:
    """The model itself, or with ``TEST.AUG.ENABLED`` one that merges its predictions for copies of a picture.

    Raises:
        ConfigError: its predictions cannot be merged.
    """
    if not run.cfg.TEST.AUG.ENABLED:
        return model
    try:
        return run.task.augmented(run.cfg, model)
    except ValueError as error:
        raise ConfigError(f"TEST.AUG.ENABLED: {error}") from error


def _log_into(folder: Path) -> None:
    """Everything into log.txt; on the terminal what we say ourselves, and others' warnings."""
    setup_logger.cache_clear()
    for name in ("ode_detect", "detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()  # of an earlier run in this process
        log = setup_logger(str(folder / "log.txt"), name=name)
        terminal = [h for h in log.handlers if type(h) is logging.StreamHandler]
        for handler in terminal:
            handler.setLevel(logging.INFO if name == "ode_detect" else logging.WARNING)
            # A traceback belongs into the log; the terminal gets the message at the end.
            handler.addFilter(lambda record: not record.exc_info)


def _keep_quiet() -> None:
    """What the main process says need not be said by all."""
    for name in ("ode_detect", "detectron2", "fvcore"):
        log = logging.getLogger(name)
        log.handlers.clear()
        log.addHandler(logging.NullHandler())
        log.propagate = False


def _settle_seed(cfg: CfgNode, begun: CfgNode | None) -> None:
    """Draw the seed if the config leaves it open; or keep the one that the run in the folder began with."""
    if cfg.SEED < 0:
        drawn = secrets.randbelow(2**31) if begun is None else begun.SEED
        cfg.SEED = from_main(lambda: int(drawn))


def _check_frozen(cfg: CfgNode) -> None:
    norms = {"MODEL.ODE.NORM": cfg.MODEL.ODE.NORM}
    if "resnet" in cfg.MODEL.BACKBONE.NAME:
        norms = {"MODEL.RESNETS.NORM": cfg.MODEL.RESNETS.NORM, **norms}
    frozen = [key for key, norm in norms.items() if norm == "FrozenBN"]
    if frozen and not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"{frozen[0]} is FrozenBN, which never learns, and MODEL.WEIGHTS is empty: without pretrained statistics "
            "the features explode. Give MODEL.WEIGHTS, or train from scratch with GN."
        )


def _check_norm(cfg: CfgNode, world: int) -> list[str]:
    resnet = "resnet" in cfg.MODEL.BACKBONE.NAME
    keys = ["MODEL.RESNETS.NORM" if resnet else "MODEL.ODE_NET.NORM", "MODEL.FPN.NORM", "MODEL.ODE.NORM"]
    norms = {key: flat(cfg)[key] for key in [*keys, "MODEL.ROI_BOX_HEAD.NORM"]}
    synchronised = [key for key, norm in norms.items() if norm in ("SyncBN", "nnSyncBN", "naiveSyncBN")]
    if world > 1 and synchronised and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(
            f"{synchronised[0]} is {norms[synchronised[0]]}, which is for GPUs, and MODEL.DEVICE is cpu; take GN, or "
            "BN, which normalises by the part of the batch that each process has."
        )
    own = [key for key, norm in norms.items() if norm == "BN"]
    if world == 1 or not own:
        return []
    return [
        f"{own[0]} is BN, so each of the {world} processes normalises by its own part of the batch "
        f"({cfg.SOLVER.IMS_PER_BATCH // world} pictures); SyncBN, on GPUs, normalises by the whole of it."
    ]
