"""Pieces of a small classifier: projected, distilled, grown."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.run import open_evaluation, open_training
from ode_detect.engine.tasks import get_task
from ode_detect.engine.train import evaluate_only, train
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.studies.pieces import project as pieces
from ode_detect.studies.pieces.grow import Growth, grow
from ode_detect.studies.pieces.project import Projection, project
from ode_detect.task import ConfigError

from ...conftest import ROOT, overrides_for_shapes

CONFIG = str(ROOT / "configs" / "base" / "mnist.yaml")
TOOL = (sys.executable, str(ROOT / "tools" / "train_net.py"))
FLOW = [
    *("MODEL.ODE_NET.NORM", "BN", "MODEL.ODE.NORM", "BN", "MODEL.ODE.FIELD", "basic", "MODEL.CLASSIFIER.NORM", ""),
    *("MODEL.ODE.PIECES", "piecewise", "MODEL.ODE.NUM_PIECES", "4", "MODEL.ODE.STEPS", "4"),
    *("MODEL.ODE.METHOD", "euler", "MODEL.ODE.DURATION", "1", "SOLVER.EMA_DECAY", "0.0"),
]


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = [*overrides_for_shapes(shapes, tmp_path_factory.mktemp("run") / "four"), *FLOW]
    run = open_training(load_config(CONFIG, words), command="train", config_file=CONFIG, resume=False)
    assert train(run, resume=False).rows[0].metrics["top1"] >= 0.8
    return words


def projected(words: list[str], folder: Path, *counts: int, distil: int = 3) -> Results:
    cfg = load_config(CONFIG, words)
    wanted = Projection(counts=counts, iterations=distil, batches=3)
    return project(cfg, wanted, command="pieces", config_file=CONFIG, weights="", folder=folder)


@pytest.fixture(scope="module")
def fewer(trained: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("pieces")
    return folder, projected(trained, folder, 2, 1)


def grown(shapes: Path, folder: Path, *more: str) -> Results:
    words = [*overrides_for_shapes(shapes, folder), *FLOW, "MODEL.ODE.NUM_PIECES", "2", "MODEL.ODE.STEPS", "2"]
    words += ["SOLVER.WARMUP_ITERS", "3", "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "0", *more]
    wanted = Growth(counts=(1, 2), iterations=(12, 8))
    return grow(CONFIG, words, wanted, tool=TOOL, command="grow", folder=folder)


def test_a_projection_gives_a_row_a_config_and_weights_for_each_network(fewer: tuple[Path, Results]) -> None:
    folder, results = fewer
    names = [f"pieces_{count}_{how}" for count in (2, 1) for how in ("projected", "distilled")]
    assert [row.name for row in results.rows] == ["pieces_4", *names]
    sizes = [row.cost["parameters"] for row in results.rows]
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] == sizes[4]
    assert len({row.cost["evaluations"] for row in results.rows}) == 1
    assert Results.read(folder / "pieces.json") == results
    assert (folder / "pieces.png").stat().st_size > 1000
    assert "full pieces: pieces_4" in in_words(results.protocol)
    assert "least squares on 3 training batches" in in_words(results.protocol)


@pytest.mark.parametrize("name", ["pieces_2_projected", "pieces_1_distilled"])
def test_a_config_that_was_written_gives_the_row_again(fewer: tuple[Path, Results], name: str) -> None:
    folder, results = fewer
    cfg = load_config(str(folder / f"{name}.yaml"))
    run = open_evaluation(cfg, command="eval", config_file=str(folder / f"{name}.yaml"))
    again = evaluate_only(run).rows[0]
    (row,) = [row for row in results.rows if row.name == name]
    assert again.metrics == row.metrics
    assert again.cost["parameters"] == row.cost["parameters"]
    names = [one["name"] for one in torch.load(folder / f"{name}.pth", weights_only=True)["categories"]]
    assert names == ["level", "upright"]


def test_distillation_changes_the_weights(fewer: tuple[Path, Results]) -> None:
    before, after = (
        torch.load(fewer[0] / f"pieces_2_{how}.pth", weights_only=True)["model"] for how in ("projected", "distilled")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".flow." in name or name.startswith("familiarity.") for name in changed)


def test_what_was_measured_is_not_measured_again(
    trained: list[str], fewer: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(pieces, "evaluate", nothing)
    monkeypatch.setattr(pieces, "training_stream", nothing)
    assert projected(trained, fewer[0], 2, 1).rows == fewer[1].rows


def test_the_commands_of_all_rows_are_kept(trained: list[str], tmp_path: Path) -> None:
    projected(trained, tmp_path, 2, distil=0)
    cfg, wanted = load_config(CONFIG, trained), Projection(counts=(1,), iterations=0, batches=3)
    results = project(cfg, wanted, command="again", config_file=CONFIG, weights="", folder=tmp_path)
    assert [row.name for row in results.rows] == ["pieces_4", "pieces_2_projected", "pieces_1_projected"]
    assert results.command.splitlines() == ["pieces", "again"]


def test_a_projection_learns_the_training_pictures_anew(fewer: tuple[Path, Results], trained: list[str]) -> None:
    run = Path(trained[trained.index("OUTPUT_DIR") + 1])
    files = (run / "model_final.pth", fewer[0] / "pieces_2_projected.pth", fewer[0] / "pieces_2_distilled.pth")
    known = [torch.load(file, weights_only=True)["model"] for file in files]
    assert len({float(weights["familiarity.threshold"]) for weights in known}) == 3
    assert all(row.metrics["unfamiliar"] < 0.5 for row in fewer[1].rows)


def test_a_folder_with_another_projection_is_refused(trained: list[str], fewer: tuple[Path, Results]) -> None:
    with pytest.raises(ConfigError, match="projection of another config"):
        projected([*trained, "TEST.BATCH", "4"], fewer[0], 2, 1)


@pytest.mark.parametrize(
    ("counts", "why"), [((4,), "have 4 each"), ((0,), "1 piece or more"), ((2, 2), "each number once"), ((), "1 piece")]
)
def test_counts_that_cannot_be_are_refused(trained: list[str], tmp_path: Path, counts: tuple[int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        projected(trained, tmp_path / "out", *counts)


def test_a_seed_that_is_drawn_anew_is_refused(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SEED is -1"):
        projected([*trained, "SEED", "-1"], tmp_path / "out", 2)


def test_a_flow_without_pieces_is_refused(trained: list[str], tmp_path: Path) -> None:
    more = ["MODEL.ODE.PIECES", "constant", "MODEL.ODE.NORM", "GN", "MODEL.ODE.NUM_PIECES", "0"]
    words = [*trained, *more, "OUTPUT_DIR", str(tmp_path / "run")]
    run = open_training(
        load_config(CONFIG, [*words, "SOLVER.MAX_ITER", "12"]), command="", config_file=CONFIG, resume=False
    )
    train(run, resume=False)
    with pytest.raises(ConfigError, match="no pieces or no fixed steps"):
        projected(words, tmp_path / "out", 2)


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


def test_fewer_steps_than_pieces_are_told(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="some are never evaluated"):
        projected([*trained, "MODEL.ODE.STEPS", "2"], tmp_path / "out", 2)
