import logging
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from ode_detect.engine.hooks import WatchBoxes


def watched(losses: dict[str, float], iterations: int) -> None:
    hook = WatchBoxes()
    with EventStorage() as storage:
        for iteration in range(iterations):
            storage.put_scalars(**losses)
            hook.trainer = SimpleNamespace(iter=iteration, storage=storage)
            hook.after_step()


@pytest.mark.parametrize("name", ["loss_box_reg", "loss_rpn_loc", "loss_box_reg_stage2"])
def test_boxes_that_are_not_learnt_are_told_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ode_detect.engine"):
        watched({name: 0.0002, "loss_cls": 0.5}, 320)
    (record,) = caplog.records
    assert f"{name.removeprefix('loss_')} was 0.000 over the last 100 iterations" in record.getMessage()


@pytest.mark.parametrize(
    ("losses", "iterations"), [({"loss_box_reg": 0.01, "loss_cls": 0.0}, 300), ({"loss_box_reg": 0.0}, 99)]
)
def test_boxes_that_are_learnt_and_a_short_beginning_are_not_told(
    losses: dict[str, float], iterations: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ode_detect.engine"):
        watched(losses, iterations)
    assert caplog.records == []
