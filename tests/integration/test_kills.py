"""Trainings that are killed at any moment and resumed end as if nothing had happened.

Each kill has a run of its own: SIGKILL at a moment that a seed draws from the time of a whole run, in which it trains,
evaluates, writes checkpoints and its report; then a resume to the end. By hand with more of them:

ODE_DETECT_KILLS=20 python -m pytest tests/integration/test_kills.py -s
"""

import json
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ..conftest import QUICKSTART, ROOT, overrides_for, overrides_for_shapes

KILLS = int(os.environ.get("ODE_DETECT_KILLS", "4"))
# More than one record of metrics.json; evaluations and checkpoints before, at and after a record.
DETECTION = ["SOLVER.MAX_ITER", "26", "SOLVER.CHECKPOINT_PERIOD", "5", "TEST.EVAL_PERIOD", "9"]
CLASSIFICATION = ["SOLVER.MAX_ITER", "50", "SOLVER.CHECKPOINT_PERIOD", "4", "TEST.EVAL_PERIOD", "6", "SEED", "3"]


def work(config: str, overrides: list[str], resume: bool, begun: Any) -> None:
    """What a process does: a training, as tools/train_net.py makes it."""
    from ode_detect.engine.config import load_config
    from ode_detect.engine.run import open_training
    from ode_detect.engine.train import train

    torch.set_num_threads(1)
    run = open_training(load_config(config, overrides), command="test", config_file=config, resume=resume)
    begun.set()
    train(run, resume=resume)


class Campaign:
    """Runs of one config in processes of their own, which come from one that has imported everything."""

    def __init__(self, config: str, overrides: Callable[[Path], list[str]]) -> None:
        self._config, self._overrides = config, overrides
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["ode_detect.engine.run", __name__])

    def run(self, folder: Path, *, resume: bool = False, kill_after: float | None = None) -> float | None:
        """Train, and give the seconds it took, or None for a run that was killed so many seconds after its begin."""
        begun = self._context.Event()
        arguments = (self._config, self._overrides(folder), resume, begun)
        process = self._context.Process(target=work, args=arguments)
        process.start()
        assert begun.wait(200), "the training did not begin"
        start = time.monotonic()
        process.join(200 if kill_after is None else kill_after)
        if kill_after is not None:
            process.kill()
        process.join(200)
        if process.exitcode == -9 and kill_after is not None:
            return None
        assert process.exitcode == 0
        return time.monotonic() - start


def kept(folder: Path) -> dict[str, Any]:
    """What two runs must have in common: all but times, dates and machine."""
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        del row["cost"]["train_minutes"]
    records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    times = ("time", "data_time")
    return {
        "results": {key: results[key] for key in ("what", "protocol", "rows")},
        "metrics": [{k: "some" if k in times else v for k, v in record.items()} for record in records],
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if "tfevents" not in p.name),
    }


def differences(whole: Path, killed: Path) -> list[str]:
    """In what a killed and resumed run differs from the uninterrupted one."""
    one, other = kept(whole), kept(killed)
    found = [key for key in one if one[key] != other[key]]
    for name in sorted(path.name for path in whole.glob("*.pth")):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        states = [{"model": c["model"], "optimizer": c["trainer"]["optimizer"]["state"]} for c in (ours, theirs)]
        if not same(*states):
            found.append(name)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.mark.slow
@pytest.mark.timeout(300 + 120 * KILLS)
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and forkserver are of POSIX")
@pytest.mark.parametrize("task", ["detection", "classification"])
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(
    task: str, squares: Path, shapes: Path, tmp_path: Path
) -> None:
    if task == "detection":
        campaign = Campaign(str(QUICKSTART), lambda folder: overrides_for(squares, folder, *DETECTION))
    else:
        base = str(ROOT / "configs" / "base" / "mnist.yaml")
        campaign = Campaign(base, lambda folder: overrides_for_shapes(shapes, folder, *CLASSIFICATION))
    whole = tmp_path / "whole"
    seconds = campaign.run(whole)
    assert seconds is not None
    assert len(kept(whole)["metrics"]) > 3
    draw, kills, found = random.Random(task), (KILLS + 1) // 2, {}
    for number in range(kills):
        folder, moment = tmp_path / f"killed_{number}", draw.random() * seconds
        # A machine that is faster this time may have finished before.
        while campaign.run(folder, kill_after=moment) is not None:
            folder, moment = tmp_path / f"killed_{number}_after_{moment / 2:.2f}", moment / 2
        left = sorted(p.name for p in folder.glob("*") if re.search(r"\.pth$|partial|json$", p.name))
        campaign.run(folder, resume=True)
        found[number] = differences(whole, folder)
        print(
            f"{task}: killed after {moment:.2f} of {seconds:.2f} s, left {', '.join(left)}: {found[number] or 'equal'}"
        )
    assert not any(found.values()), f"{sum(not f for f in found.values())} of {kills} equal: {found}"
