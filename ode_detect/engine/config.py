"""Config keys that Detectron2 does not have, and loading a config with messages that help."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from ode_detect.backbones.config import add_backbone_config
from ode_detect.ode.names import UnknownNameError, check_name
from ode_detect.task import ConfigError

from .config_values import check_values
from .recipes import moved
from .tasks import TASKS

# The safe loader, that of libyaml where it is installed: it reads ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What a config has at most; those of Detectron2 have a few kB, and bases of bases.
_MOST_BYTES, _MOST_VALUES, _MOST_FILES, _DEEPEST, _LONGEST = 2**20, 100_000, 100, 50, 1000
# What keys of Detectron2 are called elsewhere.
_ELSEWHERE = {"LEARNING_RATE": "BASE_LR", "BATCH_SIZE": "IMS_PER_BATCH", "EPOCHS": "MAX_ITER"}


def add_ode_config(cfg: CfgNode) -> None:
    """Add the keys of ode_detect, with their defaults, to a Detectron2 config: of flows, of each task, of all runs."""
    add_backbone_config(cfg)
    for task in TASKS.values():
        task.add_config(cfg)
    _add_run_config(cfg)


def _add_run_config(cfg: CfgNode) -> None:
    """Add the keys that all tasks share."""
    # What is trained, a task by its name: "detection" or "classification".
    cfg.TASK = "detection"

    # Go on when MODEL.WEIGHTS does not fill the network: what is not in the file keeps its random start.
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = False
    # Go on when MODEL.WEIGHTS names other classes than the data: the layers of its classes are taken for those of the
    # data, the first for the first. The same names in another order are put in order without it.
    cfg.MODEL.ALLOW_OTHER_CLASSES = False
    # Keep the network, and what goes through it, in the memory format channels_last: convolutions are faster, GN on a
    # CPU many times slower, so flows with GN stay contiguous. Else for networks with BN or FrozenBN.
    cfg.MODEL.CHANNELS_LAST = False
    # Evaluate (--eval-only) a copy of the network that was made faster, and compared on the first test picture.
    cfg.MODEL.OPTIMIZE_FOR_INFERENCE = False

    # "SGD" (with MOMENTUM and NESTEROV) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Exponential moving average of the weights, which is what is evaluated and handed out: its decay for each
    # iteration, in (0, 1), such as 0.999; 0 for none.
    cfg.SOLVER.EMA_DECAY = 0.0

    cfg.SOLVER.DIAL = CfgNode()
    # Training for the dial: in each iteration every flow draws its steps from these for a second pass, whose features
    # learn from those of the pass at the full steps. [] trains without.
    cfg.SOLVER.DIAL.STEPS = []
    # Methods to draw from; [] keeps that of each flow.
    cfg.SOLVER.DIAL.METHODS = []
    # Weight of the squared distance of the features, in units of their square.
    cfg.SOLVER.DIAL.WEIGHT = 1.0
    # Weight of the task's losses in the second pass; 0 runs only the backbone a second time.
    cfg.SOLVER.DIAL.TASK_WEIGHT = 0.0
    # Training batches from which tools/dial.py estimates the statistics of BatchNorm for each setting.
    cfg.SOLVER.DIAL.STATISTICS_BATCHES = 25

    # One's own data sets: [{NAME: my_train, IMAGES: path/to/images, ANNOTATIONS: path/to/train.json}] for COCO JSON.
    # VOC XML: ANNOTATIONS is the folder of the XML files, SPLIT (optional) a file with one id per line, CLASSES
    # (optional) the names in order. EVALUATOR (optional): "coco", "voc" (AP as since 2010) or "voc2007". For a
    # classifier: [{NAME: my_train, IMAGES: folder}], with a folder of pictures for each class.
    cfg.DATASETS.CUSTOM = []

    # Random scale of a training picture: [smallest, largest] factor, drawn uniformly in the logarithm, of the size that
    # MIN_SIZE_TRAIN gives it (0: of its own size); CROP comes after it. [] draws none, and then CROP comes before
    # MIN_SIZE_TRAIN, as in Detectron2.
    cfg.INPUT.SCALE_JITTER = []
    # Random brightness, contrast and saturation of a training picture: factors in [1 - x, 1 + x].
    cfg.INPUT.COLOR_JITTER = 0.0

    # "cpu" unless there is a GPU.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config file.

    Args:
        path: a yaml file; its ``_BASE_`` is read first, or one after the other if it is a list.
        overrides: key, value, key, value, ... that win over the file.

    Returns:
        The config, not frozen.

    Raises:
        ConfigError: no such file, not yaml, an unknown key (with the nearest one), or a value of the wrong type or
            out of range.
    """
    cfg = default_config()
    if not Path(path).is_file():
        hint = moved(path) or " the ones that come with ode_detect are in configs/."
        raise ConfigError(f"there is no config file {str(path)!r};{hint}")
    if len(overrides) % 2:
        raise ConfigError(f"keys and values come in pairs, and {overrides[-1]!r} has no value; write KEY VALUE.")
    known = list(_keys(cfg))
    files = _with_bases(Path(path))
    for file, content in files:
        for key in _keys(content):
            _check_key(key, known, file)
        _check_sections(content, cfg, file)
        if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
            raise ConfigError(
                f"{file} has VERSION {content['VERSION']!r}, and configs here are of VERSION {cfg.VERSION}; bring it "
                "up to date with Detectron2's upgrade_config, or leave VERSION out if its keys are known."
            )
    for key in overrides[::2]:
        _check_key(key, known, "the command line")
    try:
        cfg.merge_from_other_cfg(CfgNode(_merged(files)))
        cfg.merge_from_list(list(overrides))
    # Text is read as Python's literals, of which some are too deep to be read.
    except (ValueError, AssertionError, TypeError, MemoryError, RecursionError) as error:
        raise ConfigError(f"{path}: {error} Give a value of the type of the default.") from error
    try:
        check_values(flat(cfg), default_values())
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return cfg


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read the keys of a config file, over those of its ``_BASE_``, as they stand there.

    No code is run from it, and no address is followed.

    Raises:
        ConfigError: it is not yaml, too large or too deep, or builds on itself or on what is not there.
    """
    return _merged(_with_bases(Path(path)))


def default_config() -> CfgNode:
    """Detectron2's config with our keys, before anything is set."""
    cfg = get_cfg()
    add_ode_config(cfg)
    return cfg


def default_values() -> dict[str, Any]:
    """The values of all keys, `flat`, before anything is set."""
    return flat(default_config())


def flow_settings(cfg: CfgNode) -> tuple[dict[str, int], dict[str, str]]:
    """``MODEL.ODE.FLOWS`` as steps by flow and methods by flow.

    Raises:
        ConfigError: an entry without FLOW, with an unknown key, without STEPS and METHOD, or a flow named twice.
    """
    steps: dict[str, int] = {}
    methods: dict[str, str] = {}
    seen = set()
    for entry in cfg.MODEL.ODE.FLOWS:
        if not isinstance(entry, dict) or not isinstance(entry.get("FLOW"), str) or len(entry) < 2:
            raise ConfigError(
                f"an entry of MODEL.ODE.FLOWS names a FLOW and its STEPS, its METHOD or both, and this one is {entry}; "
                "write {FLOW: res4, STEPS: 11}."
            )
        for key in entry:
            try:
                check_name(key, ("FLOW", "STEPS", "METHOD"), "key in MODEL.ODE.FLOWS")
            except UnknownNameError as error:
                raise ConfigError(str(error)) from error
        if entry["FLOW"] in seen:
            raise ConfigError(f"MODEL.ODE.FLOWS names {entry['FLOW']!r} twice; join the two entries.")
        seen.add(entry["FLOW"])
        steps |= {entry["FLOW"]: entry["STEPS"]} if "STEPS" in entry else {}
        methods |= {entry["FLOW"]: entry["METHOD"]} if "METHOD" in entry else {}
    return steps, methods


def tolerances(cfg: CfgNode) -> dict[str, Any]:
    """What a method of torchdiffeq is given where it takes the place of fixed steps: fields of a `SolverChange`."""
    ode = cfg.MODEL.ODE
    return {"rtol": ode.RTOL, "atol": ode.ATOL, "max_evaluations": ode.MAX_EVALUATIONS}


def _check_key(key: str, known: list[str], where: object) -> None:
    if key in known or key in ("_BASE_", "VERSION"):
        return
    # A misspelt last word is looked for among its neighbours first, a misspelt section everywhere. Words are compared
    # without their section, which would make short ones alike.
    section, _, word = key.rpartition(".")
    neighbours = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    part_of = [k for k in neighbours if set(word.split("_")) <= set(k.split("_"))]
    words = [_ELSEWHERE[word]] if _ELSEWHERE.get(word) in neighbours else []
    words = words or difflib.get_close_matches(word, part_of, n=1, cutoff=0.0)
    words = words or difflib.get_close_matches(word, neighbours, n=1)
    near = [neighbours[k] for k in words] or difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; MODEL.ODE and Detectron2's config reference list the keys."
    raise ConfigError(f"unknown key {key} in {where}{hint}")


def _check_sections(content: dict[str, Any], cfg: CfgNode, where: object, prefix: str = "") -> None:
    for key, value in content.items():
        if isinstance(cfg.get(key), CfgNode):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{prefix}{key} is a section, and {where} gives it the value {value!r:.100}; write its keys below "
                    "it, or leave it out."
                )
            _check_sections(value, cfg[key], where, f"{prefix}{key}.")


def flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """A config, or a section of one, as key -> value; keys of sections are joined by dots, tuples become lists."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": _as_lists(value)}
    return values


def _as_lists(value: Any) -> Any:
    return [_as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict):
            yield from _keys(value, f"{name}.")


def _merged(files: Iterable[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file, content in files:
        try:
            merged = _over(merged, {key: value for key, value in content.items() if key != "_BASE_"})
        except TypeError as error:
            raise ConfigError(f"{file} {error}; write its keys below it, or leave it out.") from error
    return merged


def _over(base: dict[str, Any], content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of a file over those of its base. Nothing is changed in place: an alias of yaml may stand for both."""
    merged = dict(base)
    for key, value in content.items():
        if isinstance(value, dict) and key in base:
            if not isinstance(base[key], dict):
                raise TypeError(f"has keys for {prefix}{key}, which is a value in its base")
            value = _over(base[key], value, f"{prefix}{key}.")
        merged[key] = value
    return merged


def _with_bases(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A file and its bases with their contents, each base before what builds on it."""
    files: list[tuple[Path, dict[str, Any]]] = []
    _add_with_bases(files, path, ())
    return files


def _add_with_bases(files: list[tuple[Path, dict[str, Any]]], path: Path, outer: tuple[Path, ...]) -> None:
    if path.resolve() in outer or len(files) + len(outer) >= _MOST_FILES:
        why = "builds on itself" if path.resolve() in outer else f"is one of more than {_MOST_FILES}"
        raise ConfigError(f"_BASE_ names a handful of files that do not lead back, and {path} {why}. Join them.")
    content = next((content for file, content in files if file == path), None) or _read_yaml(path)
    bases = content.get("_BASE_") or []
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or "://" in base or base.startswith("~"):
            raise ConfigError(
                f"{path} builds on {base!r:.200}, and _BASE_ names files of this machine, relative to {path.name} or "
                "from the root (/); download that file, or write its path out."
            )
        file = path.parent / base
        if not file.is_file():
            raise ConfigError(
                f"{path} builds on {base!r}, which is not there;{moved(file) or ' _BASE_ is relative to the file.'}"
            )
        _add_with_bases(files, file, (*outer, path.resolve()))
    files.append((path, content))


def _read_yaml(path: Path) -> dict[str, Any]:
    # Opened by its path and nothing else: Detectron2's reader takes some names for addresses.
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"a config has at most {_MOST_BYTES} bytes, and {path} has more; is it another kind of file?")
    try:
        _check_size(data)
        content = yaml.load(data, Loader=_LOADER)  # one of the safe ones, which build plain values only
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path} is not a yaml file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys; a config is a yaml mapping such as MODEL: {{...}}.")
    return content


def _check_size(data: bytes) -> None:
    """Refuse what is small as a file and large, deep or slow to read as values, before any value is made."""
    inside: list[tuple[str | None, int]] = []  # (anchor, values before it) of what is open
    sizes: dict[str, int] = {}
    values = 0
    for event in yaml.parse(data, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} stands for nothing, or for what it is in")
            values += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = inside.pop()
            sizes |= {anchor: values - before} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
            # Long numbers take long, above all those to the base of 60.
            if (event.implicit[0] or event.tag) and len(event.value) > _LONGEST:
                raise ValueError(f"a value of {len(event.value)} letters without quotes, {event.value[:20]}...")
        if len(inside) > _DEEPEST or values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values, aliases written out, or {_DEEPEST} inside one another")
