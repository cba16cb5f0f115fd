"""Trains each case of a file and saves what happened; alone, or in the processes that torchrun starts.

torchrun --nproc-per-node 2 tests/engine/recorded_training.py cases.json recorded.pth
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ode_detect.engine import distributed, processes, train
from ode_detect.engine import run as runs
from ode_detect.engine.config import load_config
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.launch import run_tool
from ode_detect.engine.trainer import Trainer

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
# Detectron2 averages the losses of the box head over the proposals of a process.
SAMPLED = ("roi_head/num_fg_samples", "roi_head/num_bg_samples")


class Recorder(HookBase):
    """Keeps the losses of each iteration."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.sampled: list[float] = []

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})
        self.sampled.append(sum(latest[name][0] for name in SAMPLED))


class StopOne(HookBase):
    """Sends SIGTERM to the last process alone, in the first iteration."""

    def after_step(self) -> None:
        if self.trainer.iter == 0 and comm.get_rank() == comm.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def recorded(overrides: list[str], *, stopped: bool = False, evaluated: bool = False) -> dict[str, Any]:
    """Train on a config without evaluating.

    Args:
        overrides: of the quickstart config.
        stopped: stop on the way and resume; the losses are those of the resumed run.
        evaluated: evaluate the last weights.

    Returns:
        The losses of each iteration, how many proposals of a picture were trained on, the weights at the end, and the
        predictions of the first test set, if it was evaluated.
    """
    if stopped:
        try:
            _train(overrides, StopOne(), resume=False)
        except Interrupted:
            pass
        else:
            raise AssertionError("the run did not stop")
    recorder = Recorder()
    run, model = _train(overrides, recorder, resume=stopped)
    found = predictions(run, model) if evaluated else []
    weights = model.state_dict()
    return {"losses": recorder.losses, "sampled": recorder.sampled, "weights": weights, "predictions": found}


def _train(overrides: list[str], hook: HookBase, *, resume: bool) -> tuple[runs.Run, nn.Module]:
    cfg = load_config(QUICKSTART, overrides)
    run = runs.open_training(cfg, command="test", config_file=str(QUICKSTART), resume=resume)
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.register_hooks([hook])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return run, trainer.checkpointer.model


def predictions(run: runs.Run, model: nn.Module) -> list[dict[str, Any]]:
    """Evaluate and read what was predicted for the first test set: in the main process, nothing in the others."""
    train.evaluate(run, model)
    if not comm.is_main_process():
        return []
    written = run.folder / "inference" / run.cfg.DATASETS.TEST[0] / "coco_instances_results.json"
    return sorted(json.loads(written.read_text()), key=lambda found: (found["image_id"], -found["score"]))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    processes.add_process_flags(parser)
    plan = processes.layout(parser.parse_args([]), "cpu")
    processes.join(plan, "cpu")
    cases, output = arguments
    results = {name: recorded(**case) for name, case in json.loads(Path(cases).read_text()).items()}
    if comm.is_main_process():
        torch.save(results, output)
    distributed.leave()


if __name__ == "__main__":
    sys.exit(run_tool(main, sys.argv[1:]))
