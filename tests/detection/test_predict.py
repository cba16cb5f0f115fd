import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as rle

from ode_detect.detection.data import datasets as data
from ode_detect.detection.predict import DetectionPredictor, categories
from ode_detect.engine.config import load_config
from ode_detect.media.images import read_image

from ..conftest import QUICKSTART, overrides_for

TWO = ["MODEL.ROI_HEADS.NUM_CLASSES", "2"]
NAMES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]


def an_output(scores: list[float], classes: list[int], **fields: torch.Tensor) -> dict[str, Instances]:
    boxes = torch.tensor([[10.0 * i, 5.0, 10.0 * i + 8.5, 25.0] for i in range(len(scores))])
    found = Instances((40, 60), pred_boxes=Boxes(boxes), scores=torch.tensor(scores), **fields)
    found.pred_classes = torch.tensor(classes)
    return {"instances": found}


def custom(name: str, images: Path, annotations: Path) -> list[str]:
    entry = {"NAME": name, "IMAGES": str(images), "ANNOTATIONS": str(annotations)}
    return ["DATASETS.CUSTOM", json.dumps([entry]), "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]


@pytest.mark.parametrize("format", ["BGR", "RGB"])
def test_the_network_takes_what_the_test_mapper_makes(format: str, squares: Path, tmp_path: Path) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path, "INPUT.FORMAT", format, "INPUT.MIN_SIZE_TEST", "53"))
    data.register_datasets(cfg)
    predictor = DetectionPredictor(cfg, [])
    for (expected,) in data.test_loader(cfg, "squares"):
        given = predictor.example(read_image(expected["file_name"], "RGB"))
        assert torch.equal(given["image"], expected["image"])
        assert given["image"].shape[1] == 53
        assert (given["height"], given["width"]) == (80, 96) == (expected["height"], expected["width"])


def test_records_are_of_the_data_set_and_reach_the_threshold() -> None:
    predictor = DetectionPredictor(load_config(QUICKSTART, [*TWO, "TEST.SCORE_THRESHOLD", "0.5"]), NAMES)
    records = predictor.records(an_output([0.5, 0.49, 0.9], [1, 1, 0]))
    assert [(r["category_id"], r["category_name"], r["score"]) for r in records] == [(3, "cat", 0.9), (90, "dog", 0.5)]
    assert records[0]["bbox"] == [20.0, 5.0, 8.5, 20.0]
    assert records[0]["area"] == 170.0
    json.dumps(records)


def test_masks_are_run_lengths() -> None:
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 5:20, 10:30], masks[1, ::2, ::3] = True, True
    predictor = DetectionPredictor(load_config(QUICKSTART, TWO), NAMES)
    output = an_output([0.6, 0.9], [0, 1], pred_masks=masks)
    records = json.loads(json.dumps(predictor.records(output)))
    for record, mask in zip(records, masks.flip(0), strict=True):
        np.testing.assert_array_equal(rle.decode(record["segmentation"]).astype(bool), mask.numpy())
        assert record["area"] == int(mask.sum())
    np.testing.assert_array_equal(predictor.numbers(output)["masks"], masks.flip(0).numpy())


def test_nothing_found_is_no_record() -> None:
    predictor = DetectionPredictor(load_config(QUICKSTART, TWO), NAMES)
    output = {"instances": Instances((4, 4), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))}
    output["instances"].pred_classes = torch.zeros(0, dtype=torch.long)
    assert predictor.records(output) == []
    assert predictor.numbers(output)["boxes"].shape == (0, 4)


def test_category_ids_are_those_of_the_annotation_file(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.png", "width": 9, "height": 9}
    box = {"id": 1, "image_id": 1, "category_id": 90, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"info": {}, "images": [image], "annotations": [box], "categories": [NAMES[1], NAMES[0]]}
    (tmp_path / "gaps.json").write_text(json.dumps(content))
    cfg = load_config(QUICKSTART, [*TWO, *custom("with_gaps", tmp_path, tmp_path / "gaps.json")])
    data.register_datasets(cfg)
    assert categories(cfg) == NAMES


def test_no_data_set_is_needed(tmp_path: Path, caplog) -> None:
    cfg = load_config(QUICKSTART, [*TWO, *custom("absent", tmp_path / "none", tmp_path / "none.json")])
    data.register_datasets(cfg)
    assert categories(cfg) == []
    with caplog.at_level(logging.WARNING):
        predictor = DetectionPredictor(cfg, [])
    assert "they are called class 0 to class 1" in caplog.text
    assert [c["name"] for c in predictor.categories] == ["class 0", "class 1"]
    # COCO's classes are known without its files.
    known = load_config(QUICKSTART, ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "DATASETS.TRAIN", "('coco_2017_train',)"])
    assert categories(known)[-1] == {"id": 90, "name": "toothbrush"}


def test_what_cannot_be_given_is_told(caplog) -> None:
    with pytest.raises(ValueError, match="2 classes needs as many categories, not 1"):
        DetectionPredictor(load_config(QUICKSTART, TWO), NAMES[:1])
    with caplog.at_level(logging.WARNING):
        DetectionPredictor(load_config(QUICKSTART, [*TWO, "TEST.SCORE_THRESHOLD", "0.01"]), NAMES)
    assert "no score below 0.05; lower MODEL.ROI_HEADS.SCORE_THRESH_TEST too" in caplog.text
