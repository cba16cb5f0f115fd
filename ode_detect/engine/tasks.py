"""The tasks, by the name that ``cfg.TASK`` gives."""

from __future__ import annotations

from detectron2.config import CfgNode

from ode_detect.classification.task import CLASSIFICATION
from ode_detect.detection.task import DETECTION
from ode_detect.ode.names import check_name
from ode_detect.task import Task

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
