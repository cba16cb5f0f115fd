import logging

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from ode_detect.classification.predict import ClassificationPredictor
from ode_detect.engine.config import add_ode_config

PETS = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 5, "name": "cow"}]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    cfg.INPUT.FORMAT, cfg.INPUT.SIDE = "RGB", 16
    return cfg


def output(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": torch.tensor([0.0, 2.0, 1.0]), **more}


def test_classes_come_with_their_probabilities_the_likeliest_first(cfg: CfgNode) -> None:
    records = ClassificationPredictor(cfg, PETS).records(output())
    assert [(r["category_id"], r["category_name"]) for r in records] == [(9, "dog"), (5, "cow"), (4, "cat")]
    assert sum(r["score"] for r in records) == pytest.approx(1, abs=1e-5)
    assert records[0]["score"] == pytest.approx(np.exp(2) / (1 + np.e + np.exp(2)), abs=1e-6)
    assert "distance" not in records[0]


def test_a_picture_unlike_the_training_pictures_is_warned_of(cfg: CfgNode) -> None:
    predictor = ClassificationPredictor(cfg, PETS)
    far = output(distance=torch.tensor(51.25), far=torch.tensor(True))
    near = output(distance=torch.tensor(1.5), far=torch.tensor(False))
    assert predictor.records(far)[0] | {"distance": 51.25, "unfamiliar": True} == predictor.records(far)[0]
    assert predictor.numbers(far) == {
        "labels": ["dog", "cow", "cat"],
        "probabilities": pytest.approx([0.665, 0.245, 0.09], abs=1e-3),
        "far": True,
    }
    assert "UNLIKE the training pictures (distance 51.2)" in predictor.words(far)
    assert predictor.words(near) == predictor.words(output()) == "dog 66.5 %, cow 24.5 %, cat 9.0 %"


@pytest.mark.parametrize(("format", "channels"), [("RGB", 3), ("L", 1)])
def test_a_picture_of_any_size_gets_that_of_the_training(cfg: CfgNode, format: str, channels: int) -> None:
    cfg.INPUT.FORMAT = format
    for shape in ((40, 90, 3), (9, 5, 3), (16, 16, 3)):
        example = ClassificationPredictor(cfg, PETS).example(np.full(shape, 77, np.uint8))
        assert example["image"].shape == (channels, 16, 16)
        assert set(example["image"].unique().tolist()) == {77}
        assert (example["height"], example["width"]) == shape[:2]


def test_classes_without_names_are_numbered(cfg: CfgNode, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ode_detect"):
        predictor = ClassificationPredictor(cfg, [])
    assert [c["name"] for c in predictor.categories] == ["class 0", "class 1", "class 2"]
    assert "names of the classes are unknown" in caplog.text


def test_weights_of_another_number_of_classes_are_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"for 2 classes, and MODEL.CLASSIFIER.NUM_CLASSES of the config is 3"):
        ClassificationPredictor(cfg, PETS[:2])
