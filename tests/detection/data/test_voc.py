import os
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode

from ode_detect.detection.data.annotations import repair, to_records
from ode_detect.detection.data.voc import read_voc, write_voc
from ode_detect.media.errors import DatasetError

ROOT = Path(__file__).resolve().parents[3]
OBJECT = (
    "<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def write(root: Path, name: str, objects: str = "", *, size: str = "", suffix: str = ".jpg", said: str = "") -> None:
    (root / "xml").mkdir(exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    if suffix:
        cv2.imwrite(str(root / "images" / f"{name}{suffix}"), np.full((40, 60, 3), 99, np.uint8))
    size = size or "<size><width>60</width><height>40</height></size>"
    text = f"<annotation><filename>{said}</filename>{size}{objects}</annotation>"
    (root / "xml" / f"{name}.xml").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "a b", OBJECT.format("dog", "<difficult>1</difficult>", 1, 1, 60, 40))
    write(tmp_path, "c", OBJECT.format("cat", "", 11, 6, 20, 15) + OBJECT.format("dog", "", 5, 5, 5, 5))
    write(tmp_path, "d")
    return tmp_path


def test_boxes_count_from_one_and_difficult_objects_are_ignored(root: Path) -> None:
    content, problems = read_voc(root / "xml", root / "images")
    assert problems == []
    assert [image["file_name"] for image in content["images"]] == ["a b.jpg", "c.jpg", "d.jpg"]
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    first, second, third = content["annotations"]
    assert (first["bbox"], first["iscrowd"], first["category_id"]) == ([0, 0, 60, 40], 1, 2)
    assert (second["bbox"], second["area"], second["iscrowd"]) == ([10, 5, 10, 10], 100, 0)
    assert third["bbox"][2:] == [0, 0], "what starts where it ends has no area"
    repaired, (problem,) = repair(content, root / "images")
    assert str(problem) == "1 boxes without width or height, dropped: annotation 3 of c.jpg, bbox [4, 4, 0, 0]"
    records = to_records(repaired, root / "images")
    assert [len(r["annotations"]) for r in records] == [1, 1, 0]
    assert records[0]["annotations"][0]["difficult"] == 1


def test_a_split_and_classes_choose_and_order(root: Path) -> None:
    (root / "split.txt").write_text("c\n\na b\nc\n")
    content, (problem,) = read_voc(root / "xml", root / "images", split=root / "split.txt", classes=["dog", "cat"])
    assert [image["file_name"] for image in content["images"]] == ["c.jpg", "a b.jpg"]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1, 1]
    assert "ids more than once" in problem.rule
    assert problem.where == ("c",)
    assert problem.done == "read once"


def test_an_object_of_no_class_is_told(root: Path) -> None:
    content, (problem,) = read_voc(root / "xml", root / "images", classes=["dog"])
    assert str(problem) == "1 names that are not among the classes (dog): 'cat' (1 objects)"
    assert len(content["annotations"]) == 2


def test_a_missing_size_is_taken_from_the_picture(root: Path) -> None:
    write(root, "e", size="<size><width>0</width></size>")
    content, problems = repair(read_voc(root / "xml", root / "images")[0], root / "images")
    assert (content["images"][3]["width"], content["images"][3]["height"]) == (60, 40)
    assert problems[0].done == "taken from the picture"


def test_the_picture_may_have_the_name_that_the_xml_says(root: Path) -> None:
    write(root, "e", suffix="", said="photo.png")
    cv2.imwrite(str(root / "images" / "photo.png"), np.zeros((40, 60, 3), np.uint8))
    assert read_voc(root / "xml", root / "images")[0]["images"][3]["file_name"] == "photo.png"
    cv2.imwrite(str(root / "images" / "c.png"), np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"there are c\.jpg, c\.png"):
        read_voc(root / "xml", root / "images")
    write(root, "c", said="c.png")
    assert read_voc(root / "xml", root / "images")[0]["images"][1]["file_name"] == "c.png"


@pytest.mark.parametrize("said", ["c.jpg", "c", "IMG_0001.JPG", ""])
def test_of_the_files_beside_each_other_the_pictures_are_the_pictures(root: Path, said: str) -> None:
    for name in ("a b", "c", "d"):
        write(root, name, said=said)
        (root / "xml" / f"{name}.xml").rename(root / "images" / f"{name}.xml")
        for other in (f"{name}.txt", f"._{name}.xml", f"._{name}.jpg", f".{name}.jpg"):
            (root / "images" / other).write_text("0 0.5 0.5 0.1 0.1")
    content, problems = read_voc(root / "images", root / "images")
    assert problems == []
    assert [image["file_name"] for image in content["images"]] == ["a b.jpg", "c.jpg", "d.jpg"]


def test_labels_of_another_program_are_no_picture(root: Path) -> None:
    (root / "images" / "c.jpg").rename(root / "images" / "c.txt")
    content, (problem,) = read_voc(root / "xml", root / "images")
    assert problem.rule == "pictures that are not there"
    assert [image["file_name"] for image in content["images"]] == ["a b.jpg", "d.jpg"]


def test_of_two_pictures_the_xml_names_one_by_the_path_of_any_system(root: Path) -> None:
    cv2.imwrite(str(root / "images" / "c.png"), np.zeros((40, 60, 3), np.uint8))
    for said in ("c.png", "C:\\photos\\c.png", "/home/somebody/c.png"):
        write(root, "c", said=said)
        assert read_voc(root / "xml", root / "images")[0]["images"][1]["file_name"] == "c.png"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_split_may_have_a_byte_order_mark(root: Path, encoding: str) -> None:
    (root / "split.txt").write_bytes("c\r\na b\r\n".encode(encoding))
    content, problems = read_voc(root / "xml", root / "images", split=root / "split.txt")
    assert problems == []
    assert [image["file_name"] for image in content["images"]] == ["c.jpg", "a b.jpg"]


def test_a_split_in_another_encoding_is_refused(root: Path) -> None:
    (root / "split.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"split\.txt is not .*save it as UTF-8"):
        read_voc(root / "xml", root / "images", split=root / "split.txt")


def test_decomposed_names_are_the_composed_ones(tmp_path: Path) -> None:
    decomposed, composed = unicodedata.normalize("NFD", "caf\xe9"), "caf\xe9"
    write(tmp_path, decomposed, OBJECT.format(decomposed, "", 1, 1, 9, 9))
    (tmp_path / "split.txt").write_text(composed)
    (tmp_path / "images" / f"{decomposed}.jpg").rename(tmp_path / "images" / f"{composed}.jpg")
    content, problems = read_voc(
        tmp_path / "xml", tmp_path / "images", split=tmp_path / "split.txt", classes=[composed]
    )
    assert problems == []
    assert [image["file_name"] for image in content["images"]] == [f"{composed}.jpg"]
    assert len(content["annotations"]) == 1


def test_names_in_chinese_encodings_and_several_lines_are_read(root: Path) -> None:
    (root / "xml" / "d.xml").write_bytes(
        (
            "<?xml version='1.0' encoding='GB2312'?>\r\n<annotation>" + OBJECT.format("\n红\n  细胞\n", "", 1, 1, 9, 9)
        ).encode("gb2312")
        + b"</annotation>"
    )
    assert read_voc(root / "xml", root / "images")[0]["categories"][-1]["name"] == "红 细胞"


def test_suffixes_in_capitals_are_read_and_two_of_one_name_are_refused(root: Path) -> None:
    (root / "xml" / "c.xml").rename(root / "xml" / "c.XML")
    assert len(read_voc(root / "xml", root / "images")[0]["images"]) == 3
    write(root, "c")
    with pytest.raises(DatasetError, match=r"there are c\.XML, c\.xml"):
        read_voc(root / "xml", root / "images")


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_numbers_beyond_all_measure_are_boxes_that_are_not_finite_or_outside(root: Path, digits: int) -> None:
    write(
        root, "d", OBJECT.format("dog", "", 1, 1, "9" * digits, 9), size=f"<size><width>{'9' * digits}</width></size>"
    )
    content, problems = repair(read_voc(root / "xml", root / "images")[0], root / "images")
    assert all(problem.done for problem in problems)
    assert len(content["annotations"]) < 4 or content["annotations"][-1]["bbox"] == [0, 0, 60, 9]


def test_missing_pictures_are_listed(root: Path) -> None:
    write(root, "e", suffix="", said="no.png")
    content, (problem,) = read_voc(root / "xml", root / "images")
    assert problem.rule == "pictures that are not there"
    assert problem.done == ""
    assert len(content["images"]) == 3


@pytest.mark.parametrize(
    ("split", "message"),
    [("c\nx\n", "1 of 2 have none: x"), ("", "0 of 0 have none"), ("c -1\n", "second column")],
)
def test_a_split_that_does_not_fit_is_refused(root: Path, split: str, message: str) -> None:
    (root / "split.txt").write_text(split)
    with pytest.raises(DatasetError, match=message):
        read_voc(root / "xml", root / "images", split=root / "split.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is not XML"),
        ("<annotation><object><name>cat</name></object></annotation>", "has a name and a bndbox"),
        (f"<annotation>{OBJECT.format('', '', 1, 1, 2, 2)}</annotation>", "has a name"),
        (f"<annotation>{OBJECT.format('cat', '', 1, 'x', 2, 2)}</annotation>", "has a name and a bndbox"),
    ],
)
def test_a_broken_file_is_named(root: Path, text: str, message: str) -> None:
    (root / "xml" / "c.xml").write_text(text)
    with pytest.raises(DatasetError, match=rf"(?s)(c\.xml.*{message}|{message}.*c\.xml)"):
        read_voc(root / "xml", root / "images")


def test_what_is_written_is_read_again(root: Path, tmp_path: Path) -> None:
    content, _ = repair(read_voc(root / "xml", root / "images")[0], root / "images")
    write_voc(content, tmp_path / "out", "all")
    again, problems = read_voc(
        tmp_path / "out" / "Annotations",
        root / "images",
        split=tmp_path / "out" / "ImageSets" / "Main" / "all.txt",
        classes=["cat", "dog"],
    )
    assert problems == []
    assert again["annotations"] == content["annotations"]
    assert again["images"] == content["images"]


def test_the_raw_bccd_annotations_are_read_as_detectron2_reads_them() -> None:
    bccd = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data")) / "bccd" / "BCCD"
    if not bccd.is_dir():
        pytest.skip("needs BCCD: put it into ../shared/data, or set ODE_DETECT_SHARED_DATA")
    classes, split = ["RBC", "WBC", "Platelets"], bccd / "ImageSets" / "Main" / "trainval.txt"
    content, problems = read_voc(bccd / "Annotations", bccd / "JPEGImages", split=split, classes=classes)
    content, found = repair(content, bccd / "JPEGImages")
    assert problems == []
    (problem,) = found
    assert [p.split(" of ")[1].split(",")[0] for p in problem.where] == ["BloodImage_00338.jpg", "BloodImage_00343.jpg"]
    ours, theirs = to_records(content, bccd / "JPEGImages"), load_voc_instances(str(bccd), "trainval", classes)
    assert len(ours) == len(theirs) == 292
    assert Counter(classes[a["category_id"]] for r in ours for a in r["annotations"]) == {
        "RBC": 3348,
        "WBC": 301,
        "Platelets": 292,
    }
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["file_name"] == other["file_name"]
        boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in mine["annotations"]]
        # A box of Detectron2 that is 1 pixel wide and high is one of the two without area.
        wanted = [a["bbox"] for a in other["annotations"] if a["bbox"][2] - a["bbox"][0] > 1]
        assert boxes == wanted


@pytest.mark.parametrize(("mark", "crowd"), [("1", 1), ("True", 1), ("0", 0), ("", 0), ("Unspecified", 0)])
def test_difficult_is_one_or_true(tmp_path: Path, mark: str, crowd: int) -> None:
    write(tmp_path, "a", OBJECT.format("dog", f"<difficult>{mark}</difficult>", 1, 1, 30, 30))
    content, _ = read_voc(tmp_path / "xml", tmp_path / "images")
    assert content["annotations"][0]["iscrowd"] == crowd


@pytest.mark.parametrize(("whole", "form"), [(1, "shares of the picture"), (100, "percentages")])
def test_boxes_that_are_no_pixels_are_told(tmp_path: Path, whole: int, form: str) -> None:
    for i in range(8):
        shares = (0.1 + i / 20, 0.2, 0.9, 0.5 + i / 20)
        large = "<size><width>1000</width><height>1000</height></size>"
        write(tmp_path, str(i), OBJECT.format("dog", "", *(whole * share for share in shares)), size=large)
    content, _ = read_voc(tmp_path / "xml", tmp_path / "images")
    after, (problem,) = repair(content, tmp_path / "images")
    assert problem.rule.endswith(f"probably {form}")
    assert problem.done.startswith("kept; multiply x and width by the picture's width")
    assert len(problem.where) == len(after["annotations"]) == 8
