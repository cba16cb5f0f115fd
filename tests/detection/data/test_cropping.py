from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from ode_detect.detection.data.cropping import Crop, RandomCrop
from ode_detect.detection.data.mapper import Mapper


def mask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    flat = [polygon.ravel().tolist() for polygon in polygons]
    return pycocotools.mask.decode(pycocotools.mask.frPyObjects(flat, height, width)).any(axis=2)


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_polygon_has_the_pixels_of_the_cut_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Stars, which are concave, with corners inside and outside of the crop.
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    star = 60 + rng.uniform(8, 55, 12)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    crop = Crop(40, 30, 50, 45)
    whole = mask([star], 120, 120)[30:75, 40:90]
    cut = crop.apply_polygons([star.copy()])
    assert all((p >= 0).all() and (p <= (50, 45)).all() for p in cut)
    ours = mask(cut, 45, 50) if cut else np.zeros((45, 50), bool)
    # Along the outline pycocotools rounds by up to half a pixel, in other places for other corners.
    assert (ours != whole).sum() <= 0.06 * max(whole.sum(), 100)


def test_exact_values() -> None:
    crop = Crop(10, 20, 30, 30)
    square = np.array([[0.0, 10.0], [20.0, 10.0], [20.0, 30.0], [0.0, 30.0]])
    (cut,) = crop.apply_polygons([square])
    assert sorted(map(tuple, cut.tolist())) == [(0, 0), (0, 10), (10, 0), (10, 10)]
    inside = np.array([[12.0, 22.0], [18.0, 22.0], [15.0, 29.0]])
    np.testing.assert_array_equal(crop.apply_polygons([inside])[0], inside - (10, 20))
    beside, touching = square - (50, 0), square - (10, 0)
    assert crop.apply_polygons([beside, touching]) == []


def test_the_same_places_are_drawn_as_by_detectron2() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    for kind, size in (("absolute", (40, 50)), ("relative_range", (0.3, 0.4))):
        drawn = []
        for augmentation in (RandomCrop(kind, size), T.RandomCrop(kind, size)):
            np.random.seed(3)
            crop = augmentation.get_transform(image)
            drawn.append((crop.x0, crop.y0, crop.w, crop.h))
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("form", ["polygon", "bitmask"])
def test_masks_are_cropped_with_their_picture(cfg: CfgNode, tmp_path: Path, form: str) -> None:
    picture = np.zeros((80, 100, 3), np.uint8)
    picture[20:60, 30:70] = 255
    Image.fromarray(picture).save(tmp_path / "1.png")
    corners = [30, 20, 70, 20, 70, 60, 30, 60]
    thing = {"bbox": [30, 20, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "segmentation": [corners]}
    record = {"file_name": str(tmp_path / "1.png"), "height": 80, "width": 100, "image_id": 1, "annotations": [thing]}
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, form
    cfg.INPUT.SCALE_JITTER, cfg.INPUT.COLOR_JITTER, cfg.INPUT.MIN_VISIBLE = [], 0.0, 0.4
    mapper = Mapper(cfg, is_train=True)
    np.random.seed(0)
    met = set()
    for _ in range(30):
        example = mapper(record)
        instances, white = example["instances"], example["image"][0].numpy() > 128
        met.add(len(instances))
        if not len(instances):
            assert white.sum() < 0.5 * 1600, "what is hardly visible is not trained on"
            continue
        ours = (
            instances.gt_masks.tensor[0].numpy()
            if form == "bitmask"
            else mask(instances.gt_masks.polygons[0], *white.shape)
        )
        assert (ours != white).sum() <= white.shape[0] + white.shape[1]
        rows, columns = np.nonzero(white)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(instances.gt_boxes.tensor[0].numpy(), box, atol=1)
    assert met == {0, 1}
