"""The tasks, by the name that ``cfg.TASK`` gives."""

from __future__ import annotations

from detectron2.config import CfgNode

from ode_detect.engine.task import Task
from ode_detect.ode.names import check_name

from .classification import CLASSIFICATION
from .detection import DETECTION

TASKS = {task.name: task for task in (DETECTION, CLASSIFICATION)}


def get_task(cfg: CfgNode) -> Task:
    """The task that the config names, with its data sets registered.

    Raises:
        ConfigError: the config asks for what the task cannot build.
    """
    task = TASKS[check_name(cfg.TASK, TASKS, "TASK")]
    task.check_config(cfg)
    task.register(cfg)
    return task
