import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from ode_detect.detection.check import check, overlaps
from ode_detect.detection.custom import Source
from ode_detect.detection.repaired import snippet, write_repaired


def test_a_repaired_copy_has_nothing_wrong_and_the_original_is_untouched(squares: Path, tmp_path: Path) -> None:
    folder = tmp_path / "squares"
    shutil.copytree(squares, folder)
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["annotations"][1]["category_id"] = 9
    content["annotations"].append({**content["annotations"][2], "id": 77})
    (folder / "train.json").write_text(json.dumps(content))
    images = folder / "images"
    (images / "1.png").write_bytes(b"")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images / "3.png") as image:
        pixels = np.asarray(image)
    Image.fromarray(pixels).save(images / "3.png", exif=exif)
    cv2.imwrite(str(images / "4.png"), cv2.resize(cv2.imread(str(images / "4.png")), (48, 40)))
    cv2.imwrite(str(images / "6.png"), np.zeros((80, 50, 3), np.uint8))
    shutil.copy(images / "2.png", images / "5.png")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    one = check(Source("squares", images, folder / "train.json"))
    assert len(one.problems) == 8
    copy = write_repaired(one, tmp_path / "fixed")
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    again = check(Source(copy.name, copy.images, copy.annotations))
    assert again.problems == ()
    assert len(copy.changes) == 8
    assert copy.lost == 3
    assert [Path(i["file_name"]).name for i in again.content["images"]] == [
        "0.png",
        "2.png",
        "squares_4.png",
        "4.png",
        "7.png",
    ]
    assert any("boxes rescaled: 4.png is 48 x 40" in change for change in copy.changes)
    for sample in again.samples(8):
        for x0, y0, x1, y1 in sample["boxes"].round().astype(int):
            inside = sample["image"][y0 + 3 : y1 - 2, x0 + 3 : x1 - 2]
            assert inside.mean() > 225, f"squares are white, {sample['name']}"


def test_test_pictures_are_taken_out_of_training(squares: Path, tmp_path: Path) -> None:
    source = Source("a", squares / "images", squares / "train.json")
    one = check(source)
    first = {**one.content, "images": one.content["images"][:2], "annotations": []}
    test = replace(one, source=replace(source, name="b"), content=first)
    shared = overlaps([one, test], ["a"], ["b"])
    digests = frozenset(one.files[image["id"]].digest for image in first["images"])
    copy = write_repaired(one, tmp_path, overlaps=shared, test=digests)
    assert copy.lost == 2
    assert copy.changes == ("2 pictures in a, for training, and in b, for test, left out: 0.png; 1.png",)
    config = yaml.safe_load(snippet([copy], ["a"], []))
    assert config["DATASETS"]["TRAIN"] == ["a_fixed"]
    (entry,) = config["DATASETS"]["CUSTOM"]
    assert entry == {"NAME": "a_fixed", "IMAGES": str(source.images), "ANNOTATIONS": str(tmp_path / "a_fixed.json")}


def test_a_repaired_copy_is_evaluated_as_its_original(squares: Path, tmp_path: Path) -> None:
    one = check(Source("a", squares / "images", squares / "train.json", evaluator="voc2007"))
    (entry,) = yaml.safe_load(snippet([write_repaired(one, tmp_path)], ["a"], []))["DATASETS"]["CUSTOM"]
    assert entry["EVALUATOR"] == "voc2007"
