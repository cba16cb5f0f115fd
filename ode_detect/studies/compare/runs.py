"""Which run folder belongs to which config and seed, whether it may be compared, and training what is not there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ode_detect.engine.config import flat, load_config
from ode_detect.engine.records import HARMLESS
from ode_detect.studies.trainings import Training, plain
from ode_detect.task import ConfigError

logger = logging.getLogger("ode_detect.engine")


def plan(configs: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[Training]:
    """All trainings of a comparison, seed by seed, so that a stop leaves about as many of each network.

    The run of seed s is in ``OUTPUT_DIR/seed_s`` of its config. ``OUTPUT_DIR`` in the overrides is a folder for all:
    there it is in ``OUTPUT_DIR/NAME/seed_s``.

    Args:
        configs: the files.
        seeds: how many, from 0: one number for all configs, or one for each.
        overrides: key, value, ... for all configs.

    Raises:
        ConfigError: fewer than two configs, or numbers of seeds that are not theirs, or configs that cannot be
            compared; see `check_comparable`.
    """
    if len(configs) < 2:
        raise ConfigError(
            f"a comparison needs two configs or more, and {len(configs)} was given. Give the twin too "
            "(a config with MODEL.ODE.ROLE twin)."
        )
    if len(seeds) not in (1, len(configs)) or any(count < 1 for count in seeds):
        raise ConfigError(
            f"a comparison needs one seed or more of each config, and got {' '.join(map(str, seeds))}; give --seeds 3, "
            f"for example, or {len(configs)} numbers, one for each config."
        )
    counts = [*seeds] if len(seeds) > 1 else [*seeds] * len(configs)
    if "SEED" in overrides[::2]:
        raise ConfigError("the seeds of a comparison are 0, 1, ..., and SEED was given; say how many by --seeds.")
    for path in configs:
        load_config(path, overrides)  # says what is wrong with them
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    shared = dict(pairs).get("OUTPUT_DIR")
    others = tuple(word for pair in pairs if pair[0] != "OUTPUT_DIR" for word in pair)
    loaded = {str(path): load_config(path, others) for path in configs}
    check_comparable(configs, loaded, own_folders=shared is None)
    names = network_names(configs)
    return [
        Training(
            name=name,
            config_file=str(path),
            seed=seed,
            folder=(Path(shared) / name if shared else Path(loaded[str(path)].OUTPUT_DIR)) / f"seed_{seed}",
            overrides=others,
        )
        for seed in range(max(counts))
        for name, path, count in zip(names, configs, counts, strict=True)
        if seed < count
    ]


def network_names(configs: Sequence[str]) -> list[str]:
    """A name for each config: that of its file, with as many folders before it as it takes to tell them apart."""
    parts = [Path(path).with_suffix("").parts for path in configs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["_".join(p[-count:]).strip("/") for p in parts]
        if len(set(names)) == len(names):
            return names
    return names


def check_comparable(configs: Sequence[str], loaded: dict[str, CfgNode], *, own_folders: bool = True) -> None:
    """Refuse what cannot stand in one table.

    Args:
        configs: the files as given.
        loaded: what they say, by file.
        own_folders: each has its runs in its own ``OUTPUT_DIR``.

    Raises:
        ConfigError: a config given twice, two of one output folder, or of different tasks or test sets.
    """
    for same, count in Counter(Path(path).resolve() for path in configs).items():
        if count > 1:
            raise ConfigError(f"each config is compared once, and {same} was given {count} times; leave it out once.")
    first = str(configs[0])
    for path in map(str, configs[1:]):
        for what, mine, other in (
            ("TASK", loaded[first].TASK, loaded[path].TASK),
            ("DATASETS.TEST", list(loaded[first].DATASETS.TEST), list(loaded[path].DATASETS.TEST)),
            ("the test set in DATASETS.CUSTOM", _tested(loaded[first]), _tested(loaded[path])),
        ):
            if mine != other:
                raise ConfigError(
                    f"only networks of one task on one test set can be compared; {what} is {mine} in {first} and "
                    f"{other} in {path}. Compare them apart, or give one test set for all: DATASETS.TEST \"('NAME',)\"."
                )
    folders: dict[Path, str] = {}
    for path, cfg in loaded.items() if own_folders else ():
        earlier = folders.setdefault(Path(cfg.OUTPUT_DIR).resolve(), path)
        if earlier != path:
            raise ConfigError(
                f"each config has a folder of its own, and OUTPUT_DIR is {cfg.OUTPUT_DIR} in {earlier} and in {path}. "
                "Change one of them, or give a folder for all: OUTPUT_DIR output/NAME."
            )


def _tested(cfg: CfgNode) -> list[Any]:
    return [entry for entry in cfg.DATASETS.CUSTOM if entry.get("NAME") in cfg.DATASETS.TEST]


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
