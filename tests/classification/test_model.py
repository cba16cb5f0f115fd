from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ode_detect.classification.model import Classifier
from ode_detect.engine.config import add_ode_config


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"a": ShapeSpec(channels=3), "b": ShapeSpec(channels=8)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.seen = x
        return {"a": x, "b": self.conv(x)}


def classifier(**more: Any) -> Classifier:
    torch.manual_seed(0)
    arguments = {"num_classes": 5, "pixel_mean": [100.0, 110.0, 120.0], "pixel_std": [50.0, 60.0, 70.0]}
    return Classifier(backbone=Backbone(), **{**arguments, **more})


def batch(count: int = 4) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return [{"image": image, "label": index % 5} for index, image in enumerate(images)]


def test_the_loss_is_the_cross_entropy_of_what_is_scored() -> None:
    model = classifier(label_smoothing=0.1)
    logits = torch.stack([output["logits"] for output in model.eval()(batch())])
    loss = model.train()(batch())
    assert list(loss) == ["loss_cls"]
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3]), label_smoothing=0.1)
    torch.testing.assert_close(loss["loss_cls"], expected)


def test_pictures_are_normalised_by_channel() -> None:
    model = classifier().eval()
    model(batch(1))
    image = batch(1)[0]["image"].float()
    torch.testing.assert_close(model.backbone.seen[0, 2], (image[2] - 120) / 70)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_the_one_asked_for(channels_last: bool) -> None:
    model = classifier(channels_last=channels_last).eval()
    model(batch())
    assert model.backbone.seen.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_a_prediction_does_not_depend_on_its_batch() -> None:
    model = classifier().eval()
    alone = [model([example])[0]["logits"] for example in batch()]
    torch.testing.assert_close(torch.stack(alone), torch.stack([o["logits"] for o in model(batch())]))


@pytest.mark.parametrize(("feature", "channels"), [("", 8), ("a", 3), ("b", 8)])
def test_the_feature_is_chosen_by_name(feature: str, channels: int) -> None:
    model = classifier(in_feature=feature, norm="BN").eval()
    assert model.linear.in_features == channels
    output = model(batch(1))[0]
    assert output["features"].shape == (channels,)
    assert float(output["features"].detach().min()) >= 0, "a relu before the pooling"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"in_feature": "c"}, r"\(a, b\), not 'c'"),
        ({"dropout": 1.0}, r"DROPOUT is a share in \[0, 1\), not 1.0"),
        ({"label_smoothing": -0.1}, "LABEL_SMOOTHING is a share"),
        ({"num_classes": 1}, r"NUM_CLASSES is 1; give the data a folder for each class"),
        ({"norm": "NB"}, r"unknown MODEL\.CLASSIFIER\.NORM 'NB'; known are BN, GN, LN"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        classifier(**wrong)


@pytest.mark.parametrize(("format", "mean", "std"), [("L", 3, 3), ("RGB", 1, 1), ("RGB", 3, 1), ("L", 2, 1)])
def test_there_is_a_mean_and_a_deviation_for_each_channel(format: str, mean: int, std: int) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.INPUT.FORMAT = "build_mlp_backbone", format
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [1.0] * mean, [2.0] * std
    with pytest.raises(ValueError, match=rf"{1 if format == 'L' else 3} of INPUT\.FORMAT {format}, and they are"):
        Classifier(cfg)


def test_an_order_of_channels_that_no_data_has_is_refused() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.INPUT.FORMAT = "build_mlp_backbone", "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT of a classifier.*BGR"):
        Classifier(cfg)


def test_a_distance_that_is_no_number_is_no_small_one() -> None:
    model = classifier().eval()
    model.familiarity.threshold.fill_(1.0)
    model.familiarity.means.fill_(torch.nan)
    model.familiarity.whitening.fill_(1.0)
    model.load_state_dict(model.state_dict())
    model.familiarity.means.zero_()
    with torch.no_grad():
        assert bool(model(batch())[0]["far"])


def test_how_far_a_picture_is_comes_with_what_was_fitted() -> None:
    model = classifier().eval()
    assert set(model(batch())[0]) == {"logits", "features"}
    with torch.no_grad():
        features = torch.stack([output["features"] for output in model(batch(50))])
    model.familiarity.fit(features, torch.arange(50) % 5)
    model.familiarity.calibrate(features, 0.9)
    again = classifier().eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        outputs = again(batch(50))
        white = again([{"image": torch.full((3, 6, 6), 255, dtype=torch.uint8)}])[0]
    assert sum(bool(output["far"]) for output in outputs) == 5
    assert outputs[0]["distance"].shape == ()
    assert float(white["distance"]) > float(again.familiarity.threshold)
