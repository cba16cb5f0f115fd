"""What a study measured already, kept in its folder, so that it is not measured again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ode_detect.engine.lock import hold
from ode_detect.engine.provenance import commit
from ode_detect.engine.run import Run
from ode_detect.media.files import read_object, write_text
from ode_detect.report.rows import Row
from ode_detect.task import ConfigError

logger = logging.getLogger("ode_detect.studies")

# What was measured, in the folder of a study.
MEASURED = "measured.json"


class Kept:
    """A file of what a study measured, with what that depends on and the commands that measured it.

    Args:
        path: the file, in the folder of the study; it need not be there.

    Attributes:
        content: what was in the file; {} if it was not there, or broken, which is logged.
        marks: what all of it depends on.
        commands: that measured it, the present one last.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = read_object(path) or {}
        self.marks: dict[str, Any] = {}
        self.commands: list[str] = []

    def check(self, what: str, marks: Mapping[str, Any], command: str) -> None:
        """Refuse what cannot be joined to what is in the file.

        Args:
            what: is measured: "dial".
            marks: what it depends on.
            command: that measures it.

        Raises:
            ConfigError: the file depends on something else.
        """
        if self.content:
            check_marks(self._path.parent, what, self.content["marks"], marks)
        self.marks = dict(marks)
        self.commands = list(dict.fromkeys([*self.content.get("commands", []), command]))

    def write(self, **content: Any) -> None:
        """Write all that is known, which is what later commands find."""
        whole = {"marks": self.marks, "commands": self.commands, **content}
        write_text(self._path, json.dumps(whole, indent=1) + "\n")


class KeptRows:
    """Rows that are measured once, in the folder of a study.

    Args:
        folder: of the study; no other command writes into it meanwhile.
        what: is measured: "projection".
        run: an evaluation of the network.
        model: the network.
        wanted: what the rows depend on, apart from config, weights and commit.

    Attributes:
        rows: by name, as they were measured.

    Raises:
        ConfigError: the folder holds rows that depend on something else.
    """

    def __init__(self, folder: Path, what: str, run: Run, model: nn.Module, wanted: Mapping[str, Any]) -> None:
        self._run, self._lock, self._kept = run, hold(folder), Kept(folder / MEASURED)
        self._kept.check(what, {**marks(run.cfg, model), **wanted}, run.command)
        self.rows = {row["name"]: Row(**row) for row in self._kept.content.get("rows", [])}

    @property
    def commands(self) -> list[str]:
        """The commands that measured them."""
        return self._kept.commands

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these rows are there."""
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
            self._kept.write(rows=[asdict(row) for row in self.rows.values()])
            metric = self._run.task.score
            logger.info("%s: %s %.4f", name, metric, metrics.get(metric, float("nan")))


def marks(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """What numbers that are kept in a folder depend on: config, weights and commit."""
    return {"config": _config_mark(cfg), "weights": _weights_mark(model), "commit": commit()}


def check_marks(folder: Path, what: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a folder whose numbers depend on something else than those that would join them.

    Args:
        folder: where they are kept.
        what: they are of: "dial".
        kept: the `marks` in the folder.
        now: those of this command.

    Raises:
        ConfigError: the marks differ; the message names them.
    """
    changed = [name for name, mark in now.items() if kept.get(name) != mark]
    if changed:
        raise ConfigError(
            f"{folder} holds the {what} of another {' and of another '.join(changed)}, whose numbers would be mixed "
            "with these. Give another --output, or delete that folder."
        )


def _config_mark(cfg: CfgNode) -> str:
    """Of all that a result depends on; weights are marked by their values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.MODEL.WEIGHTS = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _weights_mark(model: nn.Module) -> str:
    """Of the values of all weights and buffers."""
    mark = hashlib.sha256()
    for name, value in model.state_dict().items():
        mark.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        mark.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()
