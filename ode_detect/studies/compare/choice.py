"""Which networks are compared: those of config files, in several roles, or by the names that a header gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ode_detect.backbones.build import ROLES
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.recipes import Recipe, in_role, read_recipes
from ode_detect.ode import ODEBlock
from ode_detect.ode.names import check_name
from ode_detect.task import ConfigError


def choose(
    configs: Sequence[str], roles: Sequence[str] = (), networks: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[Recipe]:
    """The networks to compare, in the order of the configs or of ``networks``, each in all roles.

    A network without flows has no roles: among others it is taken as it is.

    Args:
        configs: the files.
        roles: each network is taken in these; () takes it in its own.
        networks: names of networks in the headers of the configs; () takes each config as it is.
        overrides: key, value, ... for all.

    Raises:
        ConfigError: fewer than two networks, one that comes twice, or roles where no network has flows.
        UnknownNameError: no role, or no network of these configs.
    """
    _refuse_twice("config", map(str, configs), [Path(path).resolve() for path in configs])
    for path in configs:
        load_config(path, overrides)  # says what is wrong with them
    picked = _by_name(configs, networks) if networks else [_own(path) for path in configs]
    if roles:
        _check_roles(roles, overrides)
        picked = _in_roles(picked, roles, overrides)
    made_by = [(one.file, *sorted(one.settings().items())) for one in picked]
    _refuse_twice("network", [one.name for one in picked], made_by)
    if len(picked) < 2:
        raise ConfigError(
            f"a comparison needs two configs or more, or one in two roles, and {len(picked)} was given. Give the twin "
            "too: --roles ode twin ablation, or a config with MODEL.ODE.ROLE twin."
        )
    return _told_apart(picked)


def _own(path: str) -> Recipe:
    return next(iter(_recipes(path).values()))


def _by_name(configs: Sequence[str], networks: Sequence[str]) -> list[Recipe]:
    """The networks of these names, each of the one config that has it."""
    known = {path: _recipes(path) for path in map(str, configs)}
    having = {name: [path for path in known if name in known[path]] for path in known for name in known[path]}
    for name in networks:
        check_name(name, having, "network")
        if len(having[name]) > 1:
            raise ConfigError(
                f"a network is named by one config, and {name!r} by {' and '.join(having[name])}; leave one out."
            )
    used = {having[name][0] for name in networks}
    for path in known:
        if path not in used:
            raise ConfigError(
                f"each config gives a network or more, and none of {', '.join(networks)} is one of {path}; leave it "
                f"out, or name one of its own: {', '.join(known[path])}."
            )
    return [known[having[name][0]][name] for name in networks]


def _recipes(path: str) -> dict[str, Recipe]:
    try:
        return read_recipes(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_roles(roles: Sequence[str], overrides: Sequence[str]) -> None:
    for role in roles:
        check_name(role, ROLES, "role")
    _refuse_twice("role", roles, list(roles))
    if "MODEL.ODE.ROLE" in overrides[::2]:
        raise ConfigError("--roles sets MODEL.ODE.ROLE, and it is among the config keys too; leave out one of the two.")


def _in_roles(recipes: Sequence[Recipe], roles: Sequence[str], overrides: Sequence[str]) -> list[Recipe]:
    """Each network in all roles; those without flows once, as they are."""
    flowing = [recipe for recipe in recipes if _has_flows(recipe, overrides)]
    if not flowing:
        backbone = load_config(recipes[0].file, recipes[0].keys).MODEL.BACKBONE.NAME
        raise ConfigError(
            f"a role says what stands in the place of flows, and {recipes[0].name} of {recipes[0].file} has none "
            f"(MODEL.BACKBONE.NAME is {backbone}). Leave --roles out, and give others to compare it with by --configs."
        )
    found = []
    for recipe in recipes:
        own_role = load_config(recipe.file).MODEL.ODE.ROLE
        found += [in_role(recipe, role, own_role) for role in roles] if recipe in flowing else [recipe]
    return found


def _has_flows(recipe: Recipe, overrides: Sequence[str]) -> bool:
    """Whether the network has flows in the role of an ODE network."""
    cfg = load_config(recipe.file, [*recipe.keys, *overrides, "MODEL.ODE.ROLE", "ode"])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_network(cfg)
    return any(isinstance(module, ODEBlock) for module in model.modules())


def _refuse_twice(what: str, names: Iterable[str], values: Sequence[object]) -> None:
    counts = Counter(values)
    for name, value in zip(names, values, strict=True):
        if counts[value] > 1:
            raise ConfigError(
                f"each {what} is compared once, and {name} was given {counts[value]} times; leave it out once."
            )


def _told_apart(recipes: Sequence[Recipe]) -> list[Recipe]:
    """With as many folders before each name as it takes to tell the networks apart."""
    parts = [(*Path(recipe.file).parent.parts, recipe.name) for recipe in recipes]
    names: list[str] = []
    for count in range(1, max(map(len, parts)) + 1):
        names = ["_".join(p[-count:]).strip("/") for p in parts]
        if len(set(names)) == len(names):
            break
    return [replace(recipe, name=name) for recipe, name in zip(recipes, names, strict=True)]
