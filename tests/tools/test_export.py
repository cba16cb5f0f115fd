from pathlib import Path

import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.launch import run_tool

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8"]
SMALL += ["MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_network(load_config(QUICKSTART, SMALL)).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_the_backbone_of_a_detector(format: str, tool, weights: str, tmp_path: Path, capsys) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    arguments = ["--config-file", QUICKSTART, "--weights", weights, "--output", str(tmp_path), "--format", format]
    assert run_tool(tool.main, [*arguments, "--size", "64", "96", *SMALL]) == 0
    path = tmp_path / {"onnx": "backbone.onnx", "torch": "backbone.pt2"}[format]
    printed = capsys.readouterr().out
    assert f"{path}: picture ('batch', 3, 64, 96) -> p2, p3, p4" in printed
    assert "relative error: p2" in printed
    model = build_network(load_config(QUICKSTART, SMALL)).eval()
    model.load_state_dict(torch.load(weights)["model"])
    picture = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image([{"image": picture[0]}]).tensor)
    if format == "torch":
        given = torch.export.load(path).module()(picture)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = dict(
            zip(expected, map(torch.from_numpy, session.run(list(expected), {"image": picture.numpy()})), strict=True)
        )
    for name, wanted in expected.items():
        torch.testing.assert_close(given[name], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_weights_that_are_named_win_over_the_run(tool, weights: str, tmp_path: Path) -> None:
    """As for every tool: MODEL.WEIGHTS on the command line, then the run in OUTPUT_DIR."""
    model = build_network(load_config(QUICKSTART, SMALL))
    (tmp_path / "run").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "run" / "model_final.pth")
    (tmp_path / "run" / "last_checkpoint").write_text("model_final.pth")
    picture = torch.rand(1, 3, 32, 32) * 255
    given = {}
    for name, more in (("run", []), ("named", ["MODEL.WEIGHTS", weights])):
        arguments = ["--config-file", QUICKSTART, "--output", str(tmp_path / name), "--format", "torch", *SMALL, *more]
        assert run_tool(tool.main, [*arguments, "--size", "32", "32", "OUTPUT_DIR", str(tmp_path / "run")]) == 0
        given[name] = torch.export.load(tmp_path / name / "backbone.pt2").module()(picture)["p2"]
    model.eval()
    with torch.no_grad():
        expected = model.backbone(model.preprocess_image([{"image": picture[0]}]).tensor)["p2"]
    torch.testing.assert_close(given["run"], expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(given["named"], given["run"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "60", "96"], "multiples of 16, not 60 x 96"),
        (["--format", "onx"], "Did you mean 'onnx'?"),
        (["--weights", "none.pth"], "there is no checkpoint 'none.pth'"),
        (["--weights", ""], "there are no weights"),
        (["MODEL.ODE.METHOD", "dopri5"], "which chooses its steps; set a FixedStep"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "['p2','p3']"], "RetinaNet; export"),
    ],
)
def test_mistakes_end_in_a_message_and_exit_code_2(
    arguments: list[str], message: str, tool, weights: str, tmp_path: Path, capsys
) -> None:
    given = ["--config-file", QUICKSTART, "--weights", weights, "--output", str(tmp_path), "--size", "32", "32"]
    assert run_tool(tool.main, [*given, *SMALL, "OUTPUT_DIR", str(tmp_path / "none"), *arguments]) == 2
    assert message in capsys.readouterr().err
