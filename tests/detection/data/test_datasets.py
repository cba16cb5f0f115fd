import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances, register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from ode_detect.detection.data.annotations import to_records
from ode_detect.detection.data.datasets import (
    DatasetError,
    check_test_data,
    custom,
    read_dataset,
    register_datasets,
    require_datasets,
    train_data,
)
from ode_detect.engine.config import add_ode_config

ROOT = Path(__file__).resolve().parents[3]


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


def test_the_squares_are_what_the_tests_think(squares: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    assert len(content["images"]) == 8
    assert {a["image_id"] for a in content["annotations"]}.isdisjoint({3, 6})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "COCO JSON"),
        ("not json", r"bad\.json is no JSON .* Export it again"),
        ('{"images": [], "annotations": [], "categories": []}', "COCO JSON"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(cfg: CfgNode, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    other = cfg.clone()
    other.DATASETS.CUSTOM = [
        {"NAME": f"bad {tmp_path}", "IMAGES": str(tmp_path), "ANNOTATIONS": str(tmp_path / "bad.json")}
    ]
    other.DATASETS.TRAIN = (f"bad {tmp_path}",)
    register_datasets(other)
    with pytest.raises(DatasetError, match=said):
        train_data(other)


@pytest.mark.parametrize("classes", [0, 80])
def test_another_number_of_classes_than_the_network_has_is_refused(cfg: CfgNode, classes: int) -> None:
    other = cfg.clone()
    other.MODEL.ROI_HEADS.NUM_CLASSES = classes
    with pytest.raises(DatasetError, match=r"set MODEL\.ROI_HEADS\.NUM_CLASSES 1"):
        train_data(other)
    other.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(DatasetError, match=r"the network 80; set MODEL\.RETINANET\.NUM_CLASSES 1"):
        train_data(other)


def voc_parts(folder: Path, **labels: Sequence[str]) -> list[dict[str, str]]:
    """Entries of VOC XML data sets, a picture for each label."""
    entries = []
    for part, names in labels.items():
        for kind in ("images", "xml"):
            (folder / part / kind).mkdir(parents=True)
        for label in names:
            cv2.imwrite(str(folder / part / "images" / f"{label}.png"), np.zeros((80, 96, 3), np.uint8))
            box = "<xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>40</ymax>"
            (folder / part / "xml" / f"{label}.xml").write_text(
                "<annotation><size><width>96</width><height>80</height></size>"
                f"<object><name>{label}</name><bndbox>{box}</bndbox></object></annotation>"
            )
        where = {"IMAGES": str(folder / part / "images"), "ANNOTATIONS": str(folder / part / "xml")}
        entries.append({"NAME": f"{part} {folder}", **where})
    return entries


@pytest.mark.parametrize("trained_on", [True, False])
def test_a_class_that_is_absent_from_the_test_set_is_named_in_both_entries(
    cfg: CfgNode, tmp_path: Path, trained_on: bool
) -> None:
    train, test = voc_parts(tmp_path, train=["ant", "bee", "cat"], test=["ant", "cat"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.DATASETS.CUSTOM = [train, test] if trained_on else [test]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train["NAME"],) if trained_on else (), (test["NAME"],)
    register_datasets(cfg)
    with pytest.raises(DatasetError) as caught:
        check_test_data(cfg)
    message = str(caught.value)
    if trained_on:
        assert f"{test['NAME']} lacks bee" in message
        assert f"CLASSES: [ant, bee, cat] in DATASETS.CUSTOM for {train['NAME']} and {test['NAME']}" in message
        assert "NUM_CLASSES 2" not in message
    else:
        assert "has 2 classes (ant, cat) and the network 3" in message
        assert "names it all the same: VOC XML in CLASSES" in message
    entries = [{**each, "NAME": f"{each['NAME']} named", "CLASSES": ["ant", "bee", "cat"]} for each in (train, test)]
    cfg.DATASETS.CUSTOM = entries
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (entries[0]["NAME"],), (entries[1]["NAME"],)
    register_datasets(cfg)
    check_test_data(cfg)
    assert len(train_data(cfg)[0]) == 3


def test_training_says_that_objects_have_another_size_in_the_test_and_that_no_anchor_fits(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATASETS.TEST, cfg.INPUT.MIN_SIZE_TEST = cfg.DATASETS.TRAIN, 48
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        check_test_data(cfg)
        train_data(cfg)
        assert told(caplog) == []
        cfg.INPUT.MIN_SIZE_TEST = 207
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[200], [300]]
        check_test_data(cfg)
        train_data(cfg)
    fits, size = told(caplog)
    assert fits.startswith("0.0 % of the objects of squares have an anchor")
    assert "the median object of squares has" in size
    assert "INPUT.MIN_SIZE_TEST to about" in size


def entry(name: str, folder: Path, file: Path) -> dict[str, str]:
    return {"NAME": name, "IMAGES": str(folder / "images"), "ANNOTATIONS": str(file)}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said of data; Detectron2 says more where an earlier test has opened a run."""
    return [r.getMessage() for r in caplog.records if r.name == "ode_detect.detection"]


def test_bad_boxes_are_dropped_and_told_and_no_picture_is_lost(
    cfg: CfgNode, squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((squares / "train.json").read_text())
    content["annotations"][0]["bbox"] = [10, 10, 0, 20]
    content["annotations"][1]["bbox"] = [90, 70, 30, 30]
    content["annotations"][2]["bbox"] = [100, 10, 20, 20]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [entry(f"bad {tmp_path}", squares, tmp_path / "bad.json")]
    cfg.DATASETS.TRAIN = (f"bad {tmp_path}",)
    register_datasets(cfg)
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        dicts, _ = train_data(cfg)
        train_data(cfg)
    assert len(dicts) == 8
    assert [len(d["annotations"]) for d in dicts[:2]] == [1, 3]
    (message,) = told(caplog)
    assert "all 8 pictures kept" in message
    assert "1 boxes without width or height, dropped: annotation 1 of 0.png, bbox [10, 10, 0, 20]" in message
    assert "1 boxes outside their picture, dropped: annotation 3 of 0.png" in message
    assert "1 boxes partly outside their picture, clipped: annotation 2 of 0.png" in message
    register_datasets(cfg)
    train_data(cfg)
    assert len(told(caplog)) == 2, "the next run tells it again"


def test_pictures_without_objects_are_kept_unless_told_otherwise(
    cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    default = get_cfg()
    add_ode_config(default)
    assert default.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        dicts, _ = train_data(cfg)
    assert len(dicts) == 6
    assert "2 of 8 pictures have no object and are left out" in caplog.text


@pytest.mark.parametrize(("marks", "kept"), [({}, 5), ({"difficult": 1}, 6)])
def test_a_picture_with_crowds_only_has_no_object_and_one_with_difficult_objects_has(
    cfg: CfgNode, squares: Path, tmp_path: Path, marks: dict[str, int], kept: int
) -> None:
    content = json.loads((squares / "train.json").read_text())
    for a in content["annotations"]:
        a |= {"iscrowd": 1, **marks} if a["image_id"] == 1 else {}
    (tmp_path / "x.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [entry(f"marked {tmp_path}", squares, tmp_path / "x.json")]
    cfg.DATASETS.TRAIN = (f"marked {tmp_path}",)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    register_datasets(cfg)
    assert len(train_data(cfg)[0]) == kept


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        (None, "there is no annotation that can be used"),
        ({"iscrowd": 1}, "18 of 18 objects have iscrowd 1, and are left aside; write 0 where"),
        ({"iscrowd": 1, "difficult": 1}, "18 of 18 objects have difficult 1"),
    ],
)
def test_data_without_an_object_that_counts_are_refused(
    cfg: CfgNode, squares: Path, tmp_path: Path, marks: dict[str, int] | None, reason: str, filtered: bool
) -> None:
    content = json.loads((squares / "train.json").read_text())
    content["annotations"] = [] if marks is None else [{**a, **marks} for a in content["annotations"]]
    name = f"none {tmp_path}"
    (tmp_path / "none.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [*cfg.DATASETS.CUSTOM, entry(name, squares, tmp_path / "none.json")]
    cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filtered
    register_datasets(cfg)
    with pytest.raises(DatasetError, match=rf"tested on .* and none .* has none: {reason}"):
        check_test_data(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name, "squares"), ()
    learnt = marks is not None and "difficult" in marks
    assert len(train_data(cfg)[0]) == (16 if not filtered else 12 if learnt else 6), "beside others it is background"
    cfg.DATASETS.TRAIN = (name,)
    if learnt:
        assert len(train_data(cfg)[0]) == (6 if filtered else 8), "difficult objects are trained on"
    else:
        with pytest.raises(DatasetError, match=rf"trained on .* and none .* has none: {reason}"):
            train_data(cfg)


def test_other_classes_for_test_than_for_training_are_refused(cfg: CfgNode, squares: Path, tmp_path: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    content["categories"] = [{"id": 1, "name": "circle"}]
    (tmp_path / "other.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [entry(f"other {tmp_path}", squares, tmp_path / "other.json")]
    cfg.DATASETS.TEST = (f"other {tmp_path}",)
    register_datasets(cfg)
    check_test_data(cfg)
    with pytest.raises(DatasetError, match=r"squares has square, and other .* has circle"):
        train_data(cfg)


def test_masks_must_be_there_and_of_the_kind_that_the_config_says(cfg: CfgNode, squares: Path, tmp_path: Path) -> None:
    cfg.MODEL.MASK_ON = True
    with pytest.raises(DatasetError, match=r"0\.png of squares has none .* MODEL\.MASK_ON False"):
        train_data(cfg)
    content = json.loads((squares / "train.json").read_text())
    for kind in ("polygon", "rle"):
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            polygon = [x, y, x + w, y, x + w, y + h]
            rle = pycocotools.mask.frPyObjects([polygon], 80, 96)[0]
            rle = {"size": rle["size"], "counts": rle["counts"].decode()}
            a["segmentation"] = [polygon] if kind == "polygon" else rle
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [entry(f"{k} {tmp_path}", squares, tmp_path / f"{k}.json") for k in ("polygon", "rle")]
    register_datasets(cfg)
    cfg.INPUT.CROP.ENABLED = False
    areas = {}
    for kind, mask_format in (("polygon", "polygon"), ("polygon", "bitmask"), ("rle", "bitmask")):
        cfg.DATASETS.TRAIN = (f"{kind} {tmp_path}",)
        cfg.INPUT.MASK_FORMAT, cfg.INPUT.SCALE_JITTER = mask_format, []
        dicts, mapper = train_data(cfg)
        masks = mapper(dicts[0])["instances"].gt_masks
        areas[kind, mask_format] = float(masks.area()[0] if mask_format == "polygon" else masks.tensor[0].sum())
    assert areas["rle", "bitmask"] == pytest.approx(areas["polygon", "bitmask"], rel=0.05)
    assert areas["polygon", "polygon"] == pytest.approx(areas["polygon", "bitmask"], rel=0.15)
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(DatasetError, match=r"set INPUT\.MASK_FORMAT bitmask"):
        train_data(cfg)


def write_standard_voc(root: Path, ids: list[str], box: str) -> None:
    """A tiny data set in the layout of VOC; every second picture has no object."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(ids):
        cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), np.full((40, 60, 3), 99, np.uint8))
        inner = f"<object><name>cat</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>{box}</object>"
        size = "<size><width>60</width><height>40</height></size>"
        text = f"<annotation>{size}{inner if i % 2 == 0 else ''}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids) + "\n")


BOX = "<bndbox><xmin>{}</xmin><ymin>11</ymin><xmax>{}</xmax><ymax>30</ymax></bndbox>"


@pytest.mark.parametrize("year", [2007, 2012])
def test_the_standard_layout_of_voc_is_read_and_evaluated(cfg: CfgNode, tmp_path: Path, year: int) -> None:
    name, root = f"voc_{year}_{tmp_path.name}", tmp_path / f"VOC{year}"
    with pytest.raises(DatasetError, match="unknown data set"):
        require_datasets([name])
    register_pascal_voc(name, str(root), "test", year)
    with pytest.raises(DatasetError) as caught:
        require_datasets([name])
    for expected in (root / "Annotations", root / "JPEGImages", root / "ImageSets" / "Main" / "test.txt"):
        assert str(expected) in str(caught.value)
    write_standard_voc(root, ["000001", "000002", "000003"], BOX.format(1, 20))
    dicts = read_dataset([name])
    assert [len(d["annotations"]) for d in dicts] == [1, 0, 1]
    # One of two objects found, and nothing else: 6 of 11 recalls, or half of the area.
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    found = Instances((40, 60), pred_boxes=Boxes(torch.tensor([[0.0, 10.0, 20.0, 30.0]])))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([7])
    evaluator.process([dicts[0]], [{"instances": found}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 19 classes without an object
        evaluator._class_names = ["cat"]
        evaluator._predictions = {0: evaluator._predictions[7]}
        assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100 * (6 / 11 if year == 2007 else 0.5))


def test_bad_boxes_of_a_data_set_that_detectron2_reads_are_dropped_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, root = f"bad_voc_{tmp_path.name}", tmp_path / "VOC2012"
    register_pascal_voc(name, str(root), "test", 2012)
    write_standard_voc(root, ["1", "2"], BOX.format(50, 49) + BOX.format(0, 0))
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        dicts = read_dataset([name])
    assert [len(d["annotations"]) for d in dicts] == [0, 0]
    assert "1 boxes without width or height, dropped" in caplog.text


def test_coco128_loads_with_its_crowds_and_masks() -> None:
    shared = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data")) / "coco128"
    files = sorted(shared.rglob("*.json"))
    if not files:
        pytest.skip("needs coco128: put it into ../shared/data, or set ODE_DETECT_SHARED_DATA")
    theirs = load_coco_json(str(files[0]), "images", f"theirs {files[0]}")
    content, problems = custom.Source("coco128", Path("images"), files[0]).read()
    ours = to_records(content, Path("images"))
    assert not problems
    assert len(ours) == 128
    assert any(a["iscrowd"] for record in ours for a in record["annotations"])
    assert ours == theirs


def detectron2_set(squares: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """The squares, changed, registered as scripts for Detectron2 do it."""
    content = json.loads((squares / "train.json").read_text())
    for a in content["annotations"]:
        change(a)
    name = f"theirs {tmp_path}"
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(tmp_path / "theirs.json"), str(squares / "images"))
    return name


def test_boxes_that_detectron2_reads_in_another_form_are_told_or_refused(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = detectron2_set(squares, tmp_path, lambda a: a.update(bbox=[v / 100 for v in a["bbox"]]))
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        read_dataset([name])
    assert "18 boxes that lie within one pixel, probably shares of the picture, kept" in caplog.text

    def corners(a: dict[str, Any]) -> None:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]

    (tmp_path / "more").mkdir()
    with pytest.raises(DatasetError, match=r"fit only as corners .* Write \[x0, y0, x1 - x0, y1 - y0\]"):
        read_dataset([detectron2_set(squares, tmp_path / "more", corners)])


def test_masks_that_detectron2_reads_and_are_none_are_left_out(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(a: dict[str, Any]) -> None:
        good = [[10, 10, 40, 10, 40, 40, 10, 40]]
        bad = {1: {"size": [80, 96], "counts": [1, 2, 3]}, 2: [[10, 10, 40, 10, 40, float("nan")]]}
        a["segmentation"] = bad.get(a["id"], good)

    name = detectron2_set(squares, tmp_path, spoil)
    with caplog.at_level(logging.WARNING, "ode_detect.detection"):
        dicts = read_dataset([name])
    assert "2 masks that are neither polygons" in caplog.text
    assert ["segmentation" in a for a in dicts[0]["annotations"]] == [False, False, True]


def test_the_network_has_the_key_points_of_the_data(cfg: CfgNode, squares: Path, tmp_path: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    for a in content["annotations"]:
        a |= {"keypoints": [20, 20, 2, 30, 30, 2], "num_keypoints": 2}
    (tmp_path / "points.json").write_text(json.dumps(content))
    cfg.DATASETS.CUSTOM = [entry(f"points {tmp_path}", squares, tmp_path / "points.json")]
    cfg.DATASETS.TRAIN = (f"points {tmp_path}",)
    cfg.MODEL.KEYPOINT_ON = True
    register_datasets(cfg)
    with pytest.raises(DatasetError, match=r"points .* has none\. Set keypoint_names"):
        train_data(cfg)
    MetadataCatalog.get(f"points {tmp_path}").set(keypoint_names=["a", "b"], keypoint_flip_map=[("a", "b")])
    with pytest.raises(DatasetError, match=r"has 17 key points .* has 2; set NUM_KEYPOINTS"):
        train_data(cfg)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    assert len(train_data(cfg)[0]) == 6, "as with Detectron2, pictures with fewer than MIN_KEYPOINTS_PER_IMAGE are out"
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 0
    assert len(train_data(cfg)[0]) == 8
