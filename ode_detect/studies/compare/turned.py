"""Whether trained networks are flows: the same weights with smaller steps, and by another method."""

from __future__ import annotations

import logging
from dataclasses import replace

from ode_detect.engine.train import evaluate
from ode_detect.ode import Adaptive, FixedStep, SolveError
from ode_detect.ode.adaptive import Solver, takes_steps
from ode_detect.ode.dial import solved_by
from ode_detect.ode.flows import flows_of

from .measure import Loaded

logger = logging.getLogger("ode_detect.studies")

# Steps of the other method for a flow whose own method chooses its steps.
STEPS = 8
# What is done, for a protocol.
TURNED = (
    "twice the steps (of methods that choose them a tenth of the tolerances), and rk4 with as many steps (in the place "
    f"of rk4 midpoint with twice as many, of methods that choose them rk4 with {STEPS})"
)


def finer(solver: Solver) -> Solver:
    """Twice the steps; for a method that chooses them itself, a tenth of the tolerances."""
    if takes_steps(solver):
        return replace(solver, steps=2 * solver.steps)
    assert isinstance(solver, Adaptive)
    return replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)


def other(solver: Solver) -> Solver:
    """rk4 with as many steps; for rk4, which is accurate already, midpoint with twice as many: as many evaluations."""
    if not isinstance(solver, FixedStep):
        return FixedStep("rk4", steps=solver.steps if takes_steps(solver) else STEPS)
    method, steps = ("midpoint", 2 * solver.steps) if solver.method == "rk4" else ("rk4", solver.steps)
    return FixedStep(method, steps=steps, projection=solver.projection)


CHANGES = {"half_step": finer, "other_method": other}


def turned(network: Loaded) -> dict[str, float]:
    """Evaluate a network with its flows solved in two other ways.

    Args:
        network: with its trained weights; its solvers come back.

    Returns:
        The main metric of the task, as "top1_half_step" and "top1_other_method"; nothing for a network without
        flows, and not what could not be solved.
    """
    if network.role != "ode":
        return {}
    flows, task, metrics = flows_of(network.model), network.run.task, {}
    metric = task.score
    for name, change in CHANGES.items():
        try:
            with solved_by(network.model, {path: change(block.solver) for path, block in flows.items()}):
                # A folder of its own: what the evaluation of the network itself left is drawn on the page.
                run = replace(network.run, folder=network.run.folder / name)
                found = task.metrics(evaluate(run, network.model))
        except SolveError as error:
            logger.warning("%s, %s, is left out: %s", network.name, name, error)
            continue
        metrics[f"{metric}_{name}"] = found[metric]
        logger.info("%s, %s: %s %.4f", network.name, name, metric, found[metric])
    return metrics
