import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ode_detect.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--config-file", "c.yaml", "--images", "x"],
        ["--images", "x"],
        ["--images", "x", "--annotations", "y", "SEED", "1"],
        ["--config-file", "c.yaml", "--draw", "-1"],
    ],
)
def test_flags_that_make_no_sense_are_refused(tool: ModuleType, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.parse(flags)
    assert stop.value.code == 2


def test_a_folder_is_checked_drawn_and_reported(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--images", str(squares / "images"), "--annotations", str(squares / "train.json")]
    assert run_tool(tool.main, [*where, "--output", str(tmp_path / "out"), "--draw", "2"]) == 0
    printed = capsys.readouterr().out
    assert "train: 8 pictures, 2 without objects, 18 objects, 0 ignored" in printed
    assert "nothing is wrong" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["check.json", "train.png", "train_samples.jpg"]
    (found,) = json.loads((tmp_path / "out" / "check.json").read_text())["datasets"]
    assert found["classes"] == {"square": 18}
    assert run_tool(tool.main, [*where[:3], str(tmp_path / "no.json")]) == 2
    assert "no.json" in capsys.readouterr().err


def test_the_config_of_a_classifier_is_refused(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "classification" / "mnist_odenet.yaml"
    assert run_tool(tool.main, ["--config-file", str(config)]) == 2
    assert "boxes are checked here, and TASK of" in capsys.readouterr().err


def test_a_config_is_checked_and_repaired_and_the_repaired_copy_is_in_order(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(squares / "images", tmp_path / "images")
    content = json.loads((squares / "train.json").read_text())
    content["annotations"][0]["bbox"][3] = 0
    parts = {"train": content["images"][:5], "test": content["images"][4:]}
    custom = []
    for part, images in parts.items():
        kept = [a for a in content["annotations"] if a["image_id"] in {i["id"] for i in images}]
        (tmp_path / f"{part}.json").write_text(json.dumps({**content, "images": images, "annotations": kept}))
        names = {"NAME": f"{part}_{tmp_path.name}", "IMAGES": str(tmp_path / "images")}
        custom.append({**names, "ANNOTATIONS": str(tmp_path / f"{part}.json")})
    begin = f"_BASE_: {QUICKSTART}\nINPUT: {{MIN_SIZE_TEST: 48}}\n"  # 0.6 of the pictures' 80 pixels
    (tmp_path / "c.yaml").write_text(
        begin
        + yaml.safe_dump({"DATASETS": {"CUSTOM": custom, "TRAIN": [custom[0]["NAME"]], "TEST": [custom[1]["NAME"]]}})
    )
    flags = ["--config-file", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        tool.main([*flags, "--fix", str(tmp_path / "fixed")])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "wrong: 1 boxes without width or height, dropped: annotation 1 of 0.png" in printed
    assert "wrong: 1 pictures in train" in printed
    assert "have an anchor of about their shape" in printed
    assert "left out: 4.png" in (tmp_path / "fixed" / "changes.txt").read_text()
    (tmp_path / "f.yaml").write_text(begin + (tmp_path / "fixed" / "custom.yaml").read_text())
    assert run_tool(tool.main, ["--config-file", str(tmp_path / "f.yaml"), "--output", str(tmp_path / "again")]) == 0


def test_what_the_network_would_see_is_wrong_where_training_and_test_do_not_fit(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((squares / "train.json").read_text())
    parts, names = ("square", "circle"), [f"{part} {tmp_path.name}" for part in ("train", "test")]
    for part, name in zip(parts, names, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": part}]}))
    where = [{"NAME": n, "IMAGES": str(squares / "images"), "ANNOTATIONS": str(tmp_path / f"{n}.json")} for n in names]
    (tmp_path / "c.yaml").write_text(
        f"_BASE_: {QUICKSTART}\n"
        + yaml.safe_dump({"DATASETS": {"CUSTOM": where, "TRAIN": [names[0]], "TEST": [names[1]]}})
    )
    flags = ["--config-file", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        tool.main([*flags, "MODEL.ANCHOR_GENERATOR.SIZES", "[[100], [200]]"])
    assert stop.value.code == 1
    printed = capsys.readouterr().out
    assert "in pixels of the network's input in training" in printed
    assert "in pixels of the network's input in the test" in printed
    assert "wrong: 1 data sets with other classes than the first: " in printed
    assert "they have none in common; if they mean the same, correct the names first" in printed
    assert f"0.0 % of the objects of {names[0]} have an anchor" in printed
    assert "so objects are 4.3 times as large in the test. Set INPUT.MIN_SIZE_TEST to about 48 (it is 207)" in printed
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert [list(one["seen in"]) for one in report["datasets"]] == [["training"], ["the test"]]
    sizes = [next(iter(one["seen in"].values()))["median size"] for one in report["datasets"]]
    assert sizes[1] / sizes[0] == pytest.approx(4.3, rel=0.05)
    assert run_tool(tool.main, [*flags, "MODEL.ANCHOR_GENERATOR.SIZES", "[[12, 17], [29]]"]) == 2
    assert "there are 2 on p2, 1 on p3" in capsys.readouterr().err


def test_annotations_that_cannot_be_used_at_all_are_wrong(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("{}")
    where = ["--images", str(squares / "images"), "--annotations", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit) as stop:
        tool.main([*where, "--output", str(tmp_path)])
    assert stop.value.code == 1
    assert "no such list 'images'" in capsys.readouterr().out


def test_no_picture_and_no_annotation_is_overwritten(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(squares, tmp_path / "data")
    data = tmp_path / "data"
    (data / "train.json").rename(data / "images" / "0.json")
    where = ["--images", str(data / "images"), "--annotations", str(data / "images" / "0.json")]
    before = {path: path.read_bytes() for path in data.rglob("*.*")}
    # The plot of a data set named 0 is 0.png.
    assert run_tool(tool.main, [*where, "--output", str(data / "images")]) == 2
    assert "0.png would be written, and is what is checked" in capsys.readouterr().err
    (data / "x_fixed.json").write_bytes((data / "images" / "0.json").read_bytes())
    entry = {"NAME": "x", "IMAGES": str(data / "images"), "ANNOTATIONS": str(data / "x_fixed.json")}
    datasets = {"CUSTOM": [entry], "TRAIN": ["x"], "TEST": ["x"]}
    (tmp_path / "c.yaml").write_text(f"_BASE_: {QUICKSTART}\n" + yaml.safe_dump({"DATASETS": datasets}))
    flags = ["--config-file", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out"), "--fix", str(data)]
    assert run_tool(tool.main, flags) == 2
    assert "x_fixed.json would be written" in capsys.readouterr().err
    (data / "x_fixed.json").unlink()
    assert {path: path.read_bytes() for path in data.rglob("*.*")} == before


def test_names_that_are_no_utf_8_are_drawn_and_repaired(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(squares / "images", tmp_path / "images")
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "caf\udce9.png")
    content = json.loads((squares / "train.json").read_text())
    content["images"][0]["file_name"] = "caf\udce9.png"
    content["annotations"][0]["bbox"][3] = 0
    (tmp_path / "a\udce9.json").write_text(json.dumps(content))
    flags = ["--images", str(tmp_path / "images"), "--annotations", str(tmp_path / "a\udce9.json")]
    with pytest.raises(SystemExit):
        run_tool(
            tool.main, [*flags, "--output", str(tmp_path / "out"), "--draw", "8", "--fix", str(tmp_path / "fixed")]
        )
    assert (tmp_path / "out" / "a\\udce9_samples.jpg").is_file()
    assert "caf\\udce9.png" in (tmp_path / "fixed" / "changes.txt").read_text()
    fixed = json.loads((tmp_path / "fixed" / "a\\udce9_fixed.json").read_text())
    assert fixed["images"][0]["file_name"] == "caf\udce9.png"


def test_a_data_set_whose_name_leads_elsewhere_is_not_reported_there(
    tool: ModuleType, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {
        "NAME": f"../{tmp_path.name}",
        "IMAGES": str(squares / "images"),
        "ANNOTATIONS": str(squares / "train.json"),
    }
    datasets = {"CUSTOM": [entry], "TRAIN": [entry["NAME"]], "TEST": [entry["NAME"]]}
    (tmp_path / "c.yaml").write_text(f"_BASE_: {QUICKSTART}\n" + yaml.safe_dump({"DATASETS": datasets}))
    flags = ["--config-file", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out")]
    assert run_tool(tool.main, flags) == 2
    assert "no slash" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(bbox=[v / 100 for v in a["bbox"]]), "18 boxes that lie within one pixel, probably shares"),
        (lambda a: a.update(iscrowd=1), "18 of 18 objects have iscrowd 1, and are left aside; write 0"),
        (lambda a: a.update(area=-a["area"]), "18 areas that do not fit the box"),
    ],
)
def test_what_would_give_silently_wrong_numbers_is_wrong(
    tool: ModuleType, squares: Path, tmp_path: Path, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((squares / "train.json").read_text())
    for annotation in content["annotations"]:
        change(annotation)
    (tmp_path / "x.json").write_text(json.dumps(content))
    where = ["--images", str(squares / "images"), "--annotations", str(tmp_path / "x.json")]
    with pytest.raises(SystemExit) as stop:
        tool.main([*where, "--output", str(tmp_path / "out"), "--fix", str(tmp_path / "fixed"), "--draw", "2"])
    assert stop.value.code == 1
    assert f"wrong: {said}" in capsys.readouterr().out.replace("1 data sets without an object that counts: ", "")
    assert len(json.loads((tmp_path / "fixed" / "x_fixed.json").read_text())["annotations"]) == 18


SHARED = Path(os.environ.get("ODE_DETECT_SHARED_DATA", ROOT.parent / "shared" / "data")) / "quirky"


def test_boxes_with_text_in_them_as_a_program_writes_them_are_read(tmp_path: Path, tool: ModuleType) -> None:
    folder = SHARED / "roboflow_bbox_strings_exif"
    if not folder.exists():
        pytest.skip("needs quirky: put it into ../shared/data, or set ODE_DETECT_SHARED_DATA")
    content = json.loads((folder / "_annotations.coco.json").read_text())
    content["images"] = [i for i in content["images"] if (folder / i["file_name"]).exists()]
    ids = {i["id"] for i in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    assert any(isinstance(v, str) for a in content["annotations"] for v in a["bbox"])
    (tmp_path / "x.json").write_text(json.dumps(content))
    where = ["--images", str(folder), "--annotations", str(tmp_path / "x.json"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        tool.main([*where, "--fix", str(tmp_path / "fixed")])
    fixed = json.loads((tmp_path / "fixed" / "x_fixed.json").read_text())
    assert len(fixed["annotations"]) == len(content["annotations"])
    assert {type(v) for a in fixed["annotations"] for v in a["bbox"]} <= {int, float}
