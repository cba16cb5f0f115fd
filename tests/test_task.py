"""The abstract task and predictor: what a task that brings only what it must gets, and what it is advised."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

from ode_detect.media.errors import DatasetError
from ode_detect.task import ConfigError, Predictor, Task

NEEDED = {
    "draw", "evaluator", "examples", "metrics", "predictor", "protocol", "register", "require", "test_loader",
    "train_data",
}  # fmt: skip


class Least(Task):
    """A task with what it must have, which no test here calls."""

    name = "least"
    metric = "part/score"
    register = require = train_data = test_loader = protocol = evaluator = metrics = draw = examples = predictor = (
        lambda self, *given, **more: 1 / 0
    )


class LeastPredictor(Predictor):
    example = records = draw = lambda self, *given: 1 / 0


@pytest.fixture
def cfg() -> CfgNode:
    return get_cfg()


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_a_task_without_a_part_that_it_must_have_cannot_be_made(missing: str) -> None:
    parts = {name: getattr(Least, name) for name in NEEDED if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Lacking", (Task,), {"name": "lacking", "metric": "a/b", **parts})()


def test_a_task_must_have_no_more_than_these_parts() -> None:
    assert Task.__abstractmethods__ == NEEDED
    assert Predictor.__abstractmethods__ == {"example", "records", "draw"}


@pytest.mark.parametrize("missing", ["example", "records", "draw"])
def test_a_predictor_without_a_part_that_it_must_have_cannot_be_made(missing: str) -> None:
    parts = {name: getattr(LeastPredictor, name) for name in {"example", "records", "draw"} - {missing}}
    with pytest.raises(TypeError, match=missing):
        type("Lacking", (Predictor,), parts)()


def test_a_predictor_has_neither_categories_nor_words_of_its_own() -> None:
    predictor = LeastPredictor()
    assert predictor.categories == ()
    assert predictor.words({"value": 1}) == ""


@pytest.mark.parametrize(("metric", "score"), [("bbox/AP50", "AP50"), ("a/b/c", "c"), ("top1", "top1")])
def test_results_call_the_main_metric_by_its_last_part(metric: str, score: str) -> None:
    task = Least()
    task.metric = metric
    assert task.score == score


def test_higher_is_better_and_files_have_names_unless_a_task_says_otherwise() -> None:
    task = Least()
    assert (task.better, task.plotted) == ("max", ())
    assert (task.plot_file, task.sheet_file) == ("metrics.png", "predictions.jpg")


def test_a_task_adds_no_keys_and_refuses_no_config_unless_it_says_so(cfg: CfgNode) -> None:
    task, before = Least(), cfg.dump()
    task.add_config(cfg)
    task.check_config(cfg)
    task.check_test(cfg)
    assert cfg.dump() == before
    assert task.categories(cfg) == []


def test_pictures_are_not_repeated_by_classes_that_a_task_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"the task least has none; set DATALOADER\.SAMPLER_TRAIN TrainingSampler"):
        Least().classes_in({"image": None})
    assert issubclass(ConfigError, ValueError)


def test_networks_are_neither_made_faster_nor_their_predictions_merged(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"of the task least are not made faster; set it False"):
        Least().optimize(nn.Identity(), [])
    with pytest.raises(ValueError, match=r"not merged in the task least; set TEST\.AUG\.ENABLED False"):
        Least().augmented(cfg, nn.Identity())


def test_no_tensor_of_a_network_has_rows_of_classes() -> None:
    assert Least().class_rows(nn.Linear(2, 2), [1, 0]) == {}


def test_an_evaluation_leaves_no_table_plots_or_curves(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text("{}")
    task = Least()
    assert task.table(tmp_path) == ""
    assert list(task.curves(tmp_path)) == []
    task.plot(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_trained_model_is_complete_and_there_is_nothing_to_forget_or_renew(cfg: CfgNode) -> None:
    task, model = Least(), nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.after_training(cfg, model)
    assert task.forget(model) is False
    assert task.renew(cfg, model) is False
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Knowing(Least):
    """A task that writes a buffer after the training."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.found: list[dict[str, Any]] = []

    def after_training(self, cfg: CfgNode, model: nn.Module) -> None:
        self.found.append({"training": model.training, "gradients": torch.is_grad_enabled()})
        if self.error:
            raise self.error
        model.known.fill_(1)

    def forget(self, model: nn.Module) -> bool:
        there = bool(model.known)
        model.known.zero_()
        return there


def network(known: int) -> nn.Module:
    model = nn.Linear(1, 1)
    model.register_buffer("known", torch.tensor(known))
    return model.train()


def test_a_changed_model_is_completed_again_in_evaluation_without_gradients(cfg: CfgNode) -> None:
    task, model = Knowing(), network(2)
    assert task.renew(cfg, model)
    assert int(model.known) == 1
    assert task.found == [{"training": False, "gradients": False}]
    assert model.training, "it is handed back as it came"
    assert torch.is_grad_enabled()


def test_a_model_that_was_not_complete_is_not_completed(cfg: CfgNode) -> None:
    task, model = Knowing(), network(0)
    assert not task.renew(cfg, model)
    assert (task.found, int(model.known)) == ([], 0)


@pytest.mark.parametrize("error", [DatasetError("get the data."), FloatingPointError("features are not finite.")])
def test_a_model_that_cannot_be_completed_stays_forgotten_with_a_warning(
    error: Exception, cfg: CfgNode, said: pytest.LogCaptureFixture
) -> None:
    model = network(2)
    assert Knowing(error).renew(cfg, model)
    assert int(model.known) == 0
    (record,) = [one for one in said.records if one.name == "ode_detect.task"]
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"the network will not know its training pictures: {error}"


def test_other_errors_of_completing_are_not_hidden(cfg: CfgNode) -> None:
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        Knowing(RuntimeError("a mistake of ours")).renew(cfg, network(2))
