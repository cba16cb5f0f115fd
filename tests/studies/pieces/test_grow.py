"""Pieces of a small classifier, grown by splitting them."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.run import open_training
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import train
from ode_detect.report.results import Results
from ode_detect.studies.pieces.grow import Growth, grow
from ode_detect.task import ConfigError

from ...conftest import ROOT, overrides_for_shapes

CONFIG = str(ROOT / "configs" / "base" / "mnist.yaml")


TOOL = (sys.executable, str(ROOT / "tools" / "train_net.py"))


FLOW = [
    *("MODEL.ODE_NET.NORM", "BN", "MODEL.ODE.NORM", "BN", "MODEL.ODE.FIELD", "basic", "MODEL.CLASSIFIER.NORM", ""),
    *("MODEL.ODE.PIECES", "piecewise", "MODEL.ODE.NUM_PIECES", "4", "MODEL.ODE.STEPS", "4"),
    *("MODEL.ODE.METHOD", "euler", "MODEL.ODE.DURATION", "1", "SOLVER.EMA_DECAY", "0.0"),
]


def grown(shapes: Path, folder: Path, *more: str) -> Results:
    words = [*overrides_for_shapes(shapes, folder), *FLOW, "MODEL.ODE.NUM_PIECES", "2", "MODEL.ODE.STEPS", "2"]
    words += ["SOLVER.WARMUP_ITERS", "3", "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "0", *more]
    wanted = Growth(counts=(1, 2), iterations=(12, 8))
    return grow(CONFIG, words, wanted, tool=TOOL, command="grow", folder=folder)


def test_a_network_grows_and_is_held_against_one_that_was_whole_from_the_start(shapes: Path, tmp_path: Path) -> None:
    results = grown(shapes, tmp_path / "grown")
    assert [row.name for row in results.rows] == ["grown", "from_the_start"]
    assert results.rows[0].cost["parameters"] == results.rows[1].cost["parameters"]
    stages = [Results.read(tmp_path / "grown" / f"pieces_{count}" / "results.json").rows[0] for count in (1, 2)]
    minutes = sum(stage.cost["train_minutes"] for stage in stages)
    assert results.rows[0].cost["train_minutes"] == pytest.approx(minutes, abs=0.01)
    content = torch.load(tmp_path / "grown" / "pieces_2_start.pth", weights_only=True)
    assert [one["name"] for one in content["categories"]] == ["level", "upright"]
    start = content["model"]
    final = torch.load(tmp_path / "grown" / "pieces_1" / "model_final.pth", weights_only=True)["model"]
    conv = "backbone.s1.0.flow.field.pieces.{}.conv1.weight"
    assert torch.equal(start[conv.format(1)], final[conv.format(0)])
    assert json.loads((tmp_path / "grown" / "growth.json").read_text())["command"] == "grow"
    # What is finished is taken.
    began = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown").glob("*/model_final.pth")}
    assert grown(shapes, tmp_path / "grown").rows == results.rows
    assert began == {path: path.stat().st_mtime_ns for path in began}


@pytest.mark.parametrize(
    ("counts", "iterations", "why"),
    [((1, 3), (1, 1), "do not double"), ((2,), (1,), "do not double"), ((1, 2), (1,), "there are 2 and 1")],
)
def test_a_growth_that_cannot_be_is_refused(counts: tuple[int, ...], iterations: tuple[int, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Growth(counts=counts, iterations=iterations)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("MODEL.ODE.NUM_PIECES", "4", "one step for each"),
        ("MODEL.ODE.METHOD", "dopri5", "METHOD euler"),
        ("MODEL.ODE.DURATION", "0", "DURATION above 0"),
    ],
)
def test_a_config_that_cannot_be_grown_is_refused(shapes: Path, tmp_path: Path, key: str, value: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        grown(shapes, tmp_path / "grown", key, value)


def test_a_stage_that_grew_from_other_weights_is_refused(shapes: Path, tmp_path: Path) -> None:
    words = [*overrides_for_shapes(shapes, tmp_path), *FLOW, "MODEL.ODE.NUM_PIECES", "2", "MODEL.ODE.STEPS", "2"]
    keys = [
        "SOLVER.MAX_ITER",
        "8",
        "SOLVER.WARMUP_ITERS",
        "3",
        "TEST.EVAL_PERIOD",
        "0",
        "SOLVER.CHECKPOINT_PERIOD",
        "50",
    ]
    start = tmp_path / "pieces_2_start.pth"
    words += [*keys, "SEED", "0"]
    build = load_config(CONFIG, words)
    get_task(build)
    torch.save({"model": build_network(build).state_dict()}, start)
    stage = [*words, "MODEL.WEIGHTS", str(start), "OUTPUT_DIR", str(tmp_path / "pieces_2")]
    train(open_training(load_config(CONFIG, stage), command="", config_file=CONFIG, resume=False), resume=False)
    wanted = Growth(counts=(1, 2), iterations=(12, 8))
    with pytest.raises(ConfigError, match="starts from the one before"):
        grow(CONFIG, words, wanted, tool=TOOL, command="grow", folder=tmp_path)
