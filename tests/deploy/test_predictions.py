import json
from pathlib import Path

from pycocotools.coco import COCO

from ode_detect.deploy.predictions import FILE, PARTIAL, Predictions

CATEGORIES = [{"id": 7, "name": "cell"}]


def entry(name: str) -> dict:
    return {"file_name": name, "width": 50, "height": 40}


def record(score: float) -> dict:
    return {"category_id": 7, "bbox": [1.0, 2.0, 10.0, 5.0], "score": score, "area": 50.0, "iscrowd": 0}


def finish(predictions: Predictions, keys: list[str]) -> dict:
    return json.loads(predictions.finish(keys, info={"a": 1}, categories=CATEGORIES, failed=[]).read_text())


def test_the_file_is_a_data_set_and_its_annotations_are_results(tmp_path: Path) -> None:
    with Predictions(tmp_path, "s") as predictions:
        predictions.add("b", entry("b.png"), [record(0.9), record(0.8)])
        predictions.add("clip", {"file_name": "clip.mp4", "frames": 3})
        predictions.add("a", entry("ä.png"), [record(0.7)])
        content = finish(predictions, ["a", "b", "clip", "never done"])
    # In the order of the inputs, however they were done.
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [(1, "ä.png"), (2, "b.png")]
    assert [(a["id"], a["image_id"], a["score"]) for a in content["annotations"]] == [
        (1, 1, 0.7),
        (2, 2, 0.9),
        (3, 2, 0.8),
    ]
    assert content["videos"] == [{"file_name": "clip.mp4", "frames": 3}]
    assert content["info"] == {"a": 1}
    data = COCO(str(tmp_path / FILE))
    assert data.loadCats([7])[0]["name"] == "cell"
    assert len(data.loadRes(content["annotations"]).getAnnIds(imgIds=[2])) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [FILE]


def test_a_stopped_command_loses_nothing(tmp_path: Path) -> None:
    with Predictions(tmp_path, "s") as predictions:
        predictions.add("a", entry("a.png"), [record(0.7)])
        predictions.add("b", entry("b.png"), [record(0.6)])
    with (tmp_path / PARTIAL).open("ab") as file:
        file.write(b'{"key": "c", "entry": {"file_')  # killed while writing
    assert not (tmp_path / FILE).exists()
    with Predictions(tmp_path, "s") as predictions:
        assert [key in predictions for key in "abc"] == [True, True, False]
        assert (len(predictions), predictions.dropped) == (2, 0)
        predictions.add("c", entry("c.png"), [record(0.5)])
        content = finish(predictions, ["a", "b", "c"])
    assert [a["score"] for a in content["annotations"]] == [0.7, 0.6, 0.5]


def test_other_settings_begin_anew_and_tell(tmp_path: Path) -> None:
    with Predictions(tmp_path, "s") as predictions:
        predictions.add("a", entry("a.png"))
        predictions.add("b", entry("b.png"))
    with Predictions(tmp_path, "another") as predictions:
        assert (len(predictions), predictions.dropped) == (0, 2)
        assert finish(predictions, ["a"])["images"] == []


def test_an_earlier_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("before")
    with Predictions(tmp_path, "s") as predictions:
        predictions.add("a", entry("a.png"))
        assert (tmp_path / FILE).read_text() == "before"
        finish(predictions, ["a"])
    assert json.loads((tmp_path / FILE).read_text())["annotations"] == []


def test_a_name_that_is_no_utf_8_is_escaped_and_reads_as_itself(tmp_path: Path) -> None:
    entry = {"file_name": "caf\udce9 k\u00f6ln.png", "width": 1, "height": 1}
    with Predictions(tmp_path, "s") as kept:
        kept.add("caf\udce9", entry, [{"bbox": [0, 0, 1, 1]}])
        file = kept.finish(["caf\udce9"], info={}, categories=[], failed=[{"file_name": "\udcff", "error": "x"}])
    text = file.read_text(encoding="utf-8")
    assert "caf\\udce9 k\u00f6ln.png" in text
    content = json.loads(text)
    assert content["images"] == [{"id": 1, **entry}]
    assert content["annotations"][0]["file_name"] == entry["file_name"]
    assert content["failed"][0]["file_name"] == "\udcff"
