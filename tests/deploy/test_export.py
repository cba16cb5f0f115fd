"""The backbone of a detector as a graph of its own."""

from pathlib import Path

import pytest
import torch

from ode_detect.deploy.export import PictureBackbone, export_backbone
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.engine.run import Run
from ode_detect.engine.tasks import get_task
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART

SMALL = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8"]
SMALL += ["MODEL.DEVICE", "cpu"]
RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "['p2','p3']"]


def a_run(folder: Path, *more: str) -> Run:
    cfg = load_config(QUICKSTART, [*SMALL, "OUTPUT_DIR", str(folder / "run"), *more])
    return Run(cfg, get_task(cfg), folder, "export", str(QUICKSTART))


def test_pictures_are_normalised_as_the_detector_does() -> None:
    torch.manual_seed(0)
    detector = build_network(load_config(QUICKSTART, SMALL)).eval()
    pictures = torch.rand(2, 3, 32, 48) * 255
    with torch.no_grad():
        ours = PictureBackbone(detector)(pictures)
        expected = detector.backbone(detector.preprocess_image([{"image": picture} for picture in pictures]).tensor)
    assert ours.keys() == expected.keys()
    for name, feature in expected.items():
        torch.testing.assert_close(ours[name], feature)


def test_the_graph_takes_any_number_of_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = build_network(load_config(QUICKSTART, SMALL)).eval()
    torch.save({"model": detector.state_dict()}, tmp_path / "model.pth")
    exported = export_backbone(a_run(tmp_path), weights=str(tmp_path / "model.pth"), size=(32, 48), format="torch")
    assert exported.path == tmp_path / "backbone.pt2"
    graph, pictures = torch.export.load(exported.path).module(), torch.rand(3, 3, 32, 48) * 255
    with torch.no_grad():
        expected = PictureBackbone(detector)(pictures)
    for name, feature in graph(pictures).items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "more", "message"),
    [
        ((60, 96), [], "multiples of 16, not 60 x 96"),
        ((32, 0), [], "multiples of 16, not 32 x 0"),
        (
            (32, 32),
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "['p2','p3']"],
            "RetinaNet;",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(
    size: tuple[int, int], more: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_backbone(a_run(tmp_path, *more), weights="", size=size, format="torch")
    assert list(tmp_path.iterdir()) == []
