"""What a dial leaves in its folder."""

from pathlib import Path

import torch

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.config import load_config
from ode_detect.report.results import Results
from ode_detect.studies.dial.budget import Budget, turn

from .quickstart_dial import QUICKSTART, STEPS, open_dial


def test_a_choice_is_a_config_that_gives_the_same_numbers(swept: tuple[Path, Results], trained: list[str]) -> None:
    folder, _ = swept
    results, choice = turn(open_dial(trained, folder), **STEPS, budget=Budget(loss=1.0))
    assert choice is not None
    row = next(row for row in results.rows if row.name == choice.setting.name)
    assert {"euler_1-2-2", "euler_2-1-2", "euler_2-2-1"} <= {row.name for row in results.rows}
    cfg = load_config(choice.path)
    trained_weights = str(Path(load_config(QUICKSTART, trained).OUTPUT_DIR) / "model_final.pth")
    expected = trained_weights if row.name == "euler_2" else str(folder / f"{row.name}.pth")
    assert expected == cfg.MODEL.WEIGHTS
    assert torch.load(expected, weights_only=True)["categories"] == [{"id": 1, "name": "square"}]
    run = runs.open_evaluation(cfg, command="x", config_file=str(choice.path))
    (evaluated,) = train.evaluate_only(run).rows
    assert evaluated.metrics == row.metrics
    assert evaluated.cost["evaluations"] == row.cost["evaluations"]
    claim, *_ = choice.path.read_text().splitlines()
    assert claim.startswith(f"# {row.name}: AP50 ")
    assert f"; {torch.get_num_threads()} threads of {results.machine['cpu']}; " in claim
    assert f"picked on squares itself among {len(results.rows)} settings: not an independent estimate" in claim
    assert (folder / f"{row.name}.yaml").read_text() == choice.path.read_text()
