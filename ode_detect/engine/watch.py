"""Watching a training for what no loss that falls gives away."""

from __future__ import annotations

import logging
import re
import sys

from detectron2.engine import HookBase


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
