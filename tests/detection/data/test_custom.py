import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from ode_detect.detection.data.annotations import read_coco
from ode_detect.detection.data.datasets import check_test_data, custom, read_dataset, register_datasets
from ode_detect.detection.evaluation import build_evaluator
from ode_detect.engine.config import load_config
from ode_detect.media.errors import DatasetError
from ode_detect.media.text import is_ascii

ROOT = Path(__file__).resolve().parents[3]
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def write_set(root: Path, objects: list[str]) -> dict[str, object]:
    (root / "xml").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    for i, inner in enumerate(objects):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((40, 60, 3), 99, np.uint8))
        size = "<size><width>60</width><height>40</height></size>"
        (root / "xml" / f"{i}.xml").write_text(f"<annotation>{size}{inner}</annotation>")
    name = f"custom {root}"
    return {"NAME": name, "IMAGES": str(root / "images"), "ANNOTATIONS": str(root / "xml"), "CLASSES": ["cat", "dog"]}


def thing(name: str, *box: int, difficult: int = 0) -> str:
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{BOX.format(*box)}</object>"


def evaluate(entry: dict[str, object], found: dict[int, list[list[float]]], folder: Path) -> dict[str, float]:
    """Evaluate a detector that finds these cats, and no dog, in the pictures of a data set."""
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", "2"])
    cfg.DATASETS.CUSTOM = [entry]
    cfg.DATASETS.TEST = (entry["NAME"],)
    register_datasets(cfg)
    check_test_data(cfg)
    evaluator = build_evaluator(cfg, str(entry["NAME"]), str(folder))
    evaluator.reset()
    for record in read_dataset([str(entry["NAME"])]):
        boxes = torch.tensor(found.get(record["image_id"], []), dtype=torch.float32).reshape(-1, 4)
        instances = Instances((40, 60), pred_boxes=Boxes(boxes), scores=torch.linspace(0.9, 0.8, len(boxes)))
        instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("evaluator", ["coco", "voc", "voc2007"])
def test_voc_xml_is_evaluated_by_the_ap_that_is_asked_for(tmp_path: Path, evaluator: str) -> None:
    cats = [thing("cat", 1, 1, 20, 20) + thing("cat", 31, 11, 31, 11), thing("cat", 1, 1, 20, 20)]
    entry = {**write_set(tmp_path, [*cats, thing("dog", 5, 5, 30, 30)]), "EVALUATOR": evaluator}
    exact = [0.0, 0.0, 20.0, 20.0]
    # The box without area is not asked for, the dog is: the mean over cats and dogs is a half.
    half = evaluate(entry, {1: [exact], 2: [exact]}, tmp_path / "a")
    assert half["AP50"] == pytest.approx(50, abs=0.01)
    # One of two cats: half the area under the curve, 51 of COCO's 101 and 6 of VOC's 11 recalls.
    one = evaluate(entry, {1: [exact]}, tmp_path / "b")
    wanted = {"coco": 51 / 101, "voc": 0.5, "voc2007": 6 / 11}[evaluator]
    assert one["AP50"] == pytest.approx(50 * wanted, abs=0.01)


@pytest.mark.parametrize("evaluator", ["coco", "voc"])
def test_difficult_objects_are_ignored_in_evaluation(tmp_path: Path, evaluator: str) -> None:
    cats = thing("cat", 1, 1, 20, 20) + thing("cat", 31, 1, 50, 20, difficult=1)
    entry = {**write_set(tmp_path, [cats, thing("dog", 5, 5, 30, 30)]), "EVALUATOR": evaluator}
    easy, difficult, wrong = [0.0, 0.0, 20.0, 20.0], [30.0, 0.0, 50.0, 20.0], [0.0, 25.0, 10.0, 35.0]
    assert evaluate(entry, {1: [easy]}, tmp_path / "a")["AP50"] == pytest.approx(50, abs=0.01)
    assert evaluate(entry, {1: [difficult, easy]}, tmp_path / "b")["AP50"] == pytest.approx(50, abs=0.01)
    assert evaluate(entry, {1: [wrong, easy]}, tmp_path / "c")["AP50"] == pytest.approx(25, abs=0.01)


@pytest.mark.parametrize("evaluator", ["coco", "voc"])
def test_the_truth_is_not_a_stale_copy(tmp_path: Path, evaluator: str) -> None:
    entry = {**write_set(tmp_path, [thing("cat", 1, 1, 20, 20), thing("dog", 1, 1, 9, 9)]), "EVALUATOR": evaluator}
    exact = [0.0, 0.0, 20.0, 20.0]
    assert evaluate(entry, {1: [exact]}, tmp_path / "out")["AP50"] == pytest.approx(50, abs=0.01)
    write_set(tmp_path, [thing("cat", 31, 11, 50, 30), thing("dog", 1, 1, 9, 9)])
    assert evaluate(entry, {1: [exact]}, tmp_path / "out")["AP50"] == pytest.approx(0, abs=0.01)


def test_a_class_may_be_called_anything(tmp_path: Path) -> None:
    name = "cat / <kitten> {0}"
    objects = [thing("cat / &lt;kitten> {0}", 1, 1, 20, 20), thing("dog", 5, 5, 30, 30)]
    entry = {**write_set(tmp_path, objects), "CLASSES": [name, "dog"], "EVALUATOR": "voc"}
    assert evaluate(entry, {1: [[0.0, 0.0, 20.0, 20.0]]}, tmp_path / "a")["AP50"] == pytest.approx(50, abs=0.01)


@pytest.mark.parametrize("evaluator", ["coco", "voc"])
def test_test_data_are_read_once_before_training(
    squares: Path, evaluator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(custom, "read_coco", lambda file: reads.append(file) or read_coco(file))
    cfg = load_config(ROOT / "configs" / "quickstart.yaml")
    file = squares / "train.json"
    entry = {"NAME": f"once {tmp_path}", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(file)}
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TEST = [{**entry, "EVALUATOR": evaluator}], (entry["NAME"],)
    register_datasets(cfg)
    check_test_data(cfg)
    assert reads == [file]
    metadata = MetadataCatalog.get(entry["NAME"])
    assert Path(metadata.json_file if evaluator == "coco" else metadata.dirname).exists()


def test_coco_json_is_evaluated_against_what_is_trained_on(squares: Path, tmp_path: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    for i, a in enumerate(content["annotations"]):
        a["id"] = i  # from 0, which pycocotools counts as missed
        del a["iscrowd"], a["area"]
    content["annotations"][0]["bbox"][2] = 0
    (tmp_path / "x.json").write_text(json.dumps(content))
    name = f"truth {tmp_path}"
    custom.register({"NAME": name, "IMAGES": str(squares / "images"), "ANNOTATIONS": str(tmp_path / "x.json")})
    assert len(custom.load_with_truth(name)) == 8
    truth = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert len(truth["annotations"]) == len(content["annotations"]) - 1
    assert min(a["id"] for a in truth["annotations"]) > 0
    assert json.loads((tmp_path / "x.json").read_text()) == content, "the user's file is not touched"
    (tmp_path / "x.json").write_text((squares / "train.json").read_text())
    custom.load_with_truth(name)
    assert MetadataCatalog.get(name).json_file == str(tmp_path / "x.json"), "a file in order is used itself"
    assert len(DatasetCatalog.get(name)) == 8


@pytest.mark.parametrize("evaluator", ["coco", "voc"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_encoding_is_evaluated_alike(squares: Path, tmp_path: Path, encoding: str, evaluator: str) -> None:
    content = json.loads((squares / "train.json").read_text())
    content["categories"] = [{"id": 1, "name": "红\n细胞"}, {"id": 2, "name": "dog"}]
    (tmp_path / "x.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    images = str(squares / "images")
    entry = {"NAME": str(tmp_path), "IMAGES": images, "ANNOTATIONS": str(tmp_path / "x.json"), "EVALUATOR": evaluator}
    found: dict[int, list[list[float]]] = {}
    for a in content["annotations"]:
        x, y, width, height = a["bbox"]
        found.setdefault(a["image_id"], []).append([x, y, x + width, y + height])
    assert evaluate(entry, found, tmp_path / "out")["AP50"] == pytest.approx(100, abs=0.01)
    metadata = MetadataCatalog.get(str(tmp_path))
    assert metadata.thing_classes == ["红 细胞", "dog"]
    # Others read it in the system's encoding, whatever that is.
    truth = [Path(metadata.json_file)] if evaluator == "coco" else list(Path(metadata.dirname).rglob("*.*"))
    assert truth
    assert all(is_ascii(file) for file in truth)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"IMAGE": "x"}, "Did you mean 'IMAGES'"),
        ({"EVALUATOR": "coca"}, "Did you mean 'coco'"),
        ({"CLASSES": "cat"}, "CLASSES is a list"),
        ({"CLASSES": ["cat", "cat"]}, "each class once"),
    ],
)
def test_a_wrong_entry_says_how_to_write_it(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        custom.register({"NAME": "wrong entry", "IMAGES": "i", "ANNOTATIONS": "a", **changes})
    assert "wrong entry" not in DatasetCatalog.list()


def test_split_and_classes_belong_to_xml(squares: Path) -> None:
    source = custom.Source("x", squares / "images", squares / "train.json", classes=("square",))
    with pytest.raises(DatasetError, match="belong to VOC XML"):
        source.read()


def test_the_source_of_a_data_set_of_detectron2_is_known() -> None:
    assert custom.source_of("coco_2017_val").annotations.name == "instances_val2017.json"
    voc = custom.source_of("voc_2007_test")
    assert voc.split.parts[-4:] == ("VOC2007", "ImageSets", "Main", "test.txt")
    assert len(voc.classes) == 20
    assert [custom.source_of(name).evaluator for name in ("voc_2007_test", "voc_2012_val")] == ["voc2007", "voc"]
    with pytest.raises(DatasetError, match="COCO JSON or VOC XML"):
        custom.source_of("cityscapes_fine_sem_seg_val")
