"""Which run folder belongs to which config and seed, and whether it may be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ode_detect.engine.config import flat, load_config
from ode_detect.engine.recipes import Recipe
from ode_detect.engine.records import HARMLESS
from ode_detect.studies.trainings import Training, plain
from ode_detect.task import ConfigError

from .choice import choose


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
            f"a comparison needs one seed or more of each network, and got {' '.join(map(str, seeds))}; give "
            f"--seeds 3, for example, or {len(recipes)} numbers: for {', '.join(one.name for one in recipes)}."
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
