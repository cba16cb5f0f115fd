import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ode_detect.detection.data import DatasetError, register_datasets, require_datasets, train_data
from ode_detect.detection.mapper import Mapper, ScaleJitter
from ode_detect.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cfg(squares: Path) -> CfgNode:
    name = "squares"
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["INPUT.CROP.SIZE", "[48, 48]"])
    cfg.DATASETS.CUSTOM = [
        {"NAME": name, "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
    ]
    cfg.DATASETS.TRAIN = (name,)
    register_datasets(cfg)
    return cfg


def test_ones_own_coco_json_is_read_by_config_alone(cfg: CfgNode) -> None:
    cfg.INPUT.SCALE_JITTER = []
    dicts, mapper = train_data(cfg)
    assert len(dicts) == 8, "pictures without objects are kept as negatives"
    example = mapper(dicts[0])
    assert example["image"].shape == (3, 48, 48)
    assert example["image"].dtype == torch.uint8
    assert len(mapper(dicts[2])["instances"]) == 0


def test_registering_twice_is_harmless_and_another_set_of_the_same_name_is_refused(cfg: CfgNode) -> None:
    register_datasets(cfg)
    other = cfg.clone()
    other.DATASETS.CUSTOM = [{**cfg.DATASETS.CUSTOM[0], "ANNOTATIONS": "elsewhere.json"}]
    with pytest.raises(DatasetError, match="another NAME"):
        register_datasets(other)


def test_an_entry_that_lacks_a_key_shows_how_to_write_it(cfg: CfgNode) -> None:
    other = cfg.clone()
    other.DATASETS.CUSTOM = [{"NAME": "x", "IMAGE": "y"}]
    with pytest.raises(DatasetError, match="NAME: my_train"):
        register_datasets(other)


def test_missing_data_is_listed_in_one_message(tmp_path: Path, cfg: CfgNode) -> None:
    other = cfg.clone()
    other.DATASETS.CUSTOM = [
        {"NAME": f"missing {tmp_path}", "IMAGES": str(tmp_path / "no"), "ANNOTATIONS": str(tmp_path / "no.json")}
    ]
    register_datasets(other)
    with pytest.raises(DatasetError) as caught:
        require_datasets(["coco_2017_val", f"missing {tmp_path}"])
    message = str(caught.value)
    for expected in ("instances_val2017.json", "val2017", "no.json", "DETECTRON2_DATASETS", "datasets/README.md"):
        assert expected in message


def test_an_unknown_data_set_tells_the_nearest() -> None:
    with pytest.raises(DatasetError, match="coco_2017_val'"):
        require_datasets(["coco_2017_vall"])


def test_what_a_crop_leaves_of_an_object_decides_whether_it_is_trained_on(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    record = DatasetCatalog.get(name)[0]
    counts = {}
    for share in (0.0, 0.5, 1.0):
        cfg.INPUT.MIN_VISIBLE = share
        mapper = Mapper(cfg, is_train=True)
        np.random.seed(0)
        counts[share] = sum(len(mapper(record)["instances"]) for _ in range(40))
    assert counts[0.0] > counts[0.5] > counts[1.0] > 0


def test_pictures_without_an_up_come_in_all_orientations(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.SCALE_JITTER = []
    cfg.INPUT.COLOR_JITTER = 0.0
    cfg.INPUT.ANY_ORIENTATION = True
    mapper = Mapper(cfg, is_train=True)
    np.random.seed(0)
    seen = {mapper(DatasetCatalog.get(name)[0])["image"].numpy().tobytes() for _ in range(60)}
    assert len(seen) == 8


def test_boxes_turn_with_the_picture(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.MIN_VISIBLE = 0.0
    cfg.INPUT.COLOR_JITTER = 0.0
    cfg.INPUT.ANY_ORIENTATION = True
    mapper = Mapper(cfg, is_train=True)
    record = DatasetCatalog.get(name)[0]
    np.random.seed(1)
    for _ in range(20):
        example = mapper(record)
        for x0, y0, x1, y1 in example["instances"].gt_boxes.tensor.round().long().tolist():
            inside = example["image"][:, y0 + 3 : y1 - 2, x0 + 3 : x1 - 2].float()
            assert inside.mean() > 230, "squares are white"


def test_colours_are_jittered_only_if_asked(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.SCALE_JITTER = []
    means = {}
    for strength in (0.0, 0.3):
        cfg.INPUT.COLOR_JITTER = strength
        mapper = Mapper(cfg, is_train=True)
        np.random.seed(0)
        means[strength] = {
            round(float(mapper(DatasetCatalog.get(name)[0])["image"].float().mean()), 3) for _ in range(10)
        }
    assert len(means[0.0]) == 1
    assert len(means[0.3]) == 10


def test_scale_is_drawn_evenly_in_the_logarithm() -> None:
    np.random.seed(0)
    picture = np.zeros((1000, 500, 3), np.uint8)
    heights = [ScaleJitter(0.5, 2.0).get_transform(picture).new_h for _ in range(400)]
    assert 500 <= min(heights) < 530
    assert 1900 < max(heights) <= 2000
    assert abs(np.median(heights) - 1000) < 80


def test_the_squares_are_what_the_tests_think(squares: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    assert len(content["images"]) == 8
    assert {a["image_id"] for a in content["annotations"]}.isdisjoint({3, 6})


def test_a_picture_that_is_cut_short_is_named(cfg: CfgNode, tmp_path: Path) -> None:
    (name,) = cfg.DATASETS.TRAIN
    record = DatasetCatalog.get(name)[0]
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(record["file_name"]).read_bytes()[:3000])
    with pytest.raises(DatasetError, match=r"cut\.png cannot be read"):
        Mapper(cfg, is_train=True)({**record, "file_name": str(cut)})


def test_a_picture_of_another_size_than_annotated_is_named(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    record = DatasetCatalog.get(name)[0]
    with pytest.raises(DatasetError, match=r"0\.png cannot be read as the picture"):
        Mapper(cfg, is_train=True)({**record, "width": 95})


def test_a_box_without_area_is_not_trained_on(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    record = DatasetCatalog.get(name)[0]
    cfg.INPUT.CROP.ENABLED = False
    record["annotations"] = [{**record["annotations"][0], "bbox": [10, 10, 0, 20]}]
    assert len(Mapper(cfg, is_train=True)(record)["instances"]) == 0


@pytest.mark.parametrize("content", ["{}", "not json", '{"images": [], "annotations": [], "categories": []}'])
def test_annotations_that_cannot_be_used_are_refused(cfg: CfgNode, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    other = cfg.clone()
    other.DATASETS.CUSTOM = [
        {"NAME": f"bad {tmp_path}", "IMAGES": str(tmp_path), "ANNOTATIONS": str(tmp_path / "bad.json")}
    ]
    other.DATASETS.TRAIN = (f"bad {tmp_path}",)
    register_datasets(other)
    with pytest.raises(DatasetError, match="COCO JSON"):
        train_data(other)


@pytest.mark.parametrize("classes", [0, 80])
def test_another_number_of_classes_than_the_network_has_is_refused(cfg: CfgNode, classes: int) -> None:
    other = cfg.clone()
    other.MODEL.ROI_HEADS.NUM_CLASSES = classes
    with pytest.raises(DatasetError, match=r"set MODEL\.ROI_HEADS\.NUM_CLASSES 1"):
        train_data(other)
