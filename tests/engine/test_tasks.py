"""The registry of tasks."""

from collections.abc import Iterator

import pytest
from detectron2.config import get_cfg

from ode_detect.detection.task import DETECTION, Detection
from ode_detect.engine.config import add_ode_config
from ode_detect.engine.tasks import TASKS, get_task, register_task
from ode_detect.ode.names import UnknownNameError
from ode_detect.task import Task


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_by_the_name_that_the_config_gives_it(name: str) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = name
    task = get_task(cfg)
    assert task.name == name
    assert "/" in task.metric


def test_of_an_unknown_task_those_that_exist_are_named() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = "detect"
    with pytest.raises(UnknownNameError, match="detection"):
        get_task(cfg)


class Renamed(Detection):
    """Detection under a name of its own."""

    name = "renamed"


@pytest.fixture
def renamed() -> Iterator[Task]:
    task = Renamed()
    register_task(task)
    yield task
    TASKS.pop(task.name)


def test_a_registered_task_is_found_by_its_name(renamed: Task) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = "renamed"
    assert get_task(cfg) is renamed


def test_a_name_is_taken_once(renamed: Task) -> None:
    register_task(renamed)  # the same one again changes nothing
    with pytest.raises(ValueError, match="'renamed' already; rename it"):
        register_task(Renamed())
    assert TASKS["renamed"] is renamed
    with pytest.raises(ValueError, match="'detection' already"):
        register_task(Detection())
    assert TASKS["detection"] is DETECTION
