"""What is logged while a run trains, by writers on storages of our own; whole runs are in test_trainer.py."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.events import EventStorage

from ode_detect.engine.writers import LogWriter, ProgressWriter


@pytest.fixture
def storage() -> Iterator[EventStorage]:
    with EventStorage(9) as opened:
        yield opened


def line(storage: EventStorage, max_iter: int = 100, **scalars: float) -> list[str]:
    storage.put_scalars(**scalars)
    lines: list[str] = []
    ProgressWriter(max_iter, lines.append).write()
    return lines


def test_the_line_says_iteration_losses_rate_evaluations_and_time_left(storage: EventStorage) -> None:
    nfe = {"nfe_forward": 8.0, "nfe_backward": 16.0, "solver_steps": 4.0}
    losses = {"total_loss": 1.5, "loss_cls": 1.0, "loss_box": 0.5}
    assert line(storage, **losses, lr=0.02, **nfe, time=60.0) == [
        "    10/100  loss 1.500  (cls 1.000, box 0.500)  lr 0.02  NFE 8+16 in 4 steps  60.00 s/it  1:30:00 left"
    ]


def test_the_line_leaves_out_what_is_not_measured(storage: EventStorage) -> None:
    assert line(storage, total_loss=0.25) == ["    10/100  loss 0.250"]


def test_there_is_no_line_without_a_loss_or_after_the_end(storage: EventStorage) -> None:
    assert line(storage, lr=0.1) == []
    assert line(storage, max_iter=9, total_loss=1.0) == []
    assert len(line(storage, max_iter=10, total_loss=1.0)) == 1


def test_losses_are_medians(storage: EventStorage) -> None:
    for value in (1.0, 1.0, 100.0):
        storage.put_scalar("total_loss", value, cur_iter=storage.iter)
    lines: list[str] = []
    ProgressWriter(100, lines.append).write()
    assert lines == ["    10/100  loss 1.000"]


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path), 60
    return cfg


def go(cfg: CfgNode, start: int, stop: int, state: dict[str, Any] | None = None, max_iter: int = 60) -> dict[str, Any]:
    """Iterations from `start` to before `stop`, with the state at the end, as a trainer calls the writer."""
    writer = LogWriter(cfg)
    if state is not None:
        writer.load_state_dict(json.loads(json.dumps(state)))
    with EventStorage(start) as storage:
        writer.trainer = SimpleNamespace(storage=storage, start_iter=start, max_iter=max_iter, iter=start)
        writer.before_train()
        for iteration in range(start, stop):
            storage.iter = writer.trainer.iter = iteration
            storage.put_scalars(total_loss=float(iteration**2 % 17), lr=0.1)
            writer.after_step()
        found = writer.state_dict()
        for one in writer._writers:
            one.close()
        return found


def records(cfg: CfgNode) -> list[dict[str, Any]]:
    return [json.loads(one) for one in (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]


def test_a_record_is_written_every_20_iterations(cfg: CfgNode) -> None:
    go(cfg, 0, 60)
    assert [one["iteration"] for one in records(cfg)] == [19, 39, 59]
    assert list(Path(cfg.OUTPUT_DIR).glob("events.out.tfevents*"))


def test_a_run_that_was_stopped_between_two_records_writes_those_of_one_that_was_not(cfg: CfgNode) -> None:
    go(cfg, 0, 60)
    whole = records(cfg)
    (Path(cfg.OUTPUT_DIR) / "metrics.json").unlink()
    state = go(cfg, 0, 33)
    go(cfg, 33, 60, state)
    assert records(cfg) == whole


def test_what_was_written_after_the_checkpoint_is_removed_and_what_a_kill_left_too(cfg: CfgNode) -> None:
    go(cfg, 0, 60)
    whole = records(cfg)
    file = Path(cfg.OUTPUT_DIR) / "metrics.json"
    file.unlink()
    state = go(cfg, 0, 33)
    go(cfg, 33, 50, state)
    with file.open("a") as opened:
        opened.write('{"iteration": 45, "total_lo')
    state["latest"]["note"] = [1.0, 32]
    go(cfg, 33, 34, state)
    assert [one["iteration"] for one in records(cfg)] == [19]
    assert records(cfg)[0] == whole[0]


def test_a_finished_run_that_goes_on_keeps_its_last_scores(cfg: CfgNode) -> None:
    state = go(cfg, 0, 30, max_iter=30)
    file = Path(cfg.OUTPUT_DIR) / "metrics.json"
    with file.open("a") as opened:
        opened.write('{"iteration": 30, "bbox/AP50": 50.0}\n')
    content = file.read_text()
    go(cfg, 30, 30, state, max_iter=30)
    assert file.read_text() != content, "of a run that ends there they are written again"
    file.write_text(content)
    go(cfg, 30, 30, state, max_iter=60)
    assert file.read_text() == content
