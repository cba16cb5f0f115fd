"""One trainer for all tasks: Detectron2's loop and hooks, exact resume, autocast on the CPU, solves logged."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ode_detect.media.errors import DatasetError
from ode_detect.ode import ODEBlock, SolveRecord, record_solves
from ode_detect.ode.dial import set_solvers
from ode_detect.task import Task

from .checkpoint import Checkpointer
from .classes import match_classes
from .config import ConfigError, flow_settings, tolerances
from .ema import HandedOut
from .metrics import LogWriter
from .optimizer import build_optimizer, build_scheduler, optimizer_state, parameter_names
from .processes import agreed, average_gradients, averaged, broadcast_state, data_parallel, from_main
from .sampling import drawn_by_picture, seed_iteration, shared_generator
from .second_pass import make_second_pass
from .stream import build_stream
from .watch import WatchBoxes
from .weights import CheckpointError


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, kill), saved a checkpoint and can be resumed."""


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
            handed_out = HandedOut(model, decay=cfg.SOLVER.EMA_DECAY, finish=partial(task.finish, cfg))
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
        self.register_hooks(self._hooks_for(handed_out, evaluate))

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
        super().load_state_dict({**state_dict, "optimizer": saved})
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

    def _hooks_for(self, handed_out: HandedOut, evaluate: Callable[[nn.Module], dict[str, Any]]) -> list[HookBase]:
        cfg, model, period = self._cfg, self._network, self._cfg.TEST.EVAL_PERIOD

        def evaluate_kept() -> dict[str, Any]:
            if self.iter + 1 == self.max_iter:
                return {}  # The last iteration failed; others may be waiting for this process elsewhere.
            with handed_out.in_place():
                broadcast_state(model)  # The statistics of BatchNorm are those of each process.
                self.last_results = evaluate(model)
            return self.last_results

        chosen: list[HookBase] = [
            IterationTimer(),
            hooks.LRScheduler(),
            RecordSolves(model),
            WatchBoxes(),
            handed_out,
            hooks.EvalHook(period, evaluate_kept),
        ]
        if comm.is_main_process():
            chosen += [
                # Before the checkpoints, which know how far it came.
                LogWriter(cfg),
                BestCheckpointer(handed_out, period, self.checkpointer, self._task.metric, mode=self._task.better),
                PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            ]
        return [*chosen, StopOnSignal(self.checkpointer)]


class IterationTimer(hooks.IterationTimer):
    """Detectron2's, which leaves out the first iterations of a run, but not those after a resume."""

    def before_train(self) -> None:
        """Begin to measure."""
        super().before_train()
        self._warmup_iter: int = max(1, self._warmup_iter - self.trainer.start_iter)


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, which keeps the two latest of its checkpoints, those that an earlier process wrote included."""

    def before_train(self) -> None:
        """Remove what an earlier process left."""
        super().before_train()
        self._remove_superseded(self.trainer.start_iter - 1)

    def after_step(self) -> None:
        """Save, and remove what that supersedes."""
        super().after_step()
        iteration = self.trainer.iter
        if (iteration + 1) % self.period == 0 or iteration + 1 == self.max_iter:
            self._remove_superseded(iteration)

    def _remove_superseded(self, iteration: int) -> None:
        """Remove earlier checkpoints, without the one that a run goes on from.

        Those of later iterations stay until they are written again: somebody may have gone back on purpose.
        """
        files = Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_*.pth")
        numbers = {file: int(found[1]) for file in files if (found := re.fullmatch(r".*_(\d{7,})", file.stem))}
        earlier = sorted((f for f, number in numbers.items() if number <= iteration), key=lambda f: numbers[f])
        kept = [file for file in earlier if (numbers[file] + 1) % self.period == 0][-2:]
        for file in {*earlier} - {*kept, Path(self.checkpointer.get_checkpoint_file())}:
            file.unlink(missing_ok=True)


class RecordSolves(HookBase):
    """Logs, for each iteration, the evaluations (NFE) of all flows, forward and backward, and their steps."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack = ExitStack()
        self._record: SolveRecord | None = None
        self._before = (0, 0, 0)

    def before_train(self) -> None:
        """Begin to record."""
        self._record = self._stack.enter_context(record_solves(self._model, measure=False))

    def before_step(self) -> None:
        """Leave out what was solved between iterations: an evaluation of the model."""
        self._before = self._counts()

    def after_step(self) -> None:
        """Log what the iteration added."""
        if self._record is not None and self._record.blocks:
            names = ("nfe_forward", "nfe_backward", "solver_steps")
            added = {n: float(b - a) for n, a, b in zip(names, self._before, self._counts(), strict=True)}
            self.trainer.storage.put_scalars(**added)

    def _counts(self) -> tuple[int, int, int]:
        if self._record is None:
            return (0, 0, 0)
        total = self._record.total
        return (total.forward_evaluations, total.backward_evaluations, total.accepted)

    def after_train(self) -> None:
        """Stop recording."""
        self._stack.close()


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, which saves what is handed out, and remembers the best score across a resume."""

    def __init__(self, handed_out: HandedOut, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._handed_out = handed_out

    def _best_checking(self) -> None:
        with self._handed_out.in_place():
            super()._best_checking()

    def state_dict(self) -> dict[str, Any]:
        """The best score and its iteration."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]


class StopOnSignal(HookBase):
    """On Ctrl-C or a kill, ends the iteration, saves, and raises `Interrupted`; a second one stops at once."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._asked = 0.0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def before_train(self) -> None:
        """Take over the signals."""
        try:
            self._before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self._before = {}  # Not the main thread: signals are somebody else's.

    def after_step(self) -> None:
        """Save and stop if asked."""
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.after_train()  # What is left is evaluation, which can be stopped at once.
        elif agreed(self._asked > 0):
            self._checkpointer.save(f"model_{self.trainer.iter:07d}")
            comm.synchronize()  # Whoever ends first ends the others.
            raise Interrupted(
                f"stopped after iteration {self.trainer.iter + 1} of {self.trainer.max_iter}; all is saved. "
                "Go on with the same command and --resume."
            )

    def after_train(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # A worker that loads pictures; it ends with the process that trains.
        if self._asked:
            # Ctrl-C reaches a process from the terminal and again from whoever started it.
            if time.monotonic() - self._asked < 1.0:
                return
            raise KeyboardInterrupt
        self._asked = time.monotonic()
        if not comm.is_main_process():
            return
        message = "\nstopping after this iteration (once more: at once, back to the last checkpoint)"
        print(message, file=sys.stderr, flush=True)


def training_stream(cfg: CfgNode, task: Task, *, start: int = 0) -> DataLoader[list[Any]]:
    """The batches of a training, from an iteration on; endless.

    Raises:
        ConfigError: values that the data or the stream cannot have.
        DatasetError: training data that is not there.
    """
    with config_errors():
        dicts, mapper = task.train_data(cfg)
        return build_stream(
            dicts,
            mapper,
            batch=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            start=start,
            group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            repeats=_repeats(cfg, task, dicts),
            workers=cfg.DATALOADER.NUM_WORKERS,
        )


def _repeats(cfg: CfgNode, task: Task, dicts: list[Any]) -> Tensor | None:
    """How often each picture comes in an epoch, if pictures of rare classes are to come more often."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return None
    classes = [{"annotations": [{"category_id": number} for number in task.classes_in(record)]} for record in dicts]
    factors: Tensor = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        classes, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return factors


def build_network(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, its flows solved as ``MODEL.ODE.FLOWS`` says.

    Raises:
        ConfigError: the config asks for what cannot be built.
    """
    if on_gpu(cfg) and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} and torch sees no GPU; set MODEL.DEVICE cpu.")
    steps, methods = flow_settings(cfg)
    with config_errors():
        model: nn.Module = build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            _to_channels_last(model)
        if cfg.MODEL.ODE.FLOWS and cfg.MODEL.ODE.ROLE == "ode":
            set_solvers(model, steps=steps, method=methods, **tolerances(cfg))
        return model


def _to_channels_last(model: nn.Module) -> None:
    """All but the flows with a GroupNorm, which PyTorch computes many times slower so on a CPU.

    Such a flow gives contiguous states whatever it is given.
    """
    model.to(memory_format=torch.channels_last)
    for block in model.modules():
        if isinstance(block, ODEBlock) and any(isinstance(part, nn.GroupNorm) for part in block.modules()):
            block.to(memory_format=torch.contiguous_format)
            block.register_forward_pre_hook(_contiguous)


def _contiguous(block: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].contiguous()


@contextmanager
def config_errors() -> Iterator[None]:
    """What fails while a network, an optimizer or a stream is built fails for a config value, or for the data."""
    try:
        yield
    except DatasetError:
        raise
    except (ValueError, KeyError, AssertionError, RuntimeError, ImportError) as error:
        detail = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config cannot be built: {detail}") from error


def on_gpu(cfg: CfgNode) -> bool:
    """Whether ``MODEL.DEVICE`` is a CUDA device, whatever its number."""
    return str(cfg.MODEL.DEVICE).startswith("cuda")


def autocast(cfg: CfgNode) -> torch.autocast:
    """bfloat16 on the CPU, float16 on a GPU, if ``SOLVER.AMP.ENABLED``."""
    device, dtype = ("cuda", torch.float16) if on_gpu(cfg) else ("cpu", torch.bfloat16)
    return torch.autocast(device, dtype=dtype, enabled=cfg.SOLVER.AMP.ENABLED)


def _no_data() -> list[Any]:
    """Stands for the loader until `Trainer.train` knows at which iteration it begins."""
    return []
