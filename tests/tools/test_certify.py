import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.launch import run_tool
from ode_detect.ode.certification.gradients import GradientReport, ModeReport
from ode_detect.ode.certification.model import BlockReport, Report
from ode_detect.studies import certify as engine

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """The quickstart network with random weights; flows that do something."""
    torch.manual_seed(0)
    model = build_network(load_config(QUICKSTART))
    for name, parameter in model.named_parameters():
        if ".flow." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def test_the_first_test_picture_is_certified(
    tool, weights: str, squares_run: Callable[..., list[str]], tmp_path: Path, capsys
) -> None:
    overrides = squares_run("run")
    assert run_tool(tool.main, [*overrides[:2], "--config-file", QUICKSTART, "--weights", weights, *overrides[2:]]) == 0
    printed = capsys.readouterr().out
    certificate = json.loads((tmp_path / "run" / "certificate" / "certificate.json").read_text())
    flows = [f"backbone.bottom_up.{stage}.1.flow" for stage in ("res2", "res3", "res4")]
    assert list(certificate["blocks"]) == flows
    for name in flows:
        block = certificate["blocks"][name]
        assert block["calls"] == 1
        assert {mode["mode"]: mode["verdict"] for mode in block["gradients"]["modes"]} == {
            "backprop": "exact",
            "checkpoint": "exact",
            "binomial": "exact",
            "reversible": "exact",
            "adjoint": "inexact",
        }
        half, *_ = block["flow"]["changes"]
        assert half["of_model"] > 0
        assert name in printed
    assert certificate["together"]["half the step"] > 0
    assert certificate["weights"] == weights
    assert certificate["picture"].endswith("0.png")
    assert certificate["command"].startswith("python tools/certify.py ")
    assert certificate["verdict"] in ("flow", "Euler-only")
    assert printed.count("verdict: ") == 3
    assert str(tmp_path / "run" / "certificate" / "certificate.json") in printed


def test_a_random_picture_needs_no_data_set(tool, weights: str, tmp_path: Path) -> None:
    def certify(size: str, folder: str) -> dict:
        arguments = ["--config-file", QUICKSTART, "--random", size, "--output", str(tmp_path / folder)]
        arguments += ["MODEL.WEIGHTS", weights, "DATASETS.TEST", "()"]
        assert run_tool(tool.main, arguments) == 0
        return json.loads((tmp_path / folder / "certificate.json").read_text())

    once, again = certify("64", "once"), certify("64", "again")
    assert once["picture"] == "random, 64 x 64"
    assert [block["shape"] for block in once["blocks"].values()] == [[1, 32, 16, 16], [1, 64, 8, 8], [1, 128, 4, 4]]
    for name, block in once["blocks"].items():
        assert block["flow"] == again["blocks"][name]["flow"]


def test_a_gradient_that_is_not_right_is_exit_code_1(
    tool, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    wrong = GradientReport((ModeReport("backprop", "exact"), ModeReport("checkpoint", "WRONG")))
    report = Report({"res4.flow": BlockReport(1, gradients=wrong)}, {})
    monkeypatch.setattr(engine, "certify_run", lambda *_, **__: report)
    with pytest.raises(SystemExit) as stop:
        run_tool(tool.main, ["--config-file", QUICKSTART, "--output", str(tmp_path), "--weights", weights])
    assert stop.value.code == 1
    assert "gradients of res4.flow that are WRONG or failed: checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.ODE.ROLE", "twin", "MODEL.ALLOW_PARTIAL_WEIGHTS", "True"], "MODEL.ODE.ROLE is 'twin'"),
        (["--weights", "none.pth"], "there is no checkpoint 'none.pth'"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["--random", "16"], "32 pixels a side or more, not 16"),
        (["MODEL.ODE.METHDO", "rk4"], "did you mean MODEL.ODE.METHOD?"),
        (["DATASETS.TEST", "()"], "use --random 224"),
        (["DATASETS.TEST", "('nowhere',)"], "nowhere"),
    ],
)
def test_mistakes_end_in_a_message_and_exit_code_2(
    arguments: list[str], message: str, tool, weights: str, tmp_path: Path, capsys
) -> None:
    given = [] if "--random" in arguments or "DATASETS.TEST" in arguments else ["--random", "64"]
    common = ["--config-file", QUICKSTART, "OUTPUT_DIR", str(tmp_path / "run"), "MODEL.WEIGHTS", weights]
    assert run_tool(tool.main, [*common, *given, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
