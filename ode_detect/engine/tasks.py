"""The tasks, by the name that ``cfg.TASK`` gives."""

from __future__ import annotations

from detectron2.config import CfgNode

from ode_detect.classification.task import CLASSIFICATION
from ode_detect.detection.task import DETECTION
from ode_detect.ode.names import check_name
from ode_detect.report.metrics import declare
from ode_detect.task import Task

TASKS: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Make a task known: configs can name it and have its keys, trainer and tools run it, its metrics have their names.

    Raises:
        ValueError: there is one of its name.
    """
    if TASKS.setdefault(task.name, task) is not task:
        raise ValueError(f"a task has a name of its own, and there is one called {task.name!r} already; rename it.")
    declare(*task.quantities)


for _task in (DETECTION, CLASSIFICATION):
    register_task(_task)


def get_task(cfg: CfgNode) -> Task:
    """The task that a config names, with its data sets registered.

    Raises:
        ConfigError: the config asks for what the task cannot build.
    """
    task = TASKS[check_name(cfg.TASK, TASKS, "TASK")]
    task.check_config(cfg)
    task.register(cfg)
    return task
