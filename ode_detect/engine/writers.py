"""What a run logs while it trains: the progress line, metrics.json and TensorBoard events, across resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ode_detect.media.files import write_text

# Iterations between two records, and those that a record is smoothed over.
_PERIOD = 20


class LogWriter(hooks.PeriodicWriter):
    """Writes the progress line, metrics.json and TensorBoard events, every 20 iterations.

    Its state is all that the next records are made of, and how far the files are written. So a run that goes on from a
    checkpoint writes what it would have written without a stop; what was written after the checkpoint is removed first.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__([], period=_PERIOD)
        self._cfg = cfg
        self._state: dict[str, Any] = {}

    def before_train(self) -> None:
        """Take up the state, and open the files."""
        folder, file = Path(self._cfg.OUTPUT_DIR), Path(self._cfg.OUTPUT_DIR) / "metrics.json"
        start = self.trainer.start_iter
        # Checkpoints of earlier versions do not say; they may have lost records of a few iterations.
        written = self._state.get("written", start - 1)
        # The last scores of a finished run that goes on to a later iteration stand behind its last checkpoint.
        went_on = self._state.get("max_iter") == start < self.trainer.max_iter
        written = start if went_on else written
        _cut_records(file, written)
        _restore(self.trainer.storage, self._state)
        log = logging.getLogger("ode_detect.engine")
        self._records = JSONWriter(str(file), _PERIOD)
        events = TensorboardXWriter(str(folder), _PERIOD, purge_step=written + 1)
        self._records._last_write = events._last_write = written
        self._writers = [ProgressWriter(self._cfg.SOLVER.MAX_ITER, log.info), self._records, events]

    def state_dict(self) -> dict[str, Any]:
        """The latest values, those that the next record is smoothed over, and the last iteration in the files."""
        storage = self.trainer.storage
        windows = {}
        for name, history in storage.histories().items():
            windows[name] = history.values()[-storage.count_samples(name, _PERIOD) :]
        return {
            "latest": dict(storage.latest()),
            "windows": windows,
            "smoothed": dict(storage.smoothing_hints()),
            "written": self._records._last_write,
            "max_iter": self.trainer.max_iter,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, when the training begins."""
        self._state = state_dict


def _restore(storage: EventStorage, state: dict[str, Any]) -> None:
    for name, values in state.get("windows", {}).items():
        for value, iteration in values:
            storage.put_scalar(name, value, smoothing_hint=state["smoothed"][name], cur_iter=iteration)
    # Their order is that of the records.
    storage._latest_scalars = dict(state.get("latest", {}))


def _cut_records(file: Path, last: int) -> None:
    """Remove the records of iterations after the last one, and what a kill left of a record."""
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if _iteration(line, last + 1) <= last)
    if kept != text:
        write_text(file, kept)


def _iteration(line: str, otherwise: int) -> int:
    try:
        return int(json.loads(line)["iteration"])
    except (ValueError, TypeError, KeyError):
        return otherwise


class ProgressWriter(EventWriter):
    """One line now and then: iteration, losses, learning rate, evaluations, speed, time left."""

    def __init__(self, max_iter: int, log: Callable[[str], None]) -> None:
        self._max_iter, self._log = max_iter, log

    def write(self) -> None:
        """Log the line of the latest iteration."""
        storage = get_event_storage()
        done = storage.iter + 1
        if storage.iter >= self._max_iter:
            return
        losses = {n: h.median(20) for n, h in storage.histories().items() if "loss" in n}
        total = losses.pop("total_loss", None)
        if total is None:
            return
        latest = storage.latest()
        seconds = storage.history("time").median(20) if "time" in latest else None
        parts = [f"{done:>6}/{self._max_iter}", f"loss {total:.3f}"]
        parts += (
            ["(" + ", ".join(f"{n.replace('loss_', '')} {v:.3f}" for n, v in losses.items()) + ")"] if losses else []
        )
        parts += [f"lr {latest['lr'][0]:.2g}"] if "lr" in latest else []
        if "nfe_forward" in latest:
            nfe = (latest["nfe_forward"][0], latest["nfe_backward"][0], latest["solver_steps"][0])
            parts.append("NFE {:.0f}+{:.0f} in {:.0f} steps".format(*nfe))
        if seconds is not None:
            left = int((self._max_iter - done) * seconds)
            parts.append(f"{seconds:.2f} s/it  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        self._log("  ".join(parts))
