"""Which run folder belongs to which config and seed, whether it may be compared, and training what is not there."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from detectron2.config import CfgNode, get_cfg

from ode_detect.engine.config import ConfigError, add_ode_config, flat, load_config
from ode_detect.engine.recipes import Recipe
from ode_detect.engine.records import HARMLESS, begun_config, holds_run
from ode_detect.media.files import read_object

from .choice import choose

logger = logging.getLogger("ode_detect.engine")

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


def plan(
    configs: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    roles: Sequence[str] = (),
    networks: Sequence[str] = (),
) -> list[Training]:
    """All trainings of a comparison, seed by seed, so that a stop leaves about as many of each network.

    The run of seed s is in ``OUTPUT_DIR/seed_s`` of its config; that of a network in another role is in
    ``OUTPUT_DIR_ROLE/seed_s``, and of one that a header names in a folder of its name beside ``OUTPUT_DIR``.
    ``OUTPUT_DIR`` in the overrides is a folder for all: there it is in ``OUTPUT_DIR/NAME/seed_s``.

    Args:
        configs: the files.
        seeds: how many, from 0: one number for all networks, or one for each.
        overrides: key, value, ... for all networks.
        roles: see `choose`.
        networks: see `choose`.

    Raises:
        ConfigError: numbers of seeds that are not theirs, or networks that cannot be compared; see `choose` and
            `check_comparable`.
        UnknownNameError: no role, or no network of these configs.
    """
    recipes = choose(configs, roles, networks, overrides)
    if len(seeds) not in (1, len(recipes)) or any(count < 1 for count in seeds):
        raise ConfigError(
            f"a comparison needs one seed or more of each network, and got {' '.join(map(str, seeds))}; give --seeds 3, "
            f"for example, or {len(recipes)} numbers, one for each of {', '.join(one.name for one in recipes)}."
        )
    counts = [*seeds] if len(seeds) > 1 else [*seeds] * len(recipes)
    if "SEED" in overrides[::2]:
        raise ConfigError("the seeds of a comparison are 0, 1, ..., and SEED was given; say how many by --seeds.")
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    shared = dict(pairs).get("OUTPUT_DIR")
    others = tuple(word for pair in pairs if pair[0] != "OUTPUT_DIR" for word in pair)
    loaded = [load_config(one.file, [*one.keys, *others]) for one in recipes]
    folders = [
        Path(shared) / one.name if shared else Path(one.folder(cfg.OUTPUT_DIR))
        for one, cfg in zip(recipes, loaded, strict=True)
    ]
    check_comparable(recipes, loaded, folders)
    return [
        Training(
            name=one.name,
            config_file=one.file,
            seed=seed,
            folder=folder / f"seed_{seed}",
            overrides=(*one.keys, *others),
        )
        for seed in range(max(counts))
        for one, folder, count in zip(recipes, folders, counts, strict=True)
        if seed < count
    ]


def check_comparable(recipes: Sequence[Recipe], loaded: Sequence[CfgNode], folders: Sequence[Path]) -> None:
    """Refuse what cannot stand in one table.

    Args:
        recipes: the networks.
        loaded: what their configs say.
        folders: of their runs.

    Raises:
        ConfigError: two networks of one folder, or of different tasks or test sets.
    """
    names = [one.name if one.keys else one.file for one in recipes]
    for name, cfg in zip(names[1:], loaded[1:], strict=True):
        for what, mine, other in (
            ("TASK", loaded[0].TASK, cfg.TASK),
            ("DATASETS.TEST", list(loaded[0].DATASETS.TEST), list(cfg.DATASETS.TEST)),
            ("the test set in DATASETS.CUSTOM", _tested(loaded[0]), _tested(cfg)),
        ):
            if mine != other:
                raise ConfigError(
                    f"only networks of one task on one test set can be compared; {what} is {mine} in {names[0]} and "
                    f"{other} in {name}. Compare them apart, or give one test set for all: DATASETS.TEST \"('NAME',)\"."
                )
    taken: dict[Path, str] = {}
    for name, folder in zip(names, folders, strict=True):
        earlier = taken.setdefault(folder.resolve(), name)
        if earlier != name:
            raise ConfigError(
                f"each network has a folder of its own, and that of {earlier} and of {name} is {folder}. Change the "
                "OUTPUT_DIR of one of them, or give a folder for all: OUTPUT_DIR output/NAME."
            )


def _tested(cfg: CfgNode) -> list[Any]:
    return [entry for entry in cfg.DATASETS.CUSTOM if entry.get("NAME") in cfg.DATASETS.TEST]


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
    now, default = flat(plain(one.config())), flat(plain(_defaults()))
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
        with process, process.stderr as told:  # type: ignore[union-attr]
            while process.returncode is None:
                # Pressed keys reached the training too, which saves and ends.
                with contextlib.suppress(KeyboardInterrupt):
                    for line in told:
                        sys.stderr.write(last)
                        last = line
                    process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if process.returncode not in STOPPED:
        sys.stderr.write(last)
    return process.returncode


def differing_keys(configs: dict[str, CfgNode]) -> dict[str, tuple[str, ...]]:
    """Config keys in which networks differ, with the value of each.

    Args:
        configs: by network.
    """
    values = {name: flat(plain(cfg)) for name, cfg in configs.items()}
    keys = dict.fromkeys(key for flattened in values.values() for key in flattened)
    found = {}
    for key in keys:
        mine = tuple(str(flattened.get(key, "not set")) for flattened in values.values())
        if len(set(mine)) > 1 and key not in (*HARMLESS, "SEED"):
            found[key] = mine
    return found


def plain(cfg: CfgNode) -> CfgNode:
    """The config as its file would give it back."""
    return CfgNode.load_cfg(cfg.dump())


def _defaults() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    return cfg
