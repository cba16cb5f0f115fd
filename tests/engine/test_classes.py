"""The classes of a checkpoint and those of the data, by their names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ode_detect.deploy.predict import predict
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.run import Run, open_evaluation, open_training
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import load_network
from ode_detect.engine.trainer import Trainer
from ode_detect.engine.weights import CheckpointError

from ..conftest import QUICKSTART, SMALL_R50, overrides_for

SMALL = [word for pair in SMALL_R50.items() for word in pair if "RESNETS.DEPTH" not in pair]
SMALL += ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"]
HEAD = "roi_heads.box_predictor.cls_score.weight"


def overrides(folder: Path, names: tuple[str, str], *more: str) -> list[str]:
    """Data of two pictures with the same objects, whatever their classes are called."""
    data = folder / "_".join([*names, folder.name])
    data.mkdir(exist_ok=True)
    pictures = [{"id": i, "file_name": f"{i}.png", "width": 96, "height": 80} for i in (1, 2)]
    objects = [
        {"id": i, "image_id": i, "category_id": i, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0} for i in (1, 2)
    ]
    classes = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    (data / "images").mkdir(exist_ok=True)
    for picture in pictures:
        cv2.imwrite(str(data / "images" / picture["file_name"]), np.full((80, 96, 3), 90, np.uint8))
    content = {"images": pictures, "annotations": objects, "categories": classes}
    (data / "train.json").write_text(json.dumps(content))
    entry = {"NAME": data.name, "IMAGES": str(data / "images"), "ANNOTATIONS": str(data / "train.json")}
    sets = ["DATASETS.CUSTOM", json.dumps([entry]), "DATASETS.TRAIN", f"('{data.name}',)"]
    sets += ["DATASETS.TEST", f"('{data.name}',)"]
    return [*overrides_for(folder, folder / f"run_{data.name}", *SMALL), *sets, *more]


def a_run(words: list[str], *, evaluating: bool = True, resume: bool = False) -> Run:
    cfg = load_config(QUICKSTART, words)
    if evaluating:
        return open_evaluation(cfg, command="x", config_file=str(QUICKSTART))
    return open_training(cfg, command="x", config_file=str(QUICKSTART), resume=resume)


def begun(run: Run, *, resume: bool = False) -> Trainer:
    trainer = Trainer(run.cfg, run.task, lambda model: {})
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of cat and dog."""
    torch.manual_seed(0)
    model = build_network(load_config(QUICKSTART, overrides(tmp_path, ("cat", "dog"))))
    content = {"model": model.state_dict(), "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
    torch.save(content, tmp_path / "cat_dog.pth")
    return tmp_path / "cat_dog.pth"


def rows(weights: Path) -> torch.Tensor:
    return torch.load(weights, weights_only=True)["model"][HEAD]


def test_the_same_classes_in_another_order_are_put_in_order(weights: Path, tmp_path: Path) -> None:
    same = a_run(overrides(tmp_path, ("cat", "dog"), "MODEL.WEIGHTS", str(weights)))
    assert torch.equal(load_network(same)[0].state_dict()[HEAD], rows(weights))
    words = overrides(tmp_path, ("dog", "cat"), "MODEL.WEIGHTS", str(weights))
    evaluated = load_network(a_run(words))[0]
    trained = begun(a_run(words, evaluating=False))
    for network in (evaluated, trained.checkpointer.model):
        assert torch.equal(network.state_dict()[HEAD], rows(weights)[[1, 0, 2]])
    trained.stream()
    assert [one["name"] for one in trained.checkpointer.notes["categories"]] == ["dog", "cat"]


@pytest.mark.parametrize("evaluating", [True, False])
def test_other_classes_are_refused_with_both_unless_allowed(
    weights: Path, tmp_path: Path, evaluating: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = overrides(tmp_path, ("horse", "cow"), "MODEL.WEIGHTS", str(weights))

    def load(*more: str) -> Any:
        run = a_run([*words, *more], evaluating=evaluating)
        return load_network(run)[0] if evaluating else begun(run).checkpointer.model

    with pytest.raises(CheckpointError, match=r"on the classes cat, dog, and those of the data are horse, cow\. Give"):
        load()
    told: list[str] = []
    log = logging.getLogger("ode_detect.engine")
    monkeypatch.setattr(log, "warning", lambda text, *values: told.append(text % values))
    assert torch.equal(load("MODEL.ALLOW_OTHER_CLASSES", "True").state_dict()[HEAD], rows(weights))
    assert any("cat, dog" in line and "horse, cow" in line for line in told)


def test_class_layers_that_do_not_come_from_the_file_are_nobodys(weights: Path, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    content["model"] = {name: value for name, value in content["model"].items() if name.startswith("backbone.")}
    torch.save(content, weights)
    begun(a_run(overrides(tmp_path, ("horse", "cow"), "MODEL.WEIGHTS", str(weights)), evaluating=False))


def test_a_file_that_names_no_classes_stays_as_it_is(weights: Path, tmp_path: Path) -> None:
    torch.save({"model": torch.load(weights, weights_only=True)["model"]}, weights)
    model, _ = load_network(a_run(overrides(tmp_path, ("horse", "cow"), "MODEL.WEIGHTS", str(weights))))
    assert torch.equal(model.state_dict()[HEAD], rows(weights))


@pytest.mark.parametrize("names", [("dog", "cat"), ("horse", "cow")])
def test_a_training_goes_on_with_the_classes_that_it_began_with(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0"]
    begun(a_run(overrides(tmp_path, ("cat", "dog"), *folder), evaluating=False)).train()
    other = a_run(overrides(tmp_path, names, *folder), evaluating=False, resume=True)
    with pytest.raises(
        CheckpointError, match=r"goes on with the classes that it began with, .* cat, dog, .*" + names[0]
    ):
        begun(other, resume=True)


def test_predictions_go_by_the_names_of_the_file_whatever_the_data_of_the_config(weights: Path, tmp_path: Path) -> None:
    words = overrides(tmp_path, ("dog", "cat"), "TEST.SCORE_THRESHOLD", "0.0", "TEST.DETECTIONS_PER_IMAGE", "1")
    cfg = load_config(QUICKSTART, [*words, "INPUT.MIN_SIZE_TEST", "64"])
    content = torch.load(weights, weights_only=True)
    content["model"][HEAD.replace("weight", "bias")][:] = torch.tensor([0.0, 9.0, 0.0])
    torch.save(content, weights)
    picture = str(next(tmp_path.glob("dog_cat_*")) / "images" / "1.png")
    predict(Run(cfg, get_task(cfg), tmp_path / "found", "x", str(QUICKSTART)), [picture], weights=str(weights))
    (found,) = json.loads((tmp_path / "found" / "predictions.json").read_text())["annotations"]
    assert (found["category_id"], found["category_name"]) == (2, "dog")
