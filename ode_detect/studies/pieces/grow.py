"""A network grown by splitting its pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ode_detect.engine.build import build_network
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.config import load_config
from ode_detect.engine.provenance import provenance
from ode_detect.media.files import whole
from ode_detect.ode.refitting.refit import split_pieces
from ode_detect.ode.solvers import TABLEAUS
from ode_detect.report.protocol import MINUTES, Clause
from ode_detect.report.results import Results
from ode_detect.studies.trainings import Training, check_runs, train_missing
from ode_detect.task import ConfigError


@dataclass(frozen=True)
class Growth:
    """What is asked of `grow`.

    Attributes:
        counts: pieces of each flow in each stage of the training, each twice the one before.
        iterations: of each stage.

    Raises:
        ConfigError: the counts do not double, or there are other numbers of iterations.
    """

    counts: tuple[int, ...]
    iterations: tuple[int, ...]

    def __post_init__(self) -> None:
        doubling = all(b == 2 * a for a, b in itertools.pairwise(self.counts))
        if len(self.counts) < 2 or self.counts[0] < 1 or not doubling:
            raise ConfigError(
                f"a network grows by splitting each piece in two, and {list(self.counts)} do not double; give "
                "1 2 4 8, for example."
            )
        if len(self.iterations) != len(self.counts) or min(self.iterations) < 1:
            raise ConfigError(
                f"each number of pieces is trained for its own number of iterations, 1 or more, and there are "
                f"{len(self.counts)} and {len(self.iterations)}: {list(self.iterations)}."
            )


def grow(
    config_file: str,
    overrides: Sequence[str],
    wanted: Growth,
    *,
    tool: Sequence[str],
    command: str,
    folder: Path,
) -> Results:
    """Train a network stage by stage, splitting its pieces in between; and one that has all of them from the start.

    Each stage is a training of its own, with its own schedule and optimizer, that starts from the split weights of the
    one before. The other network has as many iterations as all stages together. What is finished is taken, and what
    was stopped is gone on with.

    Args:
        config_file: of the whole network, with ``MODEL.ODE.NUM_PIECES`` the last count and ``DURATION`` set, since the
            time of the flows does not change.
        overrides: key, value, ...
        wanted: the stages.
        tool: the command that ``tools/train_net.py``'s arguments are added to.
        command: for the records.
        folder: gets a run folder for each stage and for the other network, and ``growth.json``.

    Returns:
        A row for each network, the grown one with the minutes of all stages.

    Raises:
        ConfigError: a config that cannot be grown; a training failed.
        KeyboardInterrupt: stopped; the same command goes on.

    Source: Chang et al. 2018, "Multi-level Residual Networks from Dynamical Systems View".
    """
    cfg = load_config(config_file, overrides)
    _check_grown(cfg, wanted)
    starts = [cfg.MODEL.WEIGHTS, *(str(folder / f"pieces_{count}_start.pth") for count in wanted.counts[1:])]
    *stages, other = _trainings(config_file, cfg, folder, overrides, wanted, starts)
    check_runs([*stages, other], training=True)
    _check_order(stages)
    for index, stage in enumerate(stages):
        if index and stage.state == "missing":
            _split(stages[index - 1], starts[index])
        train_missing([stage], tool)
    train_missing([other], tool)
    parts = [Results.read(one.folder) for one in (*stages, other)]
    minutes = sum(part.rows[0].cost["train_minutes"] for part in parts[:-1])
    grown, start = parts[-2].rows[0], parts[-1].rows[0]
    path = ", ".join(f"{c} for {n}" for c, n in zip(wanted.counts, wanted.iterations, strict=True))
    from_start = f"from the start: {wanted.counts[-1]} pieces for {sum(wanted.iterations)} iterations"
    results = Results(
        what=f"Pieces of {Path(config_file).stem}, grown: {parts[-1].what}",
        **{**provenance(command), "commit": ", ".join(dict.fromkeys(part.commit for part in parts))},
        protocol=(
            Clause("grown", f"grown: pieces of each flow and iterations, {path}, a schedule of its own for each"),
            Clause("from the start", from_start),
            *parts[-1].protocol,
            MINUTES,
        ),
        rows=(
            replace(grown, name="grown", cost={**grown.cost, "train_minutes": round(minutes, 2)}),
            replace(start, name="from_the_start"),
        ),
    )
    results.write(folder / "growth.json")
    return results


def _trainings(
    config_file: str, cfg: CfgNode, folder: Path, overrides: Sequence[str], wanted: Growth, starts: Sequence[str]
) -> list[Training]:
    """The stages, each from its weights, and then the network that has all pieces from the start."""
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    words = [word for pair in pairs for word in pair if pair[0] not in ("SEED", "OUTPUT_DIR")]
    trainings = []
    for count, iterations, weights in zip(wanted.counts, wanted.iterations, starts, strict=True):
        keys: dict[str, Any] = {"MODEL.ODE.NUM_PIECES": count, "MODEL.ODE.STEPS": count}
        keys |= {"SOLVER.MAX_ITER": iterations, "MODEL.WEIGHTS": weights}
        trainings.append(_training(f"pieces_{count}", config_file, cfg, folder, words, keys))
    keys = {"MODEL.ODE.STEPS": wanted.counts[-1], "SOLVER.MAX_ITER": sum(wanted.iterations)}
    return [*trainings, _training("from_the_start", config_file, cfg, folder, words, keys)]


def _training(
    name: str, config_file: str, cfg: CfgNode, folder: Path, words: Sequence[str], keys: dict[str, Any]
) -> Training:
    overrides = (*words, *(str(word) for pair in keys.items() for word in pair))
    return Training(name=name, config_file=config_file, seed=cfg.SEED, folder=folder / name, overrides=overrides)


def _check_order(stages: Sequence[Training]) -> None:
    """A stage starts from the one before: it cannot be there if that is not finished."""
    for before, after in itertools.pairwise(stages):
        if before.state != "finished" and after.state != "missing":
            raise ConfigError(
                f"each stage starts from the one before, and {after.folder} was trained while {before.folder} is "
                f"{before.state}; move {after.folder} and those after it away, or give another --output."
            )


def _check_grown(cfg: CfgNode, wanted: Growth) -> None:
    ode = cfg.MODEL.ODE
    if ode.PIECES != "piecewise" or ode.METHOD not in TABLEAUS or ode.STEPS not in (0, ode.NUM_PIECES):
        raise ConfigError(
            f"a network grows by one piece and one step for each, and MODEL.ODE.PIECES is {ode.PIECES}, METHOD "
            f"{ode.METHOD}, STEPS {ode.STEPS}; set PIECES piecewise, METHOD euler and STEPS 0."
        )
    if ode.ROLE != "ode" or wanted.counts[-1] != ode.NUM_PIECES or not ode.DURATION or cfg.SEED < 0:
        raise ConfigError(
            f"a network is grown to MODEL.ODE.NUM_PIECES of its config, in a time that does not change, and ROLE is "
            f"{ode.ROLE}, NUM_PIECES {ode.NUM_PIECES}, DURATION {ode.DURATION:g}, SEED {cfg.SEED}; set NUM_PIECES "
            f"{wanted.counts[-1]}, and DURATION above 0 (1, for example), and a SEED of 0 or more."
        )


def _split(stage: Training, path: str) -> None:
    """Write the weights of a finished stage with twice the pieces."""
    cfg = stage.config()
    model = build_network(cfg)
    checkpointer = Checkpointer(model, str(stage.folder))
    checkpointer.load_weights(checkpointer.get_checkpoint_file(), whole=True)
    split_pieces(model)
    with whole(path) as partial:
        torch.save({"model": model.state_dict(), "categories": list(checkpointer.coverage.categories)}, partial)
