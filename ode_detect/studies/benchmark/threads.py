"""Section ``threads``: training steps, alone on the machine and with a process that takes a core, by how threads wait.

A process reads how its threads wait once, so each way has its own: this file, run with a config, computes iterations of
its training on one batch in memory whenever it is asked.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ode_detect.engine.config import load_config
from ode_detect.engine.stream import seed_everything
from ode_detect.engine.tasks import get_task
from ode_detect.engine.trainer import Trainer
from ode_detect.studies.process_memory import keep_freed_memory
from ode_detect.studies.timing import Case, Ratio, Side
from ode_detect.threads import SETTING, VARIABLES

QUIET_AIM, BUSY_AIM = 1.03, 1.7
ROOT = Path(__file__).resolve().parents[3]
STEPS = {
    "detector of the quickstart": "configs/quickstart.yaml",
    "ODE-Net of the digits": "configs/classification/digits_quickstart.yaml",
}
# An iteration alone is shorter than the turns that the system gives to processes.
ITERATIONS, QUICK_ITERATIONS = 5, 1
DEFAULT, OURS, ONE = "as torch comes", "as the commands start", "one thread"
WAYS: dict[str, dict[str, str]] = {DEFAULT: {}, OURS: SETTING, ONE: {"OMP_NUM_THREADS": "1"}}
_WEIGHT = 12.0
SERVER = [sys.executable, "-W", "ignore", "-m", "ode_detect.studies.benchmark.threads"]
_BUSY = [sys.executable, "-c", "while True: pass"]
# Never reached: what is measured are iterations.
_NEVER = {"SOLVER.MAX_ITER": 1_000_000, "SOLVER.CHECKPOINT_PERIOD": 1_000_000, "TEST.EVAL_PERIOD": 0}


def cases(*, quick: bool) -> Iterator[Case]:
    """A case for each training step; its sides are the ways to wait, each alone and with a busy process."""
    iterations = QUICK_ITERATIONS if quick else ITERATIONS
    for name, config in STEPS.items():
        with ExitStack() as stack:
            busy = stack.enter_context(_paused(_BUSY))
            sides = {}
            for way, setting in WAYS.items():
                ask = stack.enter_context(_asked(config, setting, quick=quick))
                role = "ode" if way == OURS else "baseline"
                sides[f"{way}, quiet"] = Side(role, partial(ask, iterations))
                sides[f"{way}, busy"] = Side(role, partial(_beside, busy, partial(ask, iterations)))
            quiet = f"{DEFAULT}, quiet"
            ratios = [Ratio(f"{OURS}, quiet", quiet, QUIET_AIM), Ratio(f"{OURS}, busy", f"{OURS}, quiet", BUSY_AIM)]
            ratios += [Ratio(side, quiet) for side in (f"{DEFAULT}, busy", f"{ONE}, quiet", f"{ONE}, busy")]
            yield Case(f"{name}, {iterations} iterations", sides, ratios, weight=_WEIGHT)


@contextmanager
def _paused(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that sleeps until it is let go on; it is gone afterwards."""
    with subprocess.Popen(command, text=True) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def _beside(busy: subprocess.Popen[str], run: Callable[[], None]) -> None:
    busy.send_signal(signal.SIGCONT)
    try:
        run()
    finally:
        busy.send_signal(signal.SIGSTOP)


@contextmanager
def _asked(config: str, setting: Mapping[str, str], *, quick: bool) -> Iterator[Callable[[int], None]]:
    """What has a process with that setting compute iterations, as many as are asked for, and waits for it.

    Raises:
        RuntimeError: the process has ended.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [*SERVER, config, *(["--quick"] if quick else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, text=True, cwd=ROOT, env={**environment, **setting}, stdin=pipe, stdout=pipe
    ) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None, "a pipe"
        assert answers is not None, "a pipe"

        def ask(iterations: int) -> None:
            print(iterations, file=questions, flush=True)
            if not answers.readline():
                raise RuntimeError(
                    f"the process that trains {config} ended with exit code {process.wait()}; its message stands above."
                )

        try:
            yield ask
        finally:
            process.kill()


def _serve(config: str, *, quick: bool) -> None:
    """Read numbers of iterations, one a line, and answer each with a line when they are done."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        keys = {**_NEVER, "OUTPUT_DIR": folder, "MODEL.DEVICE": "cpu", **({"SOLVER.IMS_PER_BATCH": 2} if quick else {})}
        cfg = load_config(str(ROOT / config), [str(word) for pair in keys.items() for word in pair])
        seed_everything(cfg.SEED)
        trainer = Trainer(cfg, get_task(cfg), lambda model: {})
        trainer.data_loader = cast(Any, itertools.repeat(_batch(cfg)))
        with EventStorage(0) as trainer.storage:
            trainer.before_train()
            for line in sys.stdin:
                for _ in range(int(line)):
                    trainer.before_step()
                    trainer.run_step()
                    trainer.after_step()
                    trainer.iter += 1
                print("done", flush=True)


def _batch(cfg: CfgNode) -> list[dict[str, Any]]:
    """Random pictures of the size that the config trains on, with random labels or eight boxes each."""
    generator = torch.Generator().manual_seed(0)
    detecting = cfg.TASK == "detection"
    height, width = cfg.INPUT.CROP.SIZE if detecting else (28, 28)
    channels, classes = len(cfg.MODEL.PIXEL_MEAN), 1 if detecting else cfg.MODEL.CLASSIFIER.NUM_CLASSES
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        image = torch.randint(256, (channels, height, width), dtype=torch.uint8, generator=generator)
        label = int(torch.randint(classes, (), generator=generator))
        example: dict[str, Any] = {"image": image, "label": label, "height": height, "width": width}
        if detecting:
            corners = torch.rand(8, 2, generator=generator) * torch.tensor([width - 32, height - 32])
            boxes = Boxes(torch.cat([corners, corners + 24], dim=1))
            example["instances"] = Instances((height, width), gt_boxes=boxes, gt_classes=torch.full((8,), label))
        batch.append(example)
    return batch


if __name__ == "__main__":
    _serve(sys.argv[1], quick="--quick" in sys.argv)
