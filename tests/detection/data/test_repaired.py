import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from ode_detect.detection.data.check import check, overlaps
from ode_detect.detection.data.custom import Source
from ode_detect.detection.data.repaired import snippet, write_repaired


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
        for x0, y0, x1, y1 in sample.boxes.round().astype(int):
            inside = sample.image[y0 + 3 : y1 - 2, x0 + 3 : x1 - 2]
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


def test_boxes_of_one_picture_in_several_entries_are_joined(squares: Path, tmp_path: Path) -> None:
    """Under one file name, or another with the same bytes; one entry is for another size."""
    shutil.copytree(squares / "images", tmp_path / "images")
    shutil.copy(tmp_path / "images" / "0.png", tmp_path / "images" / "copy.png")
    sizes = {1: ("0.png", 1), 2: ("0.png", 1), 3: ("copy.png", 1), 4: ("copy.png", 2), 5: ("1.png", 1), 6: ("1.png", 1)}
    images = [
        {"id": i, "file_name": file, "width": 96 * scale, "height": 80 * scale} for i, (file, scale) in sizes.items()
    ]
    boxes = {1: [5, 5, 20, 20], 2: [40, 5, 20, 20], 3: [5, 40, 20, 20], 4: [100, 100, 40, 40]}
    boxes |= {5: [7, 7, 30, 30], 6: [7, 7, 30, 30]}
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in boxes.items()
    ]
    (tmp_path / "x.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]})
    )
    one = check(Source("x", tmp_path / "images", tmp_path / "x.json"))
    first, _, second, third = one.problems
    assert first.where == ("0.png (ids 1, 2)",)
    assert second.rule == first.rule == "pictures whose boxes are spread over several entries"
    assert second.where == ("0.png = copy.png (ids 1, 3, 4)",)
    assert third.where == ("1.png = 1.png",), "a repeated picture with its boxes"
    copy = write_repaired(one, tmp_path / "fixed")
    content = json.loads(copy.annotations.read_text())
    assert [image["id"] for image in content["images"]] == [1, 5]
    mine = [a["bbox"] for a in content["annotations"] if a["image_id"] == 1]
    assert mine == [boxes[1], boxes[2], boxes[3], [50, 50, 20, 20]]
    assert len(content["annotations"]) == 5
    assert copy.lost == 1
    assert check(Source("x_fixed", copy.images, copy.annotations)).problems == ()


def test_no_object_is_lost_to_numbers_as_text_or_corners(squares: Path, tmp_path: Path) -> None:
    content = json.loads((squares / "train.json").read_text())
    right = [a["bbox"] for a in content["annotations"]]
    content["images"] = [{**i, "id": str(i["id"])} for i in content["images"]]
    for a in content["annotations"]:
        (x, y, w, h), number = a["bbox"], a["image_id"]
        a |= {"image_id": float(number), "category_id": "1", "bbox": [str(x), y, x + w, f"{y + h}.0"], "iscrowd": "0"}
    (tmp_path / "x.json").write_text(json.dumps(content))
    copy = write_repaired(check(Source("x", squares / "images", tmp_path / "x.json")), tmp_path / "fixed")
    fixed = json.loads(copy.annotations.read_text())
    assert [a["bbox"] for a in fixed["annotations"]] == right
    assert copy.lost == 0
    assert check(Source("x_fixed", copy.images, copy.annotations)).problems == ()
    assert any("width taken as x1 - x0" in change for change in copy.changes)


def test_key_points_are_scaled_with_their_box(squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares / "images", tmp_path / "images")
    content = json.loads((squares / "train.json").read_text())
    content["images"] = [{**i, "width": 192, "height": 160} for i in content["images"][:1]]
    points = {"keypoints": [40, 20, 2, 60, 30, 1], "num_keypoints": 2}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 60, 40], "area": 2400, "iscrowd": 0}
    content["annotations"] = [{**box, **points}]
    (tmp_path / "x.json").write_text(json.dumps(content))
    copy = write_repaired(check(Source("x", tmp_path / "images", tmp_path / "x.json")), tmp_path / "fixed")
    (fixed,) = json.loads(copy.annotations.read_text())["annotations"]
    assert fixed["bbox"] == [10, 10, 30, 20]
    assert fixed["keypoints"] == [20, 10, 2, 30, 15, 1]
