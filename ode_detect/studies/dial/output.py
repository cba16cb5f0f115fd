"""What a dial leaves in its folder: results and plot, and the config of a chosen setting."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ode_detect.engine.classes import data_categories
from ode_detect.engine.provenance import provenance
from ode_detect.media.files import whole, write_text
from ode_detect.ode.flows import flow_names
from ode_detect.report.dial import plot_dial
from ode_detect.report.plots import MetricsError
from ode_detect.report.protocol import COSTS_OF_ONE_PICTURE, FULL_STEPS, LATENCY, TEST, Clause, Protocol, clauses
from ode_detect.report.results import Results, Row

from .dial import PICTURES, Dial
from .settings import Setting, config_entry

logger = logging.getLogger("ode_detect.studies")


def write_results(dial: Dial, times: Mapping[str, float]) -> Results:
    """Write dial.json and dial.png.

    Args:
        dial: what was measured.
        times: milliseconds by the name of the setting; settings without a time or without metrics are left out.
    """
    dial.keep()
    cfg, task = dial.run.cfg, dial.run.task
    known = [m for m in dial.measured.values() if m.metrics and m.setting.name in times]
    results = Results(
        what=f"The dial of {Path(dial.run.config_file).stem}: {task.name}, {cfg.DATASETS.TEST[0]}",
        **{**provenance("\n".join(dial.kept.commands)), "commit": dial.kept.marks["commit"]},
        protocol=_protocol(dial, [m.setting for m in known]),
        rows=tuple(
            Row(
                name=m.setting.name,
                role="ode",
                seed=cfg.SEED,
                config=dial.run.config_file,
                metrics=m.metrics,
                cost={**m.cost, "latency_ms": round(times[m.setting.name], 3)},
            )
            for m in sorted(known, key=lambda m: (m.cost["evaluations"], times[m.setting.name]))
        ),
    )
    results.write(dial.folder / "dial.json")
    try:
        plot_dial(results.rows, dial.metric, dial.folder / "dial.png", full=[dial.full.name], better=dial.better)
    except MetricsError as error:
        logger.warning("not drawn: %s", error)
    return results


def write_choice(dial: Dial, setting: Setting, claim: str) -> Path:
    """Write the config of a setting, and a checkpoint if it has statistics, or knows training pictures, of its own.

    ``config.yaml`` is the latest choice; that of each setting stays as ``NAME.yaml`` with ``NAME.pth``.

    Args:
        dial: what was measured.
        setting: a measured setting.
        claim: what it is good for, one line.

    Returns:
        ``config.yaml``.
    """
    weights, run = dial.weights, dial.run
    if setting != dial.full:
        with dial.at(setting):
            model = copy.deepcopy(dial.model)
        if run.task.renew(run.cfg, model) or setting.name in dial.statistics.estimated:
            weights = str(dial.folder / f"{setting.name}.pth")
            with whole(weights) as partial:
                torch.save({"model": model.state_dict(), "categories": data_categories(run.cfg, run.task)}, partial)
    cfg = dial.asked.clone()
    cfg.MODEL.WEIGHTS = weights
    names = flow_names(dial.flows)
    cfg.MODEL.ODE.FLOWS = [config_entry(names[path], solver) for path, solver in setting.solvers]
    # A folder without the checkpoints of the run, which would be taken instead of these weights.
    cfg.OUTPUT_DIR = str(dial.folder)
    text = f"# {claim}\n# Made by: {run.command}\n{cfg.dump()}"
    for name in (f"{setting.name}.yaml", "config.yaml"):
        write_text(dial.folder / name, text)
    return dial.folder / "config.yaml"


def worth(dial: Dial, count: int) -> str:
    """What a choice among so many measured settings is worth."""
    return f"on {dial.run.cfg.DATASETS.TEST[0]} itself among {count} settings: not an independent estimate"


def _protocol(dial: Dial, shown: Sequence[Setting]) -> Protocol:
    cfg = dial.run.cfg
    stated = [
        Clause(TEST, f"tested on {cfg.DATASETS.TEST[0]}, weights of {dial.weights}"),
        *clauses("metrics", dial.run.task.protocol(cfg)),
        Clause(FULL_STEPS, dial.full.name),
    ]
    if dial.statistics.batches:
        batches = f"{dial.statistics.batches} training batches of {cfg.SOLVER.IMS_PER_BATCH}"
        text = (
            "BatchNorm statistics: of the full steps the running averages in the checkpoint, of all other settings "
            f"estimated from {batches}"
        )
        # A setting that is here was solved, so what has no statistics of its own could not be estimated.
        fell_back = [s.name for s in shown if s != dial.full and s.name not in dial.statistics.estimated]
        if fell_back:
            text += f", but for {', '.join(fell_back)}: not finite, so those of the full steps"
        stated.append(Clause("statistics", text))
    latency = (
        f"latency: median over up to {PICTURES} test pictures of the faster of two calls, the settings in turn on "
        f"each, {torch.get_num_threads()} threads"
    )
    picked = f"a setting picked by these rows is picked {worth(dial, len(shown))}"
    return (*stated, COSTS_OF_ONE_PICTURE, Clause(LATENCY, latency), Clause("picked", picked))
