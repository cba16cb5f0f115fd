"""Hooks of the training loop: Detectron2's, adapted, and ours."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from ode_detect.ode import SolveRecord, record_solves

from .checkpoint import Checkpointer
from .distributed import agreed
from .ema import AveragedWeights


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, kill), saved a checkpoint and can be resumed."""


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

    def __init__(self, averaged_weights: AveragedWeights, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._average = averaged_weights

    def _best_checking(self) -> None:
        with self._average.in_place():
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


class WatchBoxes(HookBase):
    """Warns, once, of boxes that are not learnt: the log shows 0.000 for their loss, and goes on."""

    _WINDOW = 100  # iterations; the first ones of a network from scratch find no object

    def after_step(self) -> None:
        """Look at the losses of boxes every so many iterations."""
        if (self.trainer.iter + 1) % self._WINDOW:
            return
        for name, history in self.trainer.storage.histories().items():
            if re.match(r"loss_(box_reg|rpn_loc)", name) and history.median(self._WINDOW) < 0.0005:
                self._warn(name)
                return

    def _warn(self, name: str) -> None:
        logging.getLogger("ode_detect.engine").warning(
            "%s was 0.000 over the last %d iterations: hardly any anchor or proposal overlaps an object, so no box is "
            "learnt. tools/check_dataset.py shows how large the objects are in training, with the anchors; "
            "MODEL.ANCHOR_GENERATOR.SIZES and INPUT.MIN_SIZE_TRAIN are to be set by it.",
            *(name.removeprefix("loss_"), self._WINDOW),
        )
        self._WINDOW = sys.maxsize  # once
