"""The certificate of a network that was built a moment ago, on one picture."""

import json
from pathlib import Path

import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.run import Run
from ode_detect.engine.tasks import get_task
from ode_detect.studies.certify import certify_run
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART

SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8"]
SMALL += ["MODEL.DEVICE", "cpu"]


def a_run(folder: Path, *more: str) -> Run:
    cfg = load_config(QUICKSTART, [*SMALL, "OUTPUT_DIR", str(folder / "run"), *more])
    return Run(cfg, get_task(cfg), folder / "certificate", "certify", str(QUICKSTART))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_network(load_config(QUICKSTART, SMALL)).state_dict()}, path)
    return str(path)


def test_the_certificate_says_what_it_is_about(weights: str, tmp_path: Path) -> None:
    report = certify_run(a_run(tmp_path), weights=weights, size=32)
    assert report.right
    content = json.loads((tmp_path / "certificate" / "certificate.json").read_text())
    assert content["command"] == "certify"
    assert content["config"] == str(QUICKSTART)
    assert content["weights"] == weights
    assert content["picture"] == "random, 32 x 32"
    assert content["model_output"] == "feature maps of the backbone"
    assert list(content["blocks"]) == [f"backbone.bottom_up.{stage}.1.flow" for stage in ("res2", "res3", "res4")]
    again = certify_run(a_run(tmp_path), weights=weights, size=32).to_dict()["blocks"]
    assert {name: block["flow"] for name, block in again.items()} == {
        name: block["flow"] for name, block in content["blocks"].items()
    }, "the picture is drawn with the config's seed"


@pytest.mark.parametrize(
    ("more", "size", "message"),
    [
        ([], 31, "32 pixels a side or more, not 31"),
        (["DATASETS.TEST", "()"], None, "DATASETS.TEST is empty"),
        (["MODEL.ODE.ROLE", "twin", "MODEL.ALLOW_PARTIAL_WEIGHTS", "True"], 32, "has none: MODEL.ODE.ROLE is 'twin'"),
    ],
)
def test_what_cannot_be_certified_is_refused(
    more: list[str], size: int | None, message: str, weights: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        certify_run(a_run(tmp_path, *more), weights=weights, size=size)
    assert not (tmp_path / "certificate").exists()
