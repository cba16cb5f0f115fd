"""A whole run of a classifier: trained, evaluated, resumed, asked about any picture."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.engine import HookBase

from ode_detect.deploy.predict import Summary, predict
from ode_detect.engine.config import load_config
from ode_detect.engine.hooks import Interrupted
from ode_detect.engine.run import Run, open_evaluation, open_training
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import evaluate_only, train
from ode_detect.engine.trainer import Trainer
from ode_detect.engine.weights import CheckpointError
from ode_detect.media.errors import DatasetError
from ode_detect.report.results import Results
from ode_detect.studies.dial.dial import Dial
from ode_detect.studies.dial.output import write_choice
from ode_detect.task import ConfigError

from ..conftest import ROOT, overrides_for_shapes

CONFIG = str(ROOT / "configs" / "base" / "mnist.yaml")


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Results]:
    folder = tmp_path_factory.mktemp("run") / "shapes"
    words = overrides_for_shapes(shapes, folder)
    run = open_training(load_config(CONFIG, words), command="train", config_file=CONFIG, resume=False)
    return words, train(run, resume=False)


def test_a_run_learns_and_leaves_everything_behind(trained: tuple[list[str], Results]) -> None:
    words, results = trained
    folder = Path(words[-1])
    (row,) = results.rows
    assert row.metrics["top1"] >= 0.9
    assert row.metrics["error"] == pytest.approx(1 - row.metrics["top1"])
    assert {"precision", "recall", "f1", "ece", "nll", "unfamiliar"} <= row.metrics.keys()
    assert row.cost["evaluations"] == 4
    for file in ("accuracy.png", "loss.png", "confusion.png", "reliability.png", "predictions.jpg", "model_best.pth"):
        assert (folder / file).stat().st_size > 1000, file
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("nfe_forward" in line for line in lines)


def test_the_last_checkpoint_knows_its_classes_and_its_training_pictures(trained: tuple[list[str], Results]) -> None:
    content = torch.load(Path(trained[0][-1]) / "model_final.pth", weights_only=True)
    assert [category["name"] for category in content["categories"]] == ["level", "upright"]
    assert float(content["model"]["familiarity.threshold"]) > 0


def test_a_training_forgets_the_pictures_of_the_weights_that_it_begins_with(
    shapes: Path, trained: tuple[list[str], Results], tmp_path: Path
) -> None:
    start = str(Path(trained[0][-1]) / "model_final.pth")
    more = ("MODEL.WEIGHTS", start, "SOLVER.MAX_ITER", "12", "SOLVER.WARMUP_ITERS", "3")
    words = overrides_for_shapes(shapes, tmp_path / "tuned", *more)
    train(open_training(load_config(CONFIG, words), command="train", config_file=CONFIG, resume=False), resume=False)
    thresholds = [
        float(torch.load(tmp_path / "tuned" / name, weights_only=True)["model"]["familiarity.threshold"])
        for name in ("model_0000009.pth", "model_final.pth")
    ]
    assert thresholds[0] == 0
    assert thresholds[1] > 0


def test_a_network_with_other_steps_learns_its_training_pictures_anew(
    trained: tuple[list[str], Results], tmp_path: Path
) -> None:
    cfg = load_config(CONFIG, [*trained[0], "SOLVER.DIAL.STATISTICS_BATCHES", "0"])
    dial = Dial(cfg, command="dial", config_file=CONFIG, weights="", folder=tmp_path / "dial")
    full, one = dial.settings([1, 2], ["midpoint"], None)
    for setting in (one, full):
        dial.evaluate(setting)
    known = [load_config(write_choice(dial, setting, "a claim")).MODEL.WEIGHTS for setting in (one, full)]
    assert known[1] == str(Path(trained[0][-1]) / "model_final.pth")
    ours, full_steps = (torch.load(path, weights_only=True)["model"] for path in known)
    assert float(ours["familiarity.threshold"]) > 0
    assert not torch.equal(ours["familiarity.means"], full_steps["familiarity.means"])
    assert torch.equal(dial.model.familiarity.means, full_steps["familiarity.means"])
    dial.run.cfg.defrost()
    dial.run.cfg.DATASETS.TRAIN = ("nowhere",)
    path = load_config(write_choice(dial, one, "without data")).MODEL.WEIGHTS
    assert float(torch.load(path, weights_only=True)["model"]["familiarity.threshold"]) == 0


class StopAt(HookBase):
    def before_step(self) -> None:
        if self.trainer.iter == 13:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_stopped_gives_the_same_bits(
    shapes: Path, trained: tuple[list[str], Results], tmp_path: Path
) -> None:
    words = overrides_for_shapes(shapes, tmp_path / "again")
    run = open_training(load_config(CONFIG, words), command="train", config_file=CONFIG, resume=False)
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([StopAt()])
    with pytest.raises(Interrupted):
        trainer.train()
    train(open_training(load_config(CONFIG, words), command="train", config_file=CONFIG, resume=True), resume=True)
    folders = [Path(trained[0][-1]), tmp_path / "again"]
    whole, resumed = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in folders)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_evaluation_alone_gives_the_metrics_of_the_run(trained: tuple[list[str], Results]) -> None:
    words, results = trained
    run = open_evaluation(load_config(CONFIG, words), command="eval", config_file=CONFIG)
    assert evaluate_only(run).rows[0].metrics == results.rows[0].metrics


def test_classes_in_another_order_give_the_same_answers(trained: tuple[list[str], Results], tmp_path: Path) -> None:
    words, results = trained
    content = torch.load(Path(words[-1]) / "model_final.pth", weights_only=True)
    for name in ("linear.weight", "linear.bias", "familiarity.means"):
        content["model"][name] = content["model"][name].flip(0)
    content["categories"].reverse()
    torch.save(content, tmp_path / "reversed.pth")
    cfg = load_config(CONFIG, [*words, "MODEL.WEIGHTS", str(tmp_path / "reversed.pth")])
    run = open_evaluation(cfg, command="eval", config_file=CONFIG)
    assert evaluate_only(run).rows[0].metrics == results.rows[0].metrics
    content["categories"] = [{"id": 0, "name": "round"}, {"id": 1, "name": "square"}]
    torch.save(content, tmp_path / "others.pth")
    cfg = load_config(CONFIG, [*words, "MODEL.WEIGHTS", str(tmp_path / "others.pth")])
    run = open_evaluation(cfg, command="eval", config_file=CONFIG)
    with pytest.raises(CheckpointError, match="on the classes round, square, and those of the data are level, upright"):
        evaluate_only(run)


def test_evaluation_of_the_optimised_copy_gives_the_same_answers(trained: tuple[list[str], Results]) -> None:
    words, results = trained
    cfg = load_config(CONFIG, [*words[:-2], "MODEL.OPTIMIZE_FOR_INFERENCE", "True", *words[-2:]])
    row = evaluate_only(open_evaluation(cfg, command="eval", config_file=CONFIG)).rows[0]
    assert row.metrics.keys() == results.rows[0].metrics.keys()
    assert row.metrics["top1"] == results.rows[0].metrics["top1"]


def prediction(words: list[str], given: Path, output: Path) -> Summary:
    cfg = load_config(CONFIG, words)
    return predict(Run(cfg, get_task(cfg), output, "predict", CONFIG), [str(given)])


def test_any_picture_is_classified(
    trained: tuple[list[str], Results], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    bar = cv2.rectangle(np.full((280, 280, 3), 20, np.uint8), (30, 120), (250, 160), (255, 255, 255), -1)
    cv2.imwrite(str(given / "bar.png"), bar)
    cv2.imwrite(str(given / "white.jpg"), np.full((200, 160), 255, np.uint8))
    (given / "cut.jpg").write_bytes((given / "white.jpg").read_bytes()[:300])
    summary = prediction(trained[0], given, tmp_path / "found")
    assert [Path(path).name for path, _ in summary.failed] == ["cut.jpg"]
    content = json.loads((tmp_path / "found" / "predictions.json").read_text())
    of = {i["file_name"]: [a for a in content["annotations"] if a["image_id"] == i["id"]] for i in content["images"]}
    assert of["bar.png"][0]["category_name"] == "level"
    assert of["white.jpg"][0]["unfamiliar"]
    assert (tmp_path / "found" / "drawn" / "bar.png").stat().st_size > 1000
    err = capsys.readouterr().err
    assert "bar.png: level " in err
    assert "UNLIKE the training pictures" in err


def test_what_the_network_cannot_take_is_told_and_the_rest_is_done(
    trained: tuple[list[str], Results], tmp_path: Path
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    cv2.imwrite(str(given / "dot.png"), np.zeros((1, 1), np.uint8))
    cv2.imwrite(str(given / "black.png"), np.zeros((28, 28), np.uint8))
    summary = prediction([*trained[0], "INPUT.SIDE", "0"], given, tmp_path / "found")
    assert [Path(path).name for path, _ in summary.failed] == ["dot.png"]
    assert summary.done == 1


def test_weights_that_are_no_numbers_give_no_prediction(trained: tuple[list[str], Results], tmp_path: Path) -> None:
    content = torch.load(Path(trained[0][-1]) / "model_final.pth", weights_only=True)
    content["model"]["linear.bias"][0] = torch.nan
    torch.save(content, tmp_path / "broken.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((28, 28), np.uint8))
    words = [*trained[0], "MODEL.WEIGHTS", str(tmp_path / "broken.pth")]
    summary = prediction(words, tmp_path / "a.png", tmp_path / "found")
    ((_, reason),) = summary.failed
    assert "weights are broken" in reason
    assert json.loads((tmp_path / "found" / "predictions.json").read_text())["annotations"] == []


def test_a_checkpoint_of_another_number_of_classes_is_refused(
    trained: tuple[list[str], Results], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((28, 28), np.uint8))
    words, (_, folder) = trained[0][:-2], trained[0][-2:]
    more = ["MODEL.CLASSIFIER.NUM_CLASSES", "3", "MODEL.WEIGHTS", f"{folder}/model_final.pth"]
    with pytest.raises(CheckpointError, match=r"linear\.weight"):
        prediction([*words, *more], tmp_path / "a.png", tmp_path / "found")


@pytest.mark.parametrize(
    ("setting", "kind", "message"),
    [
        (["INPUT.SCALE_JITTER", "[1.1, 0.9]"], ConfigError, "SCALE_JITTER is a smallest and a largest factor"),
        (["DATASETS.HELD_OUT", "0.999"], DatasetError, "leaves none to train on"),
    ],
)
def test_a_mistake_in_config_or_data_is_told_as_such(
    shapes: Path, tmp_path: Path, setting: list[str], kind: type[Exception], message: str
) -> None:
    cfg = load_config(CONFIG, overrides_for_shapes(shapes, tmp_path / "run", *setting))
    run = open_training(cfg, command="train", config_file=CONFIG, resume=False)
    with pytest.raises(kind, match=message):
        train(run, resume=False)


def test_a_share_of_familiar_pictures_out_of_range_is_refused_before_hours_of_training() -> None:
    with pytest.raises(ConfigError, match="FAMILIAR_SHARE"):
        load_config(CONFIG, ["TEST.FAMILIAR_SHARE", "1.5"])
