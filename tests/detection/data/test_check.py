import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ode_detect.detection.data.check import Checked, check, class_problems, overlaps, same_shape, unused
from ode_detect.detection.data.custom import Source
from ode_detect.engine.config import load_config
from ode_detect.media.errors import DatasetError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def copy(squares: Path, tmp_path: Path) -> Path:
    """The squares, to be broken."""
    shutil.copytree(squares, tmp_path / "squares")
    return tmp_path / "squares"


def run(folder: Path, name: str = "x", **changes: Any) -> Checked:
    content = json.loads((folder / "train.json").read_text())
    (folder / f"{name}.json").write_text(json.dumps({**content, **changes}))
    return check(Source(name, folder / "images", folder / f"{name}.json"))


def rules(one: Checked) -> dict[str, tuple[str, ...]]:
    return {problem.rule: problem.where for problem in one.problems}


def test_nothing_is_wrong_with_the_squares(copy: Path) -> None:
    one = run(copy)
    assert one.problems == one.notes == ()
    assert one.counts() == {"pictures": 8, "without objects": 2, "objects": 18, "ignored": 0}
    assert one.classes() == {"square": 18}
    assert len(one.samples(3)) == 3
    assert one.samples(1)[0].image.shape == (80, 96, 3)


def test_what_is_wrong_with_pictures_is_found(copy: Path) -> None:
    folder = copy / "images"
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:900])
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "2.png") as image:
        image.load()
    image.save(folder / "2.png", exif=exif)
    cv2.imwrite(str(folder / "3.png"), np.zeros((40, 48, 3), np.uint8))
    cv2.imwrite(str(folder / "4.png"), np.zeros((80, 90, 3), np.uint8))
    shutil.copy(folder / "5.png", folder / "6.png")
    content = json.loads((copy / "train.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 7]
    (copy / "train.json").write_text(json.dumps(content))
    Image.new("CMYK", (96, 80)).save(folder / "7.png", format="JPEG")
    cv2.imwrite(str(folder / "more.jpg"), np.zeros((8, 8, 3), np.uint8))
    one = run(copy)
    found = rules(one)
    assert list(found) == [
        "pictures that are not there",
        "pictures that cannot be read",
        "pictures of another size than annotated, because EXIF turns them",
        "pictures of another size than annotated, of the same shape",
        "pictures of another size and shape than annotated",
        "pictures that are there twice (same bytes)",
    ]
    assert [len(where) for where in found.values()] == [1] * 6
    assert found["pictures of another size and shape than annotated"] == (
        "4.png is 90 x 80, the annotations are for 96 x 80",
    )
    assert {note.rule for note in one.notes} == {
        "pictures of mode CMYK",
        "pictures with the suffix .png that are JPEG",
        "pictures turned by EXIF",
    }
    (copy / "images" / "._0.png").write_text("what macOS puts beside a picture")
    (note,) = unused([one])
    assert note.where == ("more.jpg",)


def test_what_is_wrong_with_annotations_is_found(copy: Path) -> None:
    content = json.loads((copy / "train.json").read_text())
    a = content["annotations"]
    a[1]["bbox"][3] = 0
    a[2]["bbox"][0] = 500
    a[3]["category_id"] = 9
    a[4]["id"] = a[5]["id"]
    a.append({**a[6], "id": 1000})
    content["categories"].append({"id": 2, "name": "circle"})
    one = run(copy, annotations=a, categories=content["categories"])
    assert list(rules(one)) == [
        "annotations of an unknown category",
        "boxes without width or height",
        "boxes outside their picture",
        "annotations without an id of their own above 0",
        "boxes that repeat another one of the same class",
    ]
    assert one.notes[0].where == ("circle",)
    assert one.counts()["objects"] == 19 - 3


def test_annotations_in_disorder_are_refused(copy: Path) -> None:
    images = json.loads((copy / "train.json").read_text())["images"]
    images[1]["id"] = images[0]["id"]
    with pytest.raises(DatasetError, match="share their id with another"):
        run(copy, images=images)


def test_pictures_in_training_and_test_are_found(copy: Path) -> None:
    images = json.loads((copy / "train.json").read_text())["images"]
    shutil.copy(copy / "images" / "0.png", copy / "images" / "copy.png")
    train = run(copy, "train_part", images=images[:3], annotations=[])
    same = run(copy, "same_file", images=images[2:5], annotations=[])
    bytes_ = run(copy, "same_bytes", images=[{**images[0], "file_name": "copy.png"}], annotations=[])
    apart = run(copy, "apart", images=images[5:], annotations=[])
    checked = [train, same, bytes_, apart]
    assert overlaps(checked, ["train_part"], ["apart", "train_part"]) == []
    first, second = overlaps(checked, ["train_part"], ["same_file", "same_bytes"])
    assert first.where == ("2.png",)
    assert second.where == ("copy.png is 0.png",)


def test_boxes_are_measured_as_the_network_sees_them(copy: Path) -> None:
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["INPUT.MIN_SIZE_TEST", "40"])
    one = run(copy)
    np.testing.assert_allclose(one.boxes(cfg), one.boxes() / 2)
    cfg.INPUT.MIN_SIZE_TEST = 0
    np.testing.assert_allclose(one.boxes(cfg), one.boxes())
    cfg.INPUT.SCALE_JITTER = [0.25, 0.25]
    np.testing.assert_allclose(one.boxes(cfg, is_train=True), one.boxes() / 4)


def test_classes_are_compared_with_each_other_and_with_the_network(copy: Path) -> None:
    content = json.loads((copy / "train.json").read_text())
    train, same = run(copy), run(copy, "same")
    assert class_problems([train, same], 1) == []
    (problem,) = class_problems([train, same], 80)
    assert problem.done == ""
    assert problem.where == ("1 (square), and the network has 80; set its NUM_CLASSES to 1.",)
    circles = run(copy, "circles", categories=[{**content["categories"][0], "name": "circle"}])
    (problem,) = class_problems([train, same, circles], 1)
    (where,) = problem.where
    assert "x has square, and circles has circle: they have none in common" in where
    assert "give the annotations of x and circles the categories square, circle; and set NUM_CLASSES 2" in where


@pytest.mark.parametrize(("size", "fits"), [((48, 40), True), ((193, 160), True), ((80, 96), False), ((96, 70), False)])
def test_the_same_shape_allows_for_rounding(size: tuple[int, int], fits: bool) -> None:
    assert same_shape(size, (96, 80)) is fits
