from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from ode_detect.detection.data.datasets import register_datasets
from ode_detect.detection.pictures import detections
from ode_detect.engine.config import load_config

ROOT = Path(__file__).resolve().parents[2]


class Detector(nn.Module):
    """Finds one certain and one doubtful box in every picture."""

    def forward(self, batch: list[dict]) -> list[dict]:
        found = Instances((80, 96))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]]))
        found.scores = torch.tensor([0.9, 0.29])
        found.pred_classes = torch.tensor([0, 0])
        return [{"instances": found} for _ in batch]


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_come_with_what_is_certain_and_what_is_true(squares: Path, count: int) -> None:
    cfg = load_config(ROOT / "configs" / "quickstart.yaml", ["TEST.SCORE_THRESHOLD", "0.3"])
    cfg.DATASETS.CUSTOM = [
        {"NAME": "squares", "IMAGES": str(squares / "images"), "ANNOTATIONS": str(squares / "train.json")}
    ]
    register_datasets(cfg)
    shown = detections(cfg, Detector(), "squares", count=count)
    assert len(shown) == count
    first = shown[0]
    assert first.image.shape == (80, 96, 3)
    assert first.boxes.tolist() == [[1.0, 2.0, 30.0, 40.0]]
    assert first.truth.shape == (3, 4)
    assert first.labels == ["square"]
    assert first.truth_labels == ["square"] * 3
    assert first.crowd == [False] * 3
    if count == 3:
        assert [one.name for one in shown] == ["0.png", "4.png", "7.png"], "spread over the eight"
