"""BatchNorm statistics of the settings of a dial: the checkpoint's own at the full steps, estimated ones at others."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ode_detect.engine.build import training_stream
from ode_detect.engine.run import Run
from ode_detect.engine.weights import load_weights_only
from ode_detect.media.files import say_unreadable, whole
from ode_detect.ode import estimate_statistics
from ode_detect.ode.dial import solved_by
from ode_detect.ode.statistics import StatisticsError, batch_norms

from .settings import Setting

logger = logging.getLogger("ode_detect.studies")


class Statistics:
    """Statistics of every setting of one network.

    Args:
        run: of the network; its training data is what statistics are estimated from.
        model: the network, with the statistics of its checkpoint.
        file: where estimated statistics are kept.

    Attributes:
        batches: training batches of an estimate; 0 where nothing is estimated.
        estimated: by the name of the setting; what could not be estimated is not there.
    """

    def __init__(self, run: Run, model: nn.Module, file: Path) -> None:
        self._run, self._model, self._file = run, model, file
        self.batches = max(run.cfg.SOLVER.DIAL.STATISTICS_BATCHES, 0) if batch_norms(model) else 0
        self._own = self._values()
        self.estimated: dict[str, dict[str, Tensor]] = {}

    def estimate(self, setting: Setting) -> None:
        """Estimate the statistics of a setting that is not that of the full steps."""
        if not self.batches:
            return
        batches = itertools.islice(training_stream(self._run.cfg, self._run.task), self.batches)
        try:
            with solved_by(self._model, dict(setting.solvers)):
                estimate_statistics(self._model, batches)
                self.estimated[setting.name] = self._values()
        except StatisticsError as error:
            logger.warning("%s keeps the statistics of the full steps: %s", setting.name, error)
        finally:
            self._set(self._own)

    @contextmanager
    def at(self, setting: Setting) -> Iterator[None]:
        """The network with the statistics that belong to a setting."""
        estimated = self.estimated.get(setting.name)
        if not estimated:
            yield
            return
        self._set(estimated)
        try:
            yield
        finally:
            self._set(self._own)

    def read(self) -> bool:
        """Read what is kept; False if it is broken, which is logged."""
        if self._file.exists():
            try:
                self.estimated = load_weights_only(str(self._file))
            except Exception as error:  # what a broken file makes its reader raise is nobody's contract
                say_unreadable(self._file, error)
                return False
        return True

    def write(self) -> None:
        """Keep what was estimated."""
        if self.estimated:
            with whole(self._file) as partial:
                torch.save(self.estimated, partial)

    def _values(self) -> dict[str, Tensor]:
        named = batch_norms(self._model)
        return {f"{path}.{n}": b.clone() for path, norm in named.items() for n, b in norm.named_buffers(recurse=False)}

    def _set(self, values: Mapping[str, Tensor]) -> None:
        # Of the network as a whole it would be a state without the statistics of a FrozenBN, which then forgets them.
        for path, norm in batch_norms(self._model).items():
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(values[f"{path}.{name}"])
