"""The tasks by name."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

from ode_detect.engine.config import add_ode_config
from ode_detect.engine.tasks import TASKS, get_task
from ode_detect.ode.names import UnknownNameError


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_by_the_name_that_the_config_gives_it(name: str) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = name
    task = get_task(cfg)
    assert task.name == name
    assert "/" in task.metric


def test_an_unknown_task_tells_those_that_exist() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = "detect"
    with pytest.raises(UnknownNameError, match="detection"):
        get_task(cfg)
