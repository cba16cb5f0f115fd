"""What the folder of a run says of it: config, environment, results; what is broken counts as absent."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from detectron2.config import CfgNode

from ode_detect.media.files import read_object, say_unreadable, write_text
from ode_detect.report.results import Results, ResultsError

from .config import flat, read_config_file
from .provenance import provenance

logger = logging.getLogger("ode_detect.engine")

# Config keys with the value that a run began with, and the one that it goes on with.
Changes = Mapping[str, Sequence[Any]]
_NONE: Changes = MappingProxyType({})
# Another value of these makes no other network.
HARMLESS = (
    *("OUTPUT_DIR", "VIS_PERIOD", "CUDNN_BENCHMARK", "VERSION", "MODEL.DEVICE", "MODEL.OPTIMIZE_FOR_INFERENCE"),
    *("DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD", "TEST.EXPECTED_RESULTS"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.DIAL.STATISTICS_BATCHES"),
)


def holds_run(folder: Path) -> bool:
    """Whether a training was begun in a folder."""
    return (folder / "last_checkpoint").exists() or (folder / "metrics.json").exists()


def begun_config(folder: Path) -> CfgNode | None:
    """The config that the run in a folder began with; None if there is none, or if it is broken, which is logged."""
    file = folder / "config.yaml"
    if not file.exists():
        return None
    try:
        content = read_config_file(file)
        # What we write is sorted: a file without its last key was cut.
        if "VIS_PERIOD" not in content:
            raise ValueError("it is cut short")
        return CfgNode(content)
    except Exception as error:  # what a broken file makes its reader raise is nobody's contract
        say_unreadable(file, error)
        return None


def write_records(
    cfg: CfgNode,
    folder: Path,
    command: str,
    *,
    begun: CfgNode | None = None,
    resumed: bool = False,
    changes: Changes = _NONE,
) -> None:
    """Write the resolved config, and how and where the run is made, into the folder of a run.

    Args:
        cfg: the resolved config.
        folder: of the run.
        command: how to make it again.
        begun: the config that it began with, if it goes on and that is known; it is kept.
        resumed: it goes on, and keeps the words that it began with: its results are theirs.
        changes: what has another value from now on.
    """
    if begun is None:
        write_text(folder / "config.yaml", cfg.dump())
    file = folder / "environment.json"
    known = read_object(file) if resumed else None
    content = known or environment(command)
    added = {key: list(values) for key, values in changes.items() if key not in HARMLESS}
    if added:
        content["changes"] = {**content.get("changes", {}), **added}
    if added or known is None:
        write_text(file, json.dumps(content, indent=2) + "\n")


def finished_results(folder: Path) -> Results | None:
    """The results of a run that came to its end; None if it did not, or if they are broken, which is logged."""
    file = folder / "results.json"
    if not file.exists():
        return None
    try:
        return Results.read(file)
    except ResultsError as error:
        say_unreadable(file, error)
        return None


def changes_to(cfg: CfgNode, begun: CfgNode, *, resumed: bool) -> Changes:
    """The keys in which a config differs from the one that a run began with.

    Weights to start with are kept: who goes on from a checkpoint does not start with them.
    """
    if resumed and cfg.MODEL.WEIGHTS != begun.MODEL.WEIGHTS:
        logger.warning(
            "MODEL.WEIGHTS is what a run starts with, and this one goes on from its last checkpoint, so %r is not "
            "used. Start another run with them, in another OUTPUT_DIR.",
            cfg.MODEL.WEIGHTS,
        )
        cfg.MODEL.WEIGHTS = begun.MODEL.WEIGHTS
    before, now = flat(begun), flat(CfgNode.load_cfg(cfg.dump()))
    return {key: (before[key], now[key]) for key in now if key in before and before[key] != now[key]}


def in_words(changes: Changes) -> list[str]:
    """A line for each change."""
    return [f"{key}: {before!r}, now {now!r}" for key, (before, now) in changes.items()]


def environment(command: str) -> dict[str, Any]:
    """Command, commit, machine and the versions of the packages that matter."""
    versions = {}
    for package in ("torch", "torchvision", "detectron2", "torchdiffeq", "numpy", "pycocotools", "ode_detect"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {**provenance(command), "packages": versions}
