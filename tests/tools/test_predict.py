import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8"]
SMALL += ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    model = build_network(load_config(QUICKSTART, SMALL))
    torch.save({"model": model.state_dict(), "categories": [{"id": 1, "name": "square"}]}, path)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for index in range(2):
        image = np.random.default_rng(index).integers(0, 255, (64, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.jpg"), image)
    return tmp_path / "photos"


def command(weights: str, *more: str) -> list[str]:
    return ["--config-file", QUICKSTART, "--weights", weights, *more]


def test_pictures_and_records(weights: str, photos: Path, tool, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    # Keys may follow the inputs too.
    more = ["--output", str(out), "--batch", "2", "--score-threshold", "0.2", "--input", str(photos), *SMALL]
    assert run_tool(tool.main, [*command(weights, *more), "OUTPUT_DIR", str(tmp_path / "none")]) == 0
    content = json.loads((out / "predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.jpg", "1.jpg"]
    assert content["annotations"]
    assert all(a["score"] >= 0.2 for a in content["annotations"])
    assert content["info"]["command"].startswith("python tools/predict.py --config-file")
    assert sorted(p.name for p in (out / "drawn").iterdir()) == ["0.jpg", "1.jpg"]
    printed = capsys.readouterr().out
    assert "2 inputs done\n2 pictures: " in printed
    assert "a second in the network" in printed


def test_a_broken_picture_is_exit_code_1(weights: str, photos: Path, tool, tmp_path: Path) -> None:
    (photos / "0.jpg").write_bytes((photos / "0.jpg").read_bytes()[:900])
    arguments = command(weights, "--output", str(tmp_path / "out"), "--input", str(photos), *SMALL)
    with pytest.raises(SystemExit, match="1"):
        run_tool(tool.main, arguments)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [len(content[key]) for key in ("images", "failed")] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "none", "--output", "out"], "none is not there"),
        (["--input", ".", "--output", "out"], "is a folder without pictures"),
        (["--input", "PHOTOS", "--output", "out", "--weights", "none.pth"], "there is no checkpoint 'none.pth'"),
        (["--input", "PHOTOS", "--output", "out", "MODEL.ODE.STEP", "2"], "did you mean MODEL.ODE.STEPS?"),
    ],
)
def test_mistakes_end_in_a_message_and_exit_code_2(
    arguments: list[str], message: str, weights: str, photos: Path, tool, tmp_path: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = [str(photos) if word == "PHOTOS" else word for word in arguments]
    assert run_tool(tool.main, [*command(weights), *SMALL, *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "here" / "out").exists()


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--score-threshold", "50"]])
def test_values_out_of_range_are_refused(arguments: list[str], tool, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.parse([*command("w"), "--input", "a", "--output", "b", *arguments])
    assert "1 or more" in (err := capsys.readouterr().err) or "[0, 1]" in err
