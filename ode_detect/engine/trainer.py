"""One trainer for all tasks: Detectron2's loop and hooks, exact resume, autocast on the CPU, solves logged."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ode_detect.task import Task

from .build import autocast, build_network, config_errors, on_gpu, training_stream
from .checkpoint import Checkpointer
from .classes import match_classes
from .distributed import agreed, average_gradients, averaged, broadcast_state, data_parallel, from_main
from .ema import AveragedWeights
from .hooks import BestCheckpointer, IterationTimer, PeriodicCheckpointer, RecordSolves, StopOnSignal, WatchBoxes
from .optimizer import build_optimizer, build_scheduler, optimizer_state, parameter_names
from .sampling import drawn_by_picture, seed_iteration, shared_generator
from .second_pass import make_second_pass
from .weights import CheckpointError
from .writers import LogWriter

# Hooks whose state older checkpoints have under another name.
_RENAMED_HOOKS = {"HandedOut": "AveragedWeights"}


class Trainer(SimpleTrainer):
    """Trains any task.

    Args:
        cfg: the resolved config.
        task: what to train.
        evaluate: evaluates the model and returns nested results.

    Attributes:
        checkpointer: of the run folder.
        start_iter: the iteration that ``train()`` begins with.
        seconds: time spent in iterations, over all resumes.
        last_results: what the latest evaluation gave.
    """

    def __init__(self, cfg: CfgNode, task: Task, evaluate: Callable[[nn.Module], dict[str, Any]]) -> None:
        model = build_network(cfg)
        with config_errors():
            optimizer = build_optimizer(cfg, model)
            self.scheduler = build_scheduler(cfg, optimizer)
            self._second = make_second_pass(cfg, model)
            average = AveragedWeights(model, decay=cfg.SOLVER.EMA_DECAY, finish=partial(task.after_training, cfg))
        self._cfg, self._task = cfg, task
        # A second backward pass would come after the gradients of the first have been averaged.
        parallel = model if self._second else data_parallel(cfg, model)
        super().__init__(parallel, _no_data(), optimizer)
        self._network = model
        self._scaler = torch.amp.GradScaler("cuda", enabled=cfg.SOLVER.AMP.ENABLED and on_gpu(cfg))
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
            emptied=cfg.MODEL.ODE.STAGES if cfg.MODEL.ODE.ROLE == "ablation" else (),
            save_to_disk=comm.is_main_process(),
            trainer=weakref.proxy(self),
        )
        self.iter: int
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.seconds = 0.0
        self.last_results: dict[str, Any] = {}
        self._loaded = False
        self.register_hooks(self._hooks_for(average, evaluate))

    def resume_or_load(self, *, resume: bool) -> None:
        """Go on from the run folder's last checkpoint, or begin with ``MODEL.WEIGHTS``."""
        if resume:
            self.start_iter = self.checkpointer.resume()
            if agreed(self.start_iter != from_main(lambda: self.start_iter)):
                raise CheckpointError(
                    f"all processes go on from the same checkpoint, and those in {self._cfg.OUTPUT_DIR} are not the "
                    "same on all machines; put OUTPUT_DIR on storage that they share, or copy the folder to all."
                )
            if self.start_iter and not self._loaded:
                raise CheckpointError(
                    f"{self.checkpointer.get_checkpoint_file()} holds weights and no state of a training, so no run "
                    "can go on from it. Begin one with it: MODEL.WEIGHTS, and another OUTPUT_DIR."
                )
        if self.start_iter == 0:
            self.checkpointer.load_weights(self._cfg.MODEL.WEIGHTS, whole=False)
        if self.start_iter or self._cfg.MODEL.WEIGHTS:
            path = self.checkpointer.get_checkpoint_file() if self.start_iter else self._cfg.MODEL.WEIGHTS
            loaded = self.checkpointer.coverage
            match_classes(self._cfg, self._task, self._network, loaded, path, resuming=self.start_iter > 0)
        broadcast_state(self._network)

    def train(self) -> None:
        """Train to the last iteration."""
        if self.start_iter < self.max_iter:
            self._task.forget(self._network)
        self.data_loader = self.stream()
        super().train(self.start_iter, self.max_iter)

    def stream(self) -> DataLoader[list[Any]]:
        """The batches from the first iteration on that is left."""
        cfg = self._cfg
        stream = training_stream(cfg, self._task, start=self.start_iter)
        # Whoever uses the weights may not have the data that name the classes.
        self.checkpointer.notes["categories"] = self._task.categories(cfg)
        return stream

    def run_step(self) -> None:
        """One iteration: batch, losses (with ``SOLVER.DIAL``, of two passes), gradients, update."""
        began = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - began
        seed, iteration = self._cfg.SEED, self.iter
        # Nothing that is drawn depends on what was drawn before, so a resumed run needs no state of the generators.
        seed_iteration(seed, iteration)
        with drawn_by_picture(self._network, seed=seed, iteration=iteration, pictures=len(data)):
            with autocast(self._cfg), self._second.watched() if self._second else nullcontext():
                losses = self.model(data)
                total = sum(losses.values())
            self.optimizer.zero_grad()
            self._scaler.scale(total).backward()
            if self._second:
                # After the first backward pass, so that one graph at a time is kept.
                drawing, context = shared_generator(seed, iteration), partial(autocast, self._cfg)
                losses = {**losses, **self._second.run(data, self._add_gradients, context, drawing)}
                average_gradients(self._network)
        self.after_backward()
        # Before the update: a loss that is not finite stops the run while the weights are still good.
        self._write_metrics(losses, data_time)
        if self._cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
            self._scaler.unscale_(self.optimizer)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.seconds += time.perf_counter() - began

    def after_train(self) -> None:
        """Let the hooks end; a run that had no iteration left ends where it ended before."""
        self.iter = min(self.iter, max(self.start_iter, self.max_iter))
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer, gradient scale and time spent."""
        own = {"scaler": self._scaler.state_dict(), "seconds": self.seconds}
        own["parameters"] = parameter_names(self.optimizer, self._network)
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; rates, decays and momentum are those of the config."""
        names = parameter_names(self.optimizer, self._network)
        rates = self.scheduler.base_lrs
        saved = optimizer_state(self.optimizer, state_dict["optimizer"], names, state_dict.get("parameters"))
        # Hooks of older checkpoints go by the names that they had.
        states = {_RENAMED_HOOKS.get(name, name): state for name, state in state_dict.get("hooks", {}).items()}
        super().load_state_dict({**state_dict, "optimizer": saved, **({"hooks": states} if states else {})})
        self.scheduler.base_lrs = rates
        if self.iter < self.max_iter:  # The schedule has no rates after its end.
            for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = rate
        if state_dict["scaler"]:
            self._scaler.load_state_dict(state_dict["scaler"])
        self._loaded = True
        self.seconds = state_dict["seconds"]

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        # Detectron2's raises in the main process alone, and the others would wait for it.
        losses = averaged({name: float(loss.detach()) for name, loss in loss_dict.items()})
        total = sum(losses.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={self.iter}!\nloss_dict = {losses}")
        self.storage.put_scalars(data_time=data_time, total_loss=total)
        if len(losses) > 1:
            self.storage.put_scalars(**losses)

    def _add_gradients(self, loss: Tensor) -> None:
        self._scaler.scale(loss).backward()

    def _hooks_for(self, average: AveragedWeights, evaluate: Callable[[nn.Module], dict[str, Any]]) -> list[HookBase]:
        cfg, model, period = self._cfg, self._network, self._cfg.TEST.EVAL_PERIOD

        def evaluate_kept() -> dict[str, Any]:
            if self.iter + 1 == self.max_iter:
                return {}  # The last iteration failed; others may be waiting for this process elsewhere.
            with average.in_place():
                broadcast_state(model)  # The statistics of BatchNorm are those of each process.
                self.last_results = evaluate(model)
            return self.last_results

        chosen: list[HookBase] = [
            IterationTimer(),
            hooks.LRScheduler(),
            RecordSolves(model),
            WatchBoxes(),
            average,
            hooks.EvalHook(period, evaluate_kept),
        ]
        if comm.is_main_process():
            chosen += [
                # Before the checkpoints, which know how far it came.
                LogWriter(cfg),
                BestCheckpointer(average, period, self.checkpointer, self._task.metric, mode=self._task.better),
                PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            ]
        return [*chosen, StopOnSignal(self.checkpointer)]


def _no_data() -> list[Any]:
    """Stands for the loader until `Trainer.train` knows at which iteration it begins."""
    return []
