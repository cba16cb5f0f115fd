"""What a task has without saying anything."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from ode_detect.media.errors import DatasetError
from ode_detect.task import ConfigError, Predictor, Task


def least(kind: type) -> Any:
    """An object of an abstract class, whose abstract methods do nothing."""
    methods = dict.fromkeys(kind.__abstractmethods__, lambda self, *arguments: None)  # type: ignore[attr-defined]
    return type("Least", (kind,), {"name": "least", "metric": "part/AbsRel", **methods})()


@pytest.fixture
def task() -> Task:
    return least(Task)


def test_what_must_be_there_is_asked_for() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Task()  # type: ignore[abstract]
    assert {"register", "require", "train_data", "test_loader", "evaluator", "metrics", "predictor"} <= (
        Task.__abstractmethods__
    )
    assert {"example", "records", "draw"} == Predictor.__abstractmethods__


def test_most_tasks_have_nothing_to_add(task: Task, tmp_path: Path) -> None:
    cfg = get_cfg()
    before = cfg.dump()
    task.add_config(cfg)
    task.check_config(cfg)
    task.check_test(cfg)
    assert cfg.dump() == before
    assert (task.categories(cfg), task.table(tmp_path), task.curves(tmp_path)) == ([], "", ())
    task.plot(tmp_path)
    assert not list(tmp_path.iterdir())
    assert task.class_rows(nn.Linear(2, 2), [1, 0]) == {}
    assert task.score == "AbsRel"


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda task: task.classes_in({}), "SAMPLER_TRAIN TrainingSampler"),
        (lambda task: task.optimize(nn.Linear(1, 1), []), "the task least are not made faster"),
        (lambda task: task.augmented(get_cfg(), nn.Linear(1, 1)), "set TEST.AUG.ENABLED False"),
    ],
)
def test_what_a_task_cannot_do_is_an_error_that_says_what_to_set(
    task: Task, call: Callable[[Task], Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        call(task)


def test_a_predictor_has_no_classes_and_no_words() -> None:
    predictor: Predictor = least(Predictor)
    assert (predictor.categories, predictor.words(np.zeros(1))) == ((), "")


def test_a_model_without_anything_to_forget_is_not_completed_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "after_training", lambda *_: pytest.fail("nothing to complete"))
    assert task.renew(get_cfg(), nn.Linear(1, 1)) is False


@pytest.mark.parametrize("error", [None, DatasetError("no pictures"), FloatingPointError("NaN"), KeyError("other")])
def test_a_model_is_completed_again_in_evaluation_or_stays_forgotten(
    task: Task, error: Exception | None, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).train()
    seen = []

    def complete(cfg: Any, given: nn.Module) -> None:
        seen.append((given is model, given.training, torch.is_grad_enabled()))
        if error:
            raise error

    monkeypatch.setattr(task, "forget", lambda model: True)
    monkeypatch.setattr(task, "after_training", complete)
    with said.at_level(logging.WARNING):
        if isinstance(error, KeyError):
            with pytest.raises(KeyError):
                task.renew(get_cfg(), model)
        else:
            assert task.renew(get_cfg(), model) is True
    assert seen == [(True, False, False)]
    assert model.training
    expected = isinstance(error, (DatasetError, FloatingPointError))
    assert ("could not be completed again" in said.text) is expected


def test_a_wrong_config_is_a_wrong_value() -> None:
    assert issubclass(ConfigError, ValueError)
