"""Two processes on this machine train what one does, stop together, and evaluate as one.

Equal to rounding are: which pictures are in a batch, how they are augmented, which anchors and proposals are drawn, and
the average over the processes of losses and gradients. For the losses to be those of one process, a process must also
see its pictures as one process sees them, and Detectron2 leaves three ways in which it does not, all ruled out here:
BatchNorm normalises by the part of the batch that a process has (here GN); pictures are padded to the largest of that
part (here all crops have one size); the losses of the box head are averaged over the proposals of that part (here all
are trained on, so that each picture has as many; usually each has ROI_HEADS.BATCH_SIZE_PER_IMAGE of them). Among
proposals with nearly the same score rounding decides which of them is drawn; training on all rules that out too.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ode_detect.engine import run as runs
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config

from ..conftest import overrides_for
from ..engine.recorded_training import QUICKSTART, predictions, recorded

ROOT = Path(__file__).resolve().parents[2]
GN = [
    *("MODEL.RESNETS.NORM", "GN", "MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "3"),
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.01", "SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", "False", "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "100"),
    *("INPUT.SCALE_JITTER", "[1.0, 1.25]"),
    *("MODEL.RPN.NMS_THRESH", "1.0", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "2000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "2000"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "2000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False"),
]
# Of three sizes in each cell of the feature maps of a crop of 64 x 64, with strides 4 and 8.
ANCHORS = 3.0 * (16 * 16 + 8 * 8)
CASES = {
    "backprop": [],
    "checkpoint": ["MODEL.ODE.GRADIENT", "checkpoint"],
    "unused pieces": ["MODEL.ODE.PIECES", "piecewise", "MODEL.ODE.NUM_PIECES", "3"],
    "averaged": ["SOLVER.EMA_DECAY", "0.9"],
    "dial with losses": ["SOLVER.DIAL.STEPS", "[1, 3]", "SOLVER.DIAL.TASK_WEIGHT", "0.5"],
}


def processes_of(count: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def seven(squares: Path) -> list[str]:
    """Overrides for a test set of seven pictures, which two processes cannot share equally."""
    content = json.loads((squares / "train.json").read_text())
    left_out = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != left_out]
    (squares / "seven.json").write_text(json.dumps(content))
    files = {"squares": "train.json", "seven": "seven.json"}
    entries = [
        {"NAME": name, "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / file)}
        for name, file in files.items()
    ]
    # A network that knows nothing finds something in every picture, if no score is too low.
    low = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    return ["DATASETS.CUSTOM", json.dumps(entries), "DATASETS.TEST", "('seven',)", *low]


@pytest.fixture(scope="module")
def two(squares: Path, seven: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes recorded: each of the cases, and the first one stopped, resumed and evaluated."""
    folder = tmp_path_factory.mktemp("two")
    cases = {name: {"overrides": overrides_for(squares, folder / name, *GN, *more)} for name, more in CASES.items()}
    overrides = overrides_for(squares, folder / "stopped", *GN, *seven)
    cases["stopped"] = {"overrides": overrides, "stopped": True, "evaluated": True}
    (folder / "cases.json").write_text(json.dumps(cases))
    script = "tests/engine/recorded_training.py"
    done = processes_of(2, script, str(folder / "cases.json"), str(folder / "recorded.pth"))
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "recorded.pth", weights_only=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in each of the two: rounding decides the order of predictions with nearly the same score."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_give_the_losses_of_one(
    name: str, two: dict[str, dict[str, Any]], squares: Path, tmp_path: Path
) -> None:
    one, both = recorded(overrides_for(squares, tmp_path / "alone", *GN, *CASES[name])), two[name]
    assert one["sampled"] == both["sampled"] == [ANCHORS] * 3, "what makes the losses of the box head comparable"
    assert len({losses["total_loss"] for losses in one["losses"]}) == 3
    for ours, theirs in zip(one["losses"], both["losses"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    for key, weight in one["weights"].items():
        torch.testing.assert_close(both["weights"][key], weight, rtol=0, atol=1e-5, msg=key)


@pytest.mark.slow
def test_when_one_process_is_told_to_stop_both_do_and_the_resumed_run_is_the_uninterrupted_one(
    two: dict[str, dict[str, Any]],
) -> None:
    whole, resumed = two["backprop"], two["stopped"]
    assert resumed["losses"] == whole["losses"][-1:]
    assert all(torch.equal(weight, resumed["weights"][key]) for key, weight in whole["weights"].items())


@pytest.mark.slow
def test_two_processes_predict_what_one_predicts_each_picture_once(
    two: dict[str, dict[str, Any]], squares: Path, seven: list[str], tmp_path: Path, one_thread: None
) -> None:
    cfg = load_config(QUICKSTART, overrides_for(squares, tmp_path / "alone", *GN, *seven))
    run = runs.open_evaluation(cfg, command="test", config_file=str(QUICKSTART))
    model = build_network(run.cfg)
    model.load_state_dict(two["stopped"]["weights"])
    alone, both = predictions(run, model), two["stopped"]["predictions"]
    assert {found["image_id"] for found in both} == set(range(1, 8))
    assert len(both) == len(alone)
    for ours, theirs in zip(alone, both, strict=True):
        assert theirs["image_id"] == ours["image_id"]
        assert [theirs["score"], *theirs["bbox"]] == pytest.approx([ours["score"], *ours["bbox"]], abs=1e-3)
