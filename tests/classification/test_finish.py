from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ode_detect.classification import finish
from ode_detect.classification.model import Classifier
from ode_detect.engine.config import add_ode_config


class Pixels(nn.Module):
    """The pictures themselves as features."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"pixels": ShapeSpec(channels=3)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixels": x}


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.TEST.BATCH, cfg.TEST.FAMILIAR_SHARE = 7, 0.9
    return cfg


def test_the_spread_is_of_what_is_trained_on_and_the_threshold_of_what_is_held_out(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 3, 2, 2), generator=generator, dtype=torch.uint8)
    dicts = [{"index": i, "label": i % 2} for i in range(150)]

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        return {"image": images[record["index"]], **record}

    monkeypatch.setattr(finish, "reference_data", lambda given: (dicts[:100], dicts[100:], mapper))
    zeros, ones = [0.0] * 3, [1.0] * 3
    model = Classifier(backbone=Pixels(), num_classes=2, pixel_mean=zeros, pixel_std=ones).eval()
    finish.finish_classifier(cfg, model)
    features = images.float().mean((2, 3))
    expected = torch.stack([features[:100:2].mean(0), features[1:100:2].mean(0)])
    torch.testing.assert_close(model.familiarity.means, expected)
    far = torch.stack([output["far"] for output in model([mapper(record) for record in dicts[100:]])])
    assert int(far.sum()) == 5
    monkeypatch.setattr(finish, "_MOST", 90)
    finish.finish_classifier(cfg, model)
    assert not torch.equal(model.familiarity.means, expected)
    torch.testing.assert_close(model.familiarity.means, expected, rtol=0.1, atol=0)


def test_no_more_pictures_are_looked_at_than_are_needed(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    dicts = [{"index": i, "label": i % 2} for i in range(60)]

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        seen.append(record["index"])
        return {"image": torch.full((3, 2, 2), record["index"], dtype=torch.uint8), **record}

    # With nothing held out, the training pictures stand in for it.
    monkeypatch.setattr(finish, "reference_data", lambda given: (dicts, dicts, mapper))
    monkeypatch.setattr(finish, "_MOST", 20)
    model = Classifier(backbone=Pixels(), num_classes=2, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3).eval()
    finish.finish_classifier(cfg, model)
    assert len(seen) == 40
