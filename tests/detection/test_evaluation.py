from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from ode_detect.detection.evaluation import build_evaluator, metrics, protocol
from ode_detect.detection.matching import Matches
from ode_detect.engine.config import add_ode_config
from ode_detect.media.errors import DatasetError

CLASSES = ["cat", "dog", "cow"]
Found = dict[Any, list[tuple[list[float], float, int]]]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    return cfg


@pytest.fixture
def name() -> Iterator[str]:
    """A data set that is forgotten afterwards."""
    yield "for_evaluation"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "for_evaluation" in catalog.list():
            catalog.remove("for_evaluation")


def instances(found: list[tuple[list[float], float, int]]) -> Instances:
    boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4)
    scores, classes = torch.tensor([s for _, s, _ in found]), torch.tensor([c for _, _, c in found], dtype=torch.int64)
    return Instances((100, 100), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def feed(evaluator: Any, found: Found) -> Any:
    evaluator.reset()
    for image_id, boxes in found.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances(boxes)}])
    return evaluator


def evaluated(evaluator: Any, found: Found) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(feed(evaluator, found).evaluate())


def scene(ids: list[Any], seed: int = 0) -> tuple[dict[Any, list[tuple[list[float], int]]], Found]:
    """Whole-numbered boxes of cats and dogs, and detections near them; every third picture is empty."""
    rng = np.random.default_rng(seed)
    objects: dict[Any, list[tuple[list[float], int]]] = {}
    found: Found = {}
    for index, image_id in enumerate(ids):
        objects[image_id], found[image_id] = [], []
        for _ in range(0 if index % 3 == 2 else 5):
            (x, y), (w, h) = rng.integers(0, 60, 2), rng.integers(12, 40, 2)
            box, kind = [float(x), float(y), float(x + w), float(y + h)], int(rng.integers(0, 2))
            objects[image_id].append((box, kind))
            for _ in range(int(rng.integers(0, 3))):
                near = (np.array(box) + rng.normal(0, 1.5, 4)).round(1).tolist()
                found[image_id].append((near, round(float(rng.random()), 3), kind))
        found[image_id].append(([5.0, 5.0, 20.0, 25.0], round(float(rng.random()), 3), int(rng.integers(0, 3))))
    return objects, found


def register_json(name: str, folder: Path, objects: dict[Any, list[tuple[list[float], int]]], **more: Any) -> None:
    boxes = [(image_id, box, kind) for image_id, them in objects.items() for box, kind in them]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in objects],
        "annotations": [
            {
                "id": n + 1, "image_id": i, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "category_id": k + 1,
                "area": (b[2] - b[0]) * (b[3] - b[1]), "iscrowd": 0, **more,
            }
            for n, (i, b, k) in enumerate(boxes)
        ],
        "categories": [{"id": k + 1, "name": one} for k, one in enumerate(CLASSES)],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(folder / "truth.json"), str(folder))
    DatasetCatalog.get(name)


def records(objects: dict[Any, list[tuple[list[float], int]]], **more: Any) -> Callable[[], list[dict[str, Any]]]:
    def annotation(box: list[float], kind: int) -> dict[str, Any]:
        return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": kind, **more}

    return lambda: [
        {
            "image_id": image_id, "file_name": f"{image_id}.png", "width": 100, "height": 100,
            "annotations": [annotation(box, kind) for box, kind in them],
        }
        for image_id, them in objects.items()
    ]  # fmt: skip


def register_voc(
    name: str, folder: Path, year: int, objects: dict[Any, list[tuple[list[float], int]]], difficult: int = 0
) -> None:
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{i}\n" for i in objects))
    for image_id, them in objects.items():
        parts = [
            f"<object><name>{CLASSES[kind]}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{int(number < difficult)}</difficult>"
            f"<bndbox><xmin>{x0 + 1:.0f}</xmin><ymin>{y0 + 1:.0f}</ymin>"
            f"<xmax>{x1:.0f}</xmax><ymax>{y1:.0f}</ymax></bndbox></object>"
            for number, ((x0, y0, x1, y1), kind) in enumerate(them)
        ]
        size = "<size><width>100</width><height>100</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{size}{''.join(parts)}</annotation>")
    register_pascal_voc(name, str(folder), "test", year, class_names=CLASSES)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"


def test_percents_become_fractions_and_what_does_not_exist_is_left_out() -> None:
    assert metrics({"bbox": {"AP": 31.5, "AP50": 50.0, "APl": math.nan, "AP-cat": 3.0}}) == {"AP": 0.315, "AP50": 0.5}
    masks = metrics({"segm": {"AP": 20.0, "AP50": 40.0, "APs": 1.0}, "scores": {"f1": 0.5, "best_f1_threshold": 0.3}})
    assert masks == {"mask_AP": 0.2, "mask_AP50": 0.4, "f1": 0.5, "best_f1_threshold": 0.3}
    assert metrics({}) == {}


def test_the_protocol_has_the_numbers(cfg: CfgNode) -> None:
    cfg.TEST.SCORE_THRESHOLD, cfg.TEST.DETECTIONS_PER_IMAGE = 0.25, 300
    assert "at most 300 detections" in "; ".join(protocol(cfg))
    assert "score of 0.25 or more" in "; ".join(protocol(cfg))
    assert "upper bound, its threshold chosen on the same data" in "; ".join(protocol(cfg))


def test_average_precision_is_detectron2s_and_the_matches_are_handed_on(
    cfg: CfgNode, name: str, tmp_path: Path
) -> None:
    objects, found = scene([1, 2, 3, 4])
    register_json(name, tmp_path, objects)
    given: list[Matches] = []
    evaluator = build_evaluator(cfg, name, str(tmp_path), lambda matches: given.append(matches) or {"f1": 0.5})
    results = evaluated(evaluator, found)
    theirs = evaluated(COCOEvaluator(name, output_dir=str(tmp_path), use_fast_impl=False), found)
    assert results["bbox"] == pytest.approx(theirs["bbox"], nan_ok=True)
    assert results["scores"] == {"f1": 0.5}
    (matches,) = given
    assert matches.names == tuple(CLASSES)
    assert sum(matches.objects) == sum(map(len, objects.values()))
    assert matches.objects[2] == 0
    assert np.nanmean(matches.ap50) == pytest.approx(results["bbox"]["AP50"] / 100)


def test_a_data_set_without_a_json_file_is_converted_anew_each_time(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    objects, found = scene([1, 2, 3, 4])
    seen: list[Matches] = []

    def evaluate() -> dict[str, Any]:
        evaluator = build_evaluator(cfg, name, str(tmp_path), lambda matches: seen.append(matches) or {})
        assert not hasattr(MetadataCatalog.get(name), "json_file")
        return evaluated(evaluator, found)

    for shown in (objects, {image_id: boxes[:1] for image_id, boxes in objects.items()}):
        DatasetCatalog.register(name, records(shown))
        MetadataCatalog.get(name).thing_classes = CLASSES
        evaluate()
        DatasetCatalog.remove(name)
    assert [sum(matches.objects) for matches in seen] == [15, 3]
    DatasetCatalog.register(name, records(objects, difficult=1))
    assert math.isnan(evaluate()["bbox"]["AP"])  # All is ignored.
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, records({key: [] for key in objects}))
    evaluate()
    assert seen[-1].objects == (0, 0, 0)
    assert sum(map(len, seen[-1].confidence)) == sum(map(len, found.values()))


def test_the_conversion_gives_what_the_file_gives(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    objects, found = scene([1, 2, 3, 4], seed=1)
    register_json(name, tmp_path, objects)
    from_file = evaluated(build_evaluator(cfg, name, str(tmp_path)), found)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    DatasetCatalog.register(name, records(objects))
    MetadataCatalog.get(name).thing_classes = CLASSES
    converted = evaluated(build_evaluator(cfg, name, str(tmp_path)), found)
    assert converted["bbox"] == pytest.approx(from_file["bbox"], nan_ok=True)


def test_a_detector_that_finds_nothing_has_average_precision_zero(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    objects, _ = scene([1, 2, 3])
    register_json(name, tmp_path, objects)
    seen: list[Matches] = []
    evaluator = build_evaluator(cfg, name, str(tmp_path), lambda matches: seen.append(matches) or {})
    results = evaluated(evaluator, {image_id: [] for image_id in objects})
    assert metrics(results)["AP"] == metrics(results)["AP50"] == 0
    assert sum(seen[0].objects) == 10
    assert seen[0].confusion[:, -1].tolist() == [*seen[0].objects, 0]


def test_what_is_not_finite_is_left_out(cfg: CfgNode, name: str, tmp_path: Path, caplog: Any) -> None:
    register_json(name, tmp_path, {1: [([10.0, 10.0, 40.0, 40.0], 0)]})
    good = ([10.0, 10.0, 40.0, 40.0], 0.9, 0)
    bad = [([10.0, 10.0, math.inf, 40.0], 0.95, 0), ([10.0, 10.0, 40.0, 40.0], math.nan, 0)]
    results = evaluated(build_evaluator(cfg, name, str(tmp_path)), {1: [*bad, good]})
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert "left out: 2 detections" in caplog.text


def test_more_detections_than_cocos_limit_count_if_the_network_may_give_them(
    cfg: CfgNode, name: str, tmp_path: Path
) -> None:
    boxes = [([8.0 * (i % 12), 8.0 * (i // 12), 8.0 * (i % 12) + 7, 8.0 * (i // 12) + 7], 0) for i in range(120)]
    register_json(name, tmp_path, {1: boxes})
    found: Found = {1: [(box, 0.9 - i / 1000, kind) for i, (box, kind) in enumerate(boxes)]}
    counts = []
    for most in (50, 150):
        cfg.TEST.DETECTIONS_PER_IMAGE = most
        seen: list[Matches] = []
        evaluated(build_evaluator(cfg, name, str(tmp_path), lambda m, seen=seen: seen.append(m) or {}), found)
        counts.append(int(seen[0].hits[0].sum()))
    assert counts == [100, 120]


def test_masks_have_their_average_precision(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    box = [10.0, 10.0, 40.0, 40.0]
    outline = [[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]]
    register_json(name, tmp_path, {1: [(box, 0)]}, segmentation=outline)
    cfg.MODEL.MASK_ON = True
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    for share, expected in ((30, 1.0), (25, 0.7), (0, 0.0)):
        found = instances([(box, 0.9, 0)] if share else [])
        mask = torch.zeros(len(found), 100, 100, dtype=torch.bool)
        mask[:, 10 : 10 + share, 10:40] = True
        found.pred_masks = mask
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        with contextlib.redirect_stdout(io.StringIO()):
            values = metrics(evaluator.evaluate())
        assert values["mask_AP"] == pytest.approx(expected)
        assert values["AP"] == pytest.approx(1.0 if share else 0.0)


def test_processes_are_gathered(cfg: CfgNode, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, found = scene(["a", "b", "c", "d"])
    register_voc(name, tmp_path, 2007, objects)
    alone = evaluated(build_evaluator(cfg, name, str(tmp_path)), found)
    parts = [{key: found[key] for key in half} for half in (("a", "c"), ("b", "d"))]
    first, second = (feed(build_evaluator(cfg, name, str(tmp_path)), part) for part in parts)
    others = iter([second._voc._predictions, second._predictions])
    monkeypatch.setattr(comm, "gather", lambda mine, dst: [mine, next(others)])
    with contextlib.redirect_stdout(io.StringIO()):
        assert first.evaluate()["bbox"] == pytest.approx(alone["bbox"])
    monkeypatch.setattr(comm, "gather", lambda mine, dst: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert second.evaluate() == {}


@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_is_detectron2s(year: int, cfg: CfgNode, name: str, tmp_path: Path) -> None:
    objects, found = scene([f"00{i}" for i in range(8)])
    objects["000"].append(([70.0, 70.0, 95.0, 99.0], 2))
    register_voc(name, tmp_path, year, objects, difficult=1)
    seen: list[Matches] = []
    results = evaluated(build_evaluator(cfg, name, str(tmp_path), lambda m: seen.append(m) or {}), found)
    theirs = {}
    for rule in (2007, 2012):
        MetadataCatalog.get(name).__dict__["year"] = rule
        theirs[rule] = evaluated(PascalVOCDetectionEvaluator(name), found)["bbox"]
    assert {key: results["bbox"][key] for key in ("AP", "AP50", "AP75")} == pytest.approx(theirs[year])
    assert results["bbox"]["AP50_2007"] == pytest.approx(theirs[2007]["AP50"])
    assert results["bbox"]["AP50_2010"] == pytest.approx(theirs[2012]["AP50"])
    assert theirs[2007]["AP50"] != pytest.approx(theirs[2012]["AP50"])
    assert np.mean(seen[0].ap50) == pytest.approx(theirs[year]["AP50"] / 100)
    assert sum(seen[0].objects) == sum(max(len(boxes) - 1, 0) for boxes in objects.values())
    assert 0 < metrics(results)["AP50"] < 1


def test_a_voc_class_without_objects_is_not_in_the_mean(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    register_voc(name, tmp_path, 2012, {"one": [([10.0, 10.0, 40.0, 40.0], 0)], "two": []})
    found: Found = {"one": [([10.0, 10.0, 40.0, 40.0], 0.9, 0), ([10.0, 10.0, 40.0, 40.0], 0.9, 2)], "two": []}
    seen: list[Matches] = []
    results = evaluated(build_evaluator(cfg, name, str(tmp_path), lambda m: seen.append(m) or {}), found)
    assert metrics(results)["AP50"] == pytest.approx(1.0)
    assert np.isnan(seen[0].ap50[1:]).all()
    assert [len(scores) for scores in seen[0].confidence] == [1, 0, 1]
    nothing = evaluated(build_evaluator(cfg, name, str(tmp_path)), {"one": [], "two": []})
    assert metrics(nothing)["AP"] == 0


def test_voc_xml_that_cannot_be_read_is_named(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    register_voc(name, tmp_path, 2012, {"one": [([10.0, 10.0, 40.0, 40.0], 0)], "two": []})
    file = tmp_path / "Annotations" / "one.xml"
    file.write_text(file.read_text().replace("<pose>x</pose>", ""))
    with pytest.raises(DatasetError, match=r"one\.xml"):
        build_evaluator(cfg, name, str(tmp_path))


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [100, 100], "counts": [100, 50, 20]},  # never ends
        {"size": [100, 100], "counts": [100, 50, 2_000_000]},
        {"size": [100, 100], "counts": "zzzz~~~~zzzz"},  # never ends
        [[10, 10, 40, 10, 40, 40, 10, None]],  # takes 20 GB
        [[10, 10, 40, 10, 40, 40, 10, 1e9]],
        [["10", "10", "40", "10", "40", "40", "x", "40"]],
        [[1, 2, 3, 4]],
    ],
)
def test_pycocotools_is_handed_masks_only_that_were_checked(
    cfg: CfgNode, name: str, tmp_path: Path, mask: Any, caplog: Any
) -> None:
    """Of a data set that Detectron2 reads by itself."""
    box = [10.0, 10.0, 40.0, 40.0]
    register_json(name, tmp_path, {1: [(box, 0)]}, segmentation=[[10.0, 10.0, 40.0, 10.0, 40.0, 40.0, 10.0, 40.0]])
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"].append({**content["annotations"][0], "id": 2, "segmentation": mask, "area": -1})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    cfg.MODEL.MASK_ON = True
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert "1 masks that are neither polygons" in caplog.text
    assert "1 areas that do not fit the box" in caplog.text
    found = instances([(box, 0.9, 0)])
    found.pred_masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    found.pred_masks[:, 10:40, 10:40] = True
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        values = metrics(evaluator.evaluate())
    # One of two objects, since an object without a mask is still one.
    assert values["AP50"] == values["mask_AP50"] == pytest.approx(51 / 101)


def test_objects_without_key_points_are_evaluated_beside_those_with(cfg: CfgNode, name: str, tmp_path: Path) -> None:
    box = [10.0, 10.0, 40.0, 40.0]
    register_json(name, tmp_path, {1: [(box, 0), ([50.0, 50.0, 90.0, 90.0], 0)]})
    content = json.loads((tmp_path / "truth.json").read_text())
    content["annotations"][0]["keypoints"] = [20, 20, 2, 30, 30, 2]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05, 0.05]
    MetadataCatalog.get(name).keypoint_names = ["left", "right"]
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    evaluator._tasks = ("bbox", "keypoints")
    found = instances([(box, 0.9, 0)])
    found.pred_keypoints = torch.tensor([[[20.5, 20.5, 1.0], [30.5, 30.5, 1.0]]])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    with contextlib.redirect_stdout(io.StringIO()):
        assert evaluator.evaluate()["keypoints"]["AP"] == pytest.approx(100)


def test_data_of_which_no_object_counts_are_told_loudly(cfg: CfgNode, name: str, tmp_path: Path, caplog: Any) -> None:
    register_json(name, tmp_path, {1: [([10.0, 10.0, 40.0, 40.0], 0)]}, iscrowd=1)
    build_evaluator(cfg, name, str(tmp_path))
    assert "no object of the test data counts (of 1, all are iscrowd or difficult)" in caplog.text
