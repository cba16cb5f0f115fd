"""Training, evaluation and the report of a run."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset, verify_results
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from torch import nn

from ode_detect.media.files import read_object
from ode_detect.ode import ODEBlock, record_solves
from ode_detect.ode.tally import MultiplyAdds
from ode_detect.report.plots import plot_losses, plot_metric, read_metrics
from ode_detect.report.protocol import COSTS_OF_ONE_PICTURE, TEST, TRAINING, Clause, Protocol, clauses
from ode_detect.report.results import Results, Row
from ode_detect.task import ConfigError

from .build import build_network
from .checkpoint import Checkpointer, Coverage
from .classes import match_classes
from .config import load_config
from .distributed import from_main
from .provenance import provenance
from .records import finished_results, in_words
from .run import Run, logger, tested
from .trainer import Trainer
from .weights import CheckpointError


def train(run: Run, *, resume: bool) -> Results:
    """Train to the end, evaluate the last weights, write the reports.

    Args:
        run: an open run.
        resume: go on from the last checkpoint in the folder, if there is one.

    Raises:
        Interrupted: the run was asked to stop; it can be resumed.
    """
    trainer = Trainer(run.cfg, run.task, lambda model: evaluate(run, model))
    tested(run, trainer.checkpointer.model)  # What cannot be is refused before hours of training.
    trainer.resume_or_load(resume=resume)
    if trainer.start_iter >= run.cfg.SOLVER.MAX_ITER:
        if finished := from_main(lambda: finished_results(run.folder)):
            logger.info("the run in %s is finished already", run.folder)
            return finished
    elif comm.is_main_process():
        # A finished run goes on; its results are of fewer iterations, and must not pass for those of all.
        (run.folder / "results.json").unlink(missing_ok=True)
    trainer.train()
    model, minutes = trainer.checkpointer.model, trainer.seconds / 60
    results = from_main(lambda: report(run, model, trainer.last_results, minutes=minutes))
    _verify(run.cfg, trainer.last_results)
    return results


def evaluate_only(run: Run) -> Results:
    """Evaluate the weights of ``MODEL.WEIGHTS``, or the last ones in the run folder, and write the reports.

    Raises:
        CheckpointError: there are no weights, or they do not fill the network.
    """
    model, _ = load_network(run)
    nested = evaluate(run, for_inference(run, model))
    results = from_main(lambda: report(run, model, nested, minutes=None))
    _verify(run.cfg, nested)
    return results


def for_inference(run: Run, model: nn.Module) -> nn.Module:
    """The model itself, or with ``MODEL.OPTIMIZE_FOR_INFERENCE`` its optimised copy.

    Raises:
        ConfigError: it cannot be optimised.
    """
    if not run.cfg.MODEL.OPTIMIZE_FOR_INFERENCE:
        return model
    batch = next(iter(run.task.test_loader(run.cfg, run.cfg.DATASETS.TEST[0])))
    try:
        fast, done = run.task.optimize(model, batch)
    except ValueError as error:
        raise ConfigError(f"MODEL.OPTIMIZE_FOR_INFERENCE: {error}") from error
    logger.info("optimised for inference: %s", done)
    return fast


def load_network(run: Run, weights: str = "") -> tuple[nn.Module, str]:
    """Build the network of a config, `fill` it, and bring its classes into the order of the test data.

    Returns:
        The network, and the file it was filled from.

    Raises:
        CheckpointError: as for `fill`, or the weights are of other classes than the data.
    """
    model = build_network(run.cfg)
    file, coverage = fill(run, model, weights)
    match_classes(run.cfg, run.task, model, coverage, file)
    return model, file


def fill(run: Run, model: nn.Module, weights: str = "") -> tuple[str, Coverage]:
    """Load the weights of a network.

    Args:
        run: an open run.
        model: the network of its config.
        weights: a checkpoint; "" is ``MODEL.WEIGHTS`` where it differs from the config file's, else the last one in
            ``OUTPUT_DIR``, else ``MODEL.WEIGHTS``.

    Returns:
        The file, and what was loaded of it.

    Raises:
        CheckpointError: there are no weights, or they do not fill the network.
    """
    checkpointer = Checkpointer(model, run.cfg.OUTPUT_DIR, allow_partial=run.cfg.MODEL.ALLOW_PARTIAL_WEIGHTS)
    # The weights that the config starts a training with are not those of the run that it made.
    started_with = load_config(run.config_file).MODEL.WEIGHTS
    trained = checkpointer.get_checkpoint_file()
    if not weights:
        weights = trained if trained and run.cfg.MODEL.WEIGHTS in ("", started_with) else run.cfg.MODEL.WEIGHTS
    if not weights:
        raise CheckpointError(
            f"there are no weights: MODEL.WEIGHTS is empty and {run.cfg.OUTPUT_DIR} holds no checkpoint. "
            "Give MODEL.WEIGHTS path/to/model.pth."
        )
    checkpointer.load_weights(weights, whole=True)
    return weights, checkpointer.coverage


def evaluate(run: Run, model: nn.Module) -> dict[str, Any]:
    """Evaluate on the data sets of ``DATASETS.TEST``, in float32 as Detectron2 does, however it was trained.

    Returns:
        The evaluator's nested results for the first data set; those of the others under the data set's name.
    """
    model = tested(run, model)
    results = {}
    for name in run.cfg.DATASETS.TEST:
        evaluator = run.task.evaluator(run.cfg, name, str(run.folder / "inference" / name))
        # pycocotools prints; its table belongs into the log.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results[name] = inference_on_dataset(model, run.task.test_loader(run.cfg, name), evaluator) or {}
        logging.getLogger("detectron2.pycocotools").info("%s", printed.getvalue())
        if not comm.is_main_process():
            continue  # Detectron2's evaluators gather, and have results in the main process only.
        scores = "  ".join(f"{key} {value:.3f}" for key, value in run.task.metrics(results[name]).items())
        logger.info("evaluated on %s: %s", name, scores)
    first, *others = results or {"": {}}
    return {**results.get(first, {}), **{name: results[name] for name in others}}


def report(run: Run, model: nn.Module, nested: dict[str, Any], *, minutes: float | None) -> Results:
    """Write results.json, plots and pictures into the run folder.

    Args:
        run: the run.
        model: its last weights.
        nested: what `evaluate` gave for them.
        minutes: time spent training; None if nothing was trained.
    """
    stem, role = Path(run.config_file).stem, _role(run.cfg, model)
    figures = cost(run, model, minutes=minutes)
    rows = []
    for name in run.cfg.DATASETS.TEST:
        title = stem if role in ("ode", "baseline") or stem.endswith(f"_{role}") else f"{stem}_{role}"
        rows.append(
            Row(
                name=title if len(run.cfg.DATASETS.TEST) == 1 else f"{title}, {name}",
                role=role,
                seed=run.cfg.SEED,
                config=run.config_file,
                metrics=run.task.metrics(nested.get(name, nested)),
                cost=figures,
            )
        )
    begun = read_object(run.folder / "environment.json") or {}
    made = provenance(begun.get("command", run.command))
    protocol = _protocol(run, trained=minutes is not None)
    if changes := begun.get("changes"):
        protocol += (Clause("changes", f"gone on with other values: {', '.join(in_words(changes))}"),)
    results = Results(
        what=f"{run.task.name}, {', '.join(run.cfg.DATASETS.TEST)}",
        **{**made, "commit": begun.get("commit", made["commit"])},
        protocol=protocol,
        rows=tuple(rows),
    )
    _illustrate(run, model)
    # Last, since a run that has it is finished: a resume makes what a kill left out.
    results.write(run.folder / "results.json")
    return results


def _illustrate(run: Run, model: nn.Module) -> None:
    """Tables, plots and pictures."""
    model = tested(run, model)
    for name in run.cfg.DATASETS.TEST:
        folder = run.folder / "inference" / name
        with _dispensable(f"the table of {name}"):
            if table := run.task.table(folder):
                logger.info("%s:\n\n%s\n", name, table)
        with _dispensable(f"the plots of {name}"):
            run.task.plot(folder)
    first = run.cfg.DATASETS.TEST[0]
    for plot in sorted((run.folder / "inference" / first).glob("*.png")):
        shutil.copy(plot, run.folder)
    if (run.folder / "metrics.json").exists():
        with _dispensable("the plots of the training"):
            history = read_metrics(run.folder / "metrics.json")
            plot_losses(history, run.folder / "loss.png")
            plot_metric(history, run.task.plotted, run.folder / run.task.plot_file)
    with _dispensable("the pictures with predictions"):
        folder = run.folder / "inference" / first
        run.task.draw(run.cfg, model, first, folder, run.folder / run.task.sheet_file)


@contextlib.contextmanager
def _dispensable(what: str) -> Iterator[None]:
    """Log what cannot be made, and go on: hours of training may stand behind it."""
    try:
        yield
    except Exception as error:
        logger.warning("%s could not be made (%s: %s)", what, type(error).__name__, error)
        logger.debug("%s", what, exc_info=True)  # into log.txt only


def cost(run: Run, model: nn.Module, *, minutes: float | None) -> dict[str, float]:
    """What the model costs: parameters, training, and for one picture multiply-adds and evaluations.

    Latency is not among them: it is compared in one process, side by side, or not at all.

    Args:
        run: the run, for its first test picture.
        model: on its device.
        minutes: time spent training, if any.
    """
    model = tested(run, model)
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    if minutes is not None:
        figures["train_minutes"] = round(minutes, 2)
    batch = next(iter(run.task.test_loader(run.cfg, run.cfg.DATASETS.TEST[0])))[:1]
    with (
        inference_context(model),
        torch.no_grad(),
        MultiplyAdds() as counter,
        record_solves(model, measure=False) as record,
    ):
        model(batch)
    figures["macs"] = counter.total
    figures["evaluations"] = record.total.forward_evaluations
    return figures


def _role(cfg: CfgNode, model: nn.Module) -> str:
    flows = any(isinstance(module, ODEBlock) for module in model.modules())
    return "baseline" if cfg.MODEL.ODE.ROLE == "ode" and not flows else str(cfg.MODEL.ODE.ROLE)


def _protocol(run: Run, *, trained: bool) -> Protocol:
    cfg = run.cfg
    precision = "autocast" if cfg.SOLVER.AMP.ENABLED else "float32"
    data = f"tested on {', '.join(cfg.DATASETS.TEST)}"
    if not trained and cfg.MODEL.OPTIMIZE_FOR_INFERENCE:
        data += " as optimised for inference"
    if cfg.TEST.AUG.ENABLED:
        copies = len(cfg.TEST.AUG.MIN_SIZES) * (2 if cfg.TEST.AUG.FLIP else 1)
        data += f" with test-time augmentation ({copies} copies of a picture)"
    measured = (*clauses("metrics", run.task.protocol(cfg)), COSTS_OF_ONE_PICTURE)
    if not trained:
        return Clause(TEST, f"{data}, weights of {cfg.MODEL.WEIGHTS or cfg.OUTPUT_DIR}"), *measured
    start = f"from {cfg.MODEL.WEIGHTS}" if cfg.MODEL.WEIGHTS else "from scratch"
    batches = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} pictures"
    if comm.get_world_size() > 1:
        batches += f" in {comm.get_world_size()} processes"
    trained_on = f"trained on {', '.join(cfg.DATASETS.TRAIN)}: {batches}, {start}, {precision}"
    return Clause(TRAINING, trained_on), Clause(TEST, f"{data} with the last weights"), *measured


def _verify(cfg: CfgNode, nested: dict[str, Any]) -> None:
    """Compare the metrics with ``TEST.EXPECTED_RESULTS``; where they differ, Detectron2 says so and ends with 1."""
    if not comm.is_main_process():
        return
    try:
        verify_results(cfg, nested)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"TEST.EXPECTED_RESULTS lists what is expected of which metric, and it is {cfg.TEST.EXPECTED_RESULTS} "
            f"({type(error).__name__}: {error}). Write [[bbox, AP50, 60.0, 2.0]] for 58 to 62 %."
        ) from error
