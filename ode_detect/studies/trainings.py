"""Trainings that a study needs: which are there, whether they fit their configs, and running those that are missing."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from detectron2.config import CfgNode

from ode_detect.engine.config import default_config, flat, load_config
from ode_detect.engine.records import HARMLESS, begun_config, holds_run
from ode_detect.media.files import read_object
from ode_detect.task import ConfigError

# Exit codes of a training that was asked to stop.
STOPPED = (130, -signal.SIGINT)
State = Literal["finished", "unfinished", "missing"]


@dataclass(frozen=True)
class Training:
    """One network with one seed.

    Attributes:
        name: of the network.
        config_file: its config.
        seed: random seed.
        folder: of its run.
        overrides: KEY, VALUE, ... over the config, without ``SEED`` and ``OUTPUT_DIR``.
    """

    name: str
    config_file: str
    seed: int
    folder: Path
    overrides: tuple[str, ...] = ()

    def config(self) -> CfgNode:
        """The config as the file says it now, with seed and folder."""
        return load_config(self.config_file, self._keys())

    def arguments(self, *, resume: bool) -> list[str]:
        """What ``tools/train_net.py`` is given for it."""
        return ["--config-file", self.config_file, *(["--resume"] if resume else []), *self._keys()]

    def command(self, *, resume: bool) -> str:
        """What a user writes to make it."""
        return shlex.join(["python", "tools/train_net.py", *self.arguments(resume=resume)])

    def _keys(self) -> list[str]:
        return [*self.overrides, "SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)]

    @property
    def state(self) -> State:
        """What its folder holds: a run that came to its end wrote results."""
        if not holds_run(self.folder):
            return "missing"
        return "unfinished" if read_object(self.folder / "results.json") is None else "finished"


def check_runs(trainings: Iterable[Training], *, training: bool) -> None:
    """Refuse runs that are not those of their configs, and without training those that are not finished.

    Raises:
        ConfigError: the message names keys or the command that makes what is missing.
    """
    trainings = list(trainings)
    augmented = [one.config_file for one in trainings if one.config().TEST.AUG.ENABLED]
    if augmented:
        raise ConfigError(
            "networks are compared by one pass of each, as which their times are measured, and TEST.AUG.ENABLED of "
            f"{', '.join(dict.fromkeys(augmented))} asks for one of each copy of a picture; set it to False."
        )
    for one in trainings:
        if one.state != "missing":
            check_same(one)
    lacking = [one for one in trainings if one.state != "finished"]
    if lacking and not training:
        lines = [f"  {one.folder} ({one.state}): {one.command(resume=one.state == 'unfinished')}" for one in lacking]
        raise ConfigError(
            "a comparison without --train takes runs that are finished, and these are not:\n"
            + "\n".join(lines)
            + "\nGive --train, or run these commands."
        )


def check_same(one: Training) -> None:
    """Refuse a run that was made by another config than the file now is.

    Raises:
        ConfigError: its keys differ, or it does not say what made it.
    """
    begun = begun_config(one.folder)
    if begun is None:
        raise ConfigError(
            f"a run holds the config that it was made with, and {one.folder / 'config.yaml'} is not there, or broken. "
            f"Move {one.folder} away, or put the file back."
        )
    before = flat(begun)
    now, default = flat(plain(one.config())), flat(plain(default_config()))
    changed = [
        # A key that came into the code later stands for what was done before: its default.
        f"  {key}: {before.get(key, default.get(key))!r} in the run, {value!r} in the config"
        for key, value in now.items()
        if key not in HARMLESS and before.get(key, default.get(key)) != value
    ]
    went_on = (read_object(one.folder / "environment.json") or {}).get("changes", {})
    changed += [
        f"  {key}: {before!r} when the run began, {now!r} when it went on"
        for key, (before, now) in went_on.items()
        if key not in HARMLESS
    ]
    if changed:
        raise ConfigError(
            f"{one.folder} was made by another config than {one.config_file} now is:\n"
            + "\n".join(changed)
            + "\nMove that folder away and give --train, or give the run's values as KEY VALUE."
        )


def train_missing(trainings: Iterable[Training], tool: Sequence[str]) -> None:
    """Train what is not finished, one after another, each in a process of its own.

    Args:
        trainings: in this order.
        tool: the command that ``tools/train_net.py``'s arguments are added to.

    Raises:
        ConfigError: a training failed; its own message stands above.
        KeyboardInterrupt: stopped; the training saved what it had.
    """
    lacking = [one for one in trainings if one.state != "finished"]
    for number, one in enumerate(lacking, start=1):
        resume = one.state == "unfinished"
        words = "going on with" if resume else "training"
        print(f"[{number}/{len(lacking)}] {words} {one.name}, seed {one.seed}, in {one.folder}", flush=True)
        code = _run([*tool, *one.arguments(resume=resume)])
        if code in STOPPED:
            raise KeyboardInterrupt("stopped; the same command goes on from the last checkpoint.")
        if code or one.state != "finished":
            raise ConfigError(
                f"every network of a comparison is trained to its end, and {one.name} with seed {one.seed} ended with "
                f"exit code {code}; its message stands above. Cure it, then give the same command again."
            )


def _run(command: Sequence[str]) -> int:
    """Run a command that takes Ctrl-C itself, and wait for it however often that is pressed; a kill is handed on.

    What it writes to stderr is passed on, without the last line if it was stopped: that says how to go on with this
    training alone.
    """
    # No shell: the words are those of this command line.
    process = subprocess.Popen(list(command), stderr=subprocess.PIPE, text=True, errors="replace")

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    last = ""
    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        with process, process.stderr as lines:  # type: ignore[union-attr]
            while process.returncode is None:
                # Pressed keys reached the training too, which saves and ends.
                with contextlib.suppress(KeyboardInterrupt):
                    for line in lines:
                        sys.stderr.write(last)
                        last = line
                    process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if process.returncode not in STOPPED:
        sys.stderr.write(last)
    return process.returncode


def plain(cfg: CfgNode) -> CfgNode:
    """The config as its file would give it back."""
    return CfgNode.load_cfg(cfg.dump())
