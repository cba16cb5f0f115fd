from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import get_cfg

from ode_detect.classification.model import Classifier
from ode_detect.classification.optimize import optimize_classifier
from ode_detect.engine.build import build_network
from ode_detect.engine.config import add_ode_config
from ode_detect.ode.inference.optimize import OptimizationError

from ..conftest import CIFAR_R20, like_trained

ODE_NET = {
    "MODEL.META_ARCHITECTURE": "Classifier",
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_odenet_backbone",
    "MODEL.ODE_NET.CHANNELS": "[8, 16]",
    "MODEL.ODE_NET.BLOCKS": "[1, 2]",
    "MODEL.ODE.PROJECTION": "none",
    "INPUT.FORMAT": "RGB",
}
NETWORKS = {
    "cifar": CIFAR_R20,
    "preactivated": {**ODE_NET, "MODEL.ODE.FIELD": "preact", "MODEL.CLASSIFIER.NORM": "BN"},
    "group norm": {**ODE_NET, "MODEL.ODE.FIELD": "concat", "MODEL.ODE_NET.NORM": "GN", "MODEL.CLASSIFIER.NORM": "GN"},
}


def batch(count: int = 6) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": image} for image in torch.randint(0, 256, (count, 3, 16, 16), generator=generator).byte()]


def fitted(keys: dict[str, str]) -> Classifier:
    """A classifier that knows its training pictures."""
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    torch.manual_seed(0)
    model = like_trained(build_network(cfg)).eval()
    assert isinstance(model, Classifier)
    with torch.no_grad():
        features = torch.stack([output["features"] for output in model(batch(60))])
    model.familiarity.fit(features, torch.arange(60) % 10)
    model.familiarity.calibrate(features, 0.9)
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("role", ["ode", "twin"])
def test_the_answers_are_the_same(name: str, role: str) -> None:
    keys = {**NETWORKS[name], "MODEL.ODE.ROLE": role} | ({"MODEL.ODE.NORM": "GN"} if name != "cifar" else {})
    model = fitted(keys)
    fast, done = optimize_classifier(model, batch(), precision="float32")
    assert done.errors.keys() == {"logits", "features", "distance"}
    assert done.folded > 0 or name != "cifar"
    with torch.no_grad():
        for mine, theirs in zip(fast(batch()), model(batch()), strict=True):
            torch.testing.assert_close(mine["logits"], theirs["logits"], rtol=1e-3, atol=1e-4)
            assert bool(mine["far"]) == bool(theirs["far"])


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_what_is_said_about_features_stays_float32(name: str) -> None:
    keys = NETWORKS[name] | ({"MODEL.ODE.NORM": "GN"} if name != "cifar" else {})
    fast, done = optimize_classifier(fitted(keys), batch(), precision="bfloat16", tolerance=0.5)
    assert done.precision == "bfloat16"
    with torch.no_grad():
        maps = fast.backbone(torch.zeros(1, 3, 16, 16))
        output = fast(batch())[0]
    assert {feature.dtype for feature in maps.values()} == {torch.bfloat16}
    assert {output[key].dtype for key in ("logits", "features", "distance")} == {torch.float32}


def test_a_classifier_that_would_answer_otherwise_is_refused() -> None:
    with pytest.raises(OptimizationError, match="within 1e-09"):
        optimize_classifier(fitted(NETWORKS["cifar"]), batch(), precision="bfloat16", tolerance=1e-9)
