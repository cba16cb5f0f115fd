from pathlib import Path

import pytest
import torch

from ode_detect.backbones import CifarResNet
from ode_detect.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(CifarResNet(blocks=3).state_dict(), tmp_path / "resnet20.pth")
    return tmp_path / "resnet20.pth"


def test_there_and_back(tool, weights: Path, tmp_path: Path, capsys) -> None:
    to = ["--output", str(tmp_path / "ode"), "--weights", str(weights), "--model", "cifar:resnet20"]
    assert run_tool(tool.main, to) == 0
    out = capsys.readouterr().out
    assert "outputs, training" in out
    assert "certificate.json, certificate.txt, ode_model.pth" in out
    checkpoint = str(tmp_path / "ode" / "ode_model.pth")
    assert run_tool(tool.main, ["--weights", checkpoint, "--output", str(tmp_path / "back"), "--reverse"]) == 0
    assert str(tmp_path / "back" / "model.pth") in capsys.readouterr().out
    original, back = (torch.load(file, weights_only=True) for file in (weights, tmp_path / "back" / "model.pth"))
    assert list(back) == list(original)
    assert all(torch.equal(back[name], original[name]) for name in original)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "cifar:resnet56"], "does not fit cifar:resnet56"),
        (["--model", "torchvision:squeezenet1_1"], "does not fit torchvision:squeezenet1_1"),
        (["--model", "cifar:resnet57"], "Did you mean 'resnet56'"),
        (["--reverse"], "not an ODE checkpoint"),
        (["--config-file", "none.yaml"], "there is no config file"),
        (["--config-file", str(ROOT / "configs/faster_rcnn_ode.yaml"), "MODEL.ODE.PIECES", "hat"], "PIECES hat"),
    ],
)
def test_a_mistake_is_told_and_coded(
    tool, arguments: list[str], said: str, weights: Path, tmp_path: Path, capsys
) -> None:
    assert run_tool(tool.main, ["--weights", str(weights), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what the weights are of"),
        (["--model", "cifar:resnet20", "MODEL.ODE.STEPS", "2"], "there is no --config-file"),
        (["--model", "cifar:resnet20", "--config-file", "c.yaml"], "not allowed with"),
        (["--model", "cifar:resnet20", "--reverse"], "leave --model out with --reverse"),
    ],
)
def test_a_wrong_command_line_is_told(tool, arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.parse(["--weights", "w.pth", "--output", "out", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
