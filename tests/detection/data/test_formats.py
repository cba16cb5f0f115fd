import json
import os
from pathlib import Path
from typing import Any

import pytest

from ode_detect.detection.data.custom import Source
from ode_detect.media.errors import DatasetError

SHARED = Path(os.environ.get("ODE_DETECT_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def refused(tmp_path: Path, annotations: Path) -> str:
    (tmp_path / "images").mkdir(exist_ok=True)
    with pytest.raises(DatasetError) as caught:
        Source("x", tmp_path / "images", annotations).read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"classes.txt": "cat", "1.txt": "0 0.5 0.5 0.2 0.2\n", "2.txt": ""}, "2 text files, and 1.txt is YOLO's"),
        ({"train/1.txt": "12 .5 .5 1e-1 0.2 0.4 0.4"}, "1 text files, and 1.txt is YOLO's"),
        ({"1.json": {"shapes": [], "imagePath": "1.jpg"}}, "1 JSON files. It seems to be one picture of labelme."),
        ({"a.json": {"images": [], "annotations": [], "categories": []}}, "COCO JSON; name the file as ANNOTATIONS: "),
        ({"deep/1.xml": "<annotation/>"}, "XML files in its folders deep; name the one"),
        ({"1.csv": "a,b"}, "1 files, and none of them is XML or JSON. COCO JSON or VOC XML is read: export"),
        ({"1.json": "no json"}, "has none."),
        ({}, "It is empty."),
    ],
)
def test_a_folder_of_another_format_is_recognised(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    message = refused(tmp_path, folder)
    assert f"VOC XML is one file ID.xml for each picture, and {folder} has none" in message
    assert said in message
    assert "0 of 0" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"id": 1, "annotations": [], "data": {"image": "1.jpg"}}], "tasks of Label Studio"),
        ([{"image": "1.jpg", "annotations": [{"label": "a", "coordinates": {}}]}], "CreateML"),
        ({"1.jpg123": {"filename": "1.jpg", "regions": []}}, "VIA"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "put the list into it"),
        ({"a": 1}, "datasets/README.md"),
        ([], "datasets/README.md"),
        ([[]], "datasets/README.md"),
    ],
)
def test_json_of_another_format_is_recognised(tmp_path: Path, content: Any, said: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert said in refused(tmp_path, tmp_path / "x.json")


def test_files_that_cannot_be_coco_json_are_told_by_their_names(tmp_path: Path) -> None:
    for name, said in (("annotations.xml", "CVAT's"), ("data.yaml", "export the annotations as COCO")):
        (tmp_path / name).write_text("names: [cat]")
        assert said in refused(tmp_path, tmp_path / name)


def test_cvat_s_xml_in_a_folder_is_not_one_picture_of_voc(tmp_path: Path) -> None:
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "annotations.xml").write_text("<annotations><image id='0' name='1.jpg'/></annotations>")
    assert "Export the task as COCO 1.0" in refused(tmp_path, tmp_path / "xml")


def test_label_studio_s_own_tasks_are_told_how_to_export_coco(tmp_path: Path) -> None:
    files = sorted((SHARED / "quirky" / "labelstudio_tasks_json").glob("*.json"))
    if not files:
        pytest.skip("needs quirky: put it into ../shared/data, or set ODE_DETECT_SHARED_DATA")
    assert "It seems to be tasks of Label Studio. COCO JSON or VOC XML is read" in refused(tmp_path, files[0])
