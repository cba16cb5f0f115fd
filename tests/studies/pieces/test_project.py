"""Pieces of a small classifier: projected, distilled, grown."""

from pathlib import Path

import pytest
import torch

from ode_detect.engine.config import load_config
from ode_detect.engine.run import open_evaluation, open_training
from ode_detect.engine.train import evaluate_only, train
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.studies.pieces import project as pieces
from ode_detect.studies.pieces.project import Projection, project
from ode_detect.task import ConfigError

from ...conftest import ROOT, overrides_for_shapes

CONFIG = str(ROOT / "configs" / "base" / "mnist.yaml")
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


def test_fewer_steps_than_pieces_are_told(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="some are never evaluated"):
        projected([*trained, "MODEL.ODE.STEPS", "2"], tmp_path / "out", 2)
