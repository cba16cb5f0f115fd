import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from ode_detect.engine.config import add_ode_config
from ode_detect.engine.task import TASKS, get_task
from ode_detect.ode.names import UnknownNameError


@pytest.mark.parametrize("name", TASKS)
def test_a_task_goes_by_the_name_that_the_config_gives_it(name: str) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = name
    task = get_task(cfg)
    assert task.name == name
    assert "/" in task.metric


def test_the_quickstart_data_is_registered() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    get_task(cfg)
    assert {"trees_train", "trees_test"} <= set(DatasetCatalog.list())


def test_an_unknown_task_tells_those_that_exist() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TASK = "detect"
    with pytest.raises(UnknownNameError, match="detection"):
        get_task(cfg)
