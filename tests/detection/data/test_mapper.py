from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from PIL import Image

from ode_detect.detection.data.mapper import Mapper, ResizeShortestEdge, ScaleJitter
from ode_detect.media.errors import DatasetError


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


@pytest.mark.parametrize(
    ("jitter", "smallest", "order"),
    [
        ([0.45, 0.8], 0, ["ScaleJitter", "RandomCrop", "ResizeShortestEdge", "RandomFlip"]),
        ([0.45, 0.8], 40, ["ResizeShortestEdge", "ScaleJitter", "RandomCrop", "RandomFlip"]),
        ([], 40, ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]),  # Detectron2's
    ],
)
def test_what_is_resized_is_cropped_afterwards_where_scale_is_jittered(
    cfg: CfgNode, jitter: list[float], smallest: int, order: list[str]
) -> None:
    cfg.INPUT.SCALE_JITTER, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.COLOR_JITTER = jitter, (smallest,), 0.0
    mapper = Mapper(cfg, is_train=True)
    assert [type(augmentation).__name__ for augmentation in mapper.augmentations.augs] == order


def test_scale_is_drawn_evenly_in_the_logarithm() -> None:
    np.random.seed(0)
    picture = np.zeros((1000, 500, 3), np.uint8)
    heights = [ScaleJitter(0.5, 2.0).get_transform(picture).new_h for _ in range(400)]
    assert 500 <= min(heights) < 530
    assert 1900 < max(heights) <= 2000
    assert abs(np.median(heights) - 1000) < 80


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


def test_difficult_objects_are_trained_on_and_crowds_are_not(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    record = DatasetCatalog.get(name)[0]
    cfg.INPUT.CROP.ENABLED = False
    first, second, third = record["annotations"]
    record["annotations"] = [{**first, "iscrowd": 1, "difficult": 1}, {**second, "iscrowd": 1}, third]
    assert len(Mapper(cfg, is_train=True)(record)["instances"]) == 2
    assert record["annotations"][0]["difficult"] == 1, "the record is used again in the next epoch"


def test_a_test_example_is_the_whole_picture(cfg: CfgNode) -> None:
    (name,) = cfg.DATASETS.TRAIN
    cfg.INPUT.MIN_SIZE_TEST = 40
    example = Mapper(cfg, is_train=False)(DatasetCatalog.get(name)[0])
    assert example["image"].shape == (3, 40, 48)
    assert (example["height"], example["width"]) == (80, 96)
    assert "annotations" not in example


@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1)])
@pytest.mark.parametrize("is_train", [False, True])
def test_a_strip_keeps_a_pixel(height: int, width: int, is_train: bool, cfg: CfgNode, tmp_path: Path) -> None:
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(tmp_path / "strip.png")
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 128
    cfg.INPUT.SCALE_JITTER, cfg.INPUT.CROP.ENABLED, cfg.INPUT.ANY_ORIENTATION = [], False, False
    record = {"file_name": str(tmp_path / "strip.png"), "height": height, "width": width, "annotations": []}
    shape = Mapper(cfg, is_train=is_train)(record)["image"].shape
    assert tuple(shape) == ((3, 1, 128) if height == 1 else (3, 128, 1))


def test_other_pictures_are_resized_as_detectron2_does() -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    for size, largest in ((30, 1000), (120, 100), (0, 100)):
        ours = ResizeShortestEdge((size, size), largest).get_transform(picture)
        theirs = T.ResizeShortestEdge((size, size), largest).get_transform(picture)
        assert type(ours) is type(theirs)
        assert vars(ours) == vars(theirs)
