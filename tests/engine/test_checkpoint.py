import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_model
from torch import nn

from ode_detect.backbones import build_cifar_resnet
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.config import add_ode_config, load_config
from ode_detect.engine.weights import CheckpointError

from ..conftest import CIFAR_R20, ROOT, like_trained

PUBLISHED = ROOT.parent / "shared" / "data" / "weights" / "cifar10_resnets"


def config(name: str = "build_ode_resnet_fpn_backbone", *more: str) -> CfgNode:
    overrides = ["MODEL.RESNETS.DEPTH", "50", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", name, *more]
    return load_config(ROOT / "configs" / "faster_rcnn_ode.yaml", overrides)


class Detector(nn.Module):
    """The names of a detector, without its heads."""

    def __init__(self, name: str = "build_ode_resnet_fpn_backbone", more: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.backbone = build_backbone(config(name, *more))


@pytest.fixture(scope="module")
def resnet() -> Detector:
    """Detectron2's own ResNet-50-FPN with statistics like those of a trained one."""
    torch.manual_seed(0)
    return like_trained(Detector("build_resnet_fpn_backbone").eval())


def numbers(model: nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v.numpy() for n, v in model.state_dict().items() if n.startswith(prefix)}


def caffe2_names(names: list[str]) -> dict[str, str]:
    """Detectron2's names -> those of MSRA's files."""
    kinds = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    out = {}
    for name in names:
        if "running" in name:
            continue
        stage, *rest = name.split(".", 3)
        if stage == "stem":
            kind = kinds[name.removeprefix("stem.conv1.")]
            out[name] = "conv1_w" if kind == "w" else f"res_conv1_{kind}"
        else:
            block, branch, kind = rest
            out[name] = f"{stage}_{block}_{branches[branch]}_{kinds[kind]}"
    return out


def same_features(ours: nn.Module, theirs: nn.Module) -> bool:
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        a, b = ours.eval().backbone.bottom_up(pictures), theirs.backbone.bottom_up(pictures)
    return all(torch.equal(a[name], b[name]) for name in b)


def test_a_detector_of_the_zoo_loads_with_every_tensor_and_gives_its_bits(resnet: Detector, tmp_path: Path) -> None:
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": numbers(resnet), "__author__": "Detectron2 Model Zoo"}))
    model = Detector()
    coverage = Checkpointer(model).load_weights(str(path), whole=True)
    assert coverage is not None
    assert coverage.missing == []
    assert coverage.unused == ()
    assert "100.0%" in str(coverage)
    assert same_features(model, resnet)


def test_an_imagenet_backbone_of_the_zoo_fills_the_bottom_up_part(resnet: Detector, tmp_path: Path) -> None:
    weights = numbers(resnet, "backbone.bottom_up.") | {"stem.fc.weight": np.zeros((10, 2048), np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "torchvision", "matching_heuristics": True}))
    model = Detector()
    coverage = Checkpointer(model).load_weights(str(path), whole=False)
    assert coverage is not None
    assert all("fpn" in name for name in coverage.missing)
    assert coverage.unused == ("stem.fc.weight",)
    assert same_features(model, resnet)


def test_msras_caffe2_file_fills_the_bottom_up_part(resnet: Detector, tmp_path: Path) -> None:
    # MSRA's statistics are folded into scale and shift: mean 0, variance 1.
    for name, buffer in resnet.named_buffers():
        if "running" in name:
            buffer.copy_(torch.zeros_like(buffer) if "mean" in name else torch.ones_like(buffer) - 1e-5)
    ours = numbers(resnet, "backbone.bottom_up.")
    blobs = {theirs: ours[name] for name, theirs in caffe2_names(list(ours)).items()}
    blobs |= {"fc1000_w": np.zeros((10, 2048), np.float32), "fc1000_b": np.zeros(10, np.float32)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs))
    model = Detector()
    coverage = Checkpointer(model).load_weights(str(path), whole=False)
    assert coverage is not None
    assert {n for n in coverage.loaded if "bottom_up" in n} == {n for n in model.state_dict() if "bottom_up" in n}
    assert same_features(model, resnet)


def test_torchvisions_file_fills_the_bottom_up_part(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.resnet50()
    for name, buffer in theirs.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    cfg = config()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    coverage = Checkpointer(model).load_weights(str(tmp_path / "resnet50.pth"), whole=False)
    assert coverage is not None
    assert not [n for n in coverage.missing if "bottom_up" in n]
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = model.eval().backbone.bottom_up(pictures)["res5"]
        x = theirs.eval().maxpool(theirs.relu(theirs.bn1(theirs.conv1(pictures))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
    assert torch.allclose(ours, x, rtol=1e-4, atol=1e-4)


def classifier(*more: object) -> nn.Module:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.merge_from_list([*(word for item in CIFAR_R20.items() for word in item), *more])
    return build_model(cfg)


def test_torchvisions_last_layer_is_that_of_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = like_trained(torchvision.models.resnet18(num_classes=7)).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    widths = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    resnet18 = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.OUT_FEATURES", ["res5"], *widths)
    ours = classifier(*resnet18, "MODEL.CLASSIFIER.NUM_CLASSES", 7).eval()
    coverage = Checkpointer(ours).load_weights(str(tmp_path / "resnet18.pth"), whole=True)
    # What is fitted after the training is in no such file.
    assert {name.partition(".")[0] for name in coverage.missing} == {"familiarity"}
    assert coverage.unused == ()
    picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs(((picture - ours.pixel_mean) / ours.pixel_std)[None])[0]
        torch.testing.assert_close(ours([{"image": picture}])[0]["logits"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"linear\.weight: \(7, 512\) in the file, \(10, 512\) here"):
        Checkpointer(classifier(*resnet18)).load_weights(str(tmp_path / "resnet18.pth"), whole=False)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_the_published_weights_of_cifar_give_their_bits_in_both_modes(depth: int) -> None:
    (file,) = PUBLISHED.glob(f"resnet{depth}-*.th")
    theirs = build_cifar_resnet(f"resnet{depth}")
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    theirs.load_state_dict({n.removeprefix("module."): t for n, t in published.items()}, strict=False)
    networks = [classifier("MODEL.RESNETS.DEPTH", depth, "MODEL.ODE.ROLE", role) for role in ("twin", "ode")]
    for network in networks:
        coverage = Checkpointer(network).load_weights(str(file), whole=True)
        assert {name.partition(".")[0] for name in coverage.missing} == {"familiarity"}
        assert coverage.unused == ()
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    examples = [{"image": picture, "label": 0} for picture in pictures]
    normalised = (pictures - networks[0].pixel_mean) / networks[0].pixel_std
    with torch.no_grad():
        expected = theirs.eval()(normalised)
        for network in networks:
            logits = torch.stack([output["logits"] for output in network.eval()(examples)])
            assert torch.equal(logits, expected)
        loss = nn.functional.cross_entropy(theirs.train()(normalised), torch.zeros(4, dtype=torch.long))
        assert all(torch.equal(network.train()(examples)["loss_cls"], loss) for network in networks)


def test_a_backbone_that_is_not_filled_is_refused_unless_allowed(resnet: Detector, tmp_path: Path) -> None:
    weights = {n: v for n, v in resnet.state_dict().items() if "res4.3.conv2" not in n}
    torch.save({"model": weights}, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"res4\.1\.flow\.field\.pieces\.2\.conv2\.weight: not in the file"):
        Checkpointer(Detector()).load_weights(str(tmp_path / "partial.pth"), whole=False)
    coverage = Checkpointer(Detector(), allow_partial=True).load_weights(str(tmp_path / "partial.pth"), whole=False)
    assert coverage is not None
    assert len(coverage.missing) == 5


def test_an_ablation_begins_with_the_weights_of_a_whole_network(resnet: Detector, tmp_path: Path) -> None:
    weights = numbers(resnet, "backbone.bottom_up.") | {"stem.fc.weight": np.zeros((10, 2048), np.float32)}
    path = str(tmp_path / "R-50.pkl")
    Path(path).write_bytes(pickle.dumps({"model": weights, "__author__": "torchvision", "matching_heuristics": True}))
    ablation = Detector(more=("MODEL.ODE.ROLE", "ablation", "MODEL.ODE.STAGES", "['res2', 'res3', 'res4']"))
    with pytest.raises(CheckpointError, match="has no place for it"):
        Checkpointer(ablation).load_weights(path, whole=False)
    stages = ["res2", "res3", "res4"]
    coverage = Checkpointer(ablation, emptied=stages).load_weights(path, whole=False)
    assert coverage is not None
    assert {n for n in coverage.missing if "fpn" not in n} == set()
    assert {name.split(".")[0] for name in coverage.unused} == {*stages, "stem"}
    # Evaluated, it must be the file of this network; in training, too, all that it has must be in the file.
    misfit = len(coverage.missing) + len(coverage.unused) - 1
    with pytest.raises(CheckpointError, match=f"does not fit the network in {misfit} tensors"):
        Checkpointer(ablation, emptied=stages).load_weights(path, whole=True)
    with pytest.raises(CheckpointError, match=r"res4\.1\..* has no place for it"):
        Checkpointer(ablation, emptied=["res2", "res3"]).load_weights(path, whole=False)
    del weights["res4.0.conv1.weight"]
    Path(path).write_bytes(pickle.dumps({"model": weights, "__author__": "torchvision", "matching_heuristics": True}))
    with pytest.raises(CheckpointError, match=r"res4\.0\.conv1\.weight: not in the file"):
        Checkpointer(ablation, emptied=stages).load_weights(path, whole=False)


def test_a_tensor_of_another_shape_is_refused(resnet: Detector, tmp_path: Path) -> None:
    weights = dict(resnet.state_dict())
    weights["backbone.fpn_lateral2.weight"] = torch.zeros(7, 256, 1, 1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"fpn_lateral2\.weight: \(7, 256, 1, 1\) in the file"):
        Checkpointer(Detector()).load_weights(str(tmp_path / "other.pth"), whole=False)


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, capsys, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({"model": Malicious(), "__author__": "x"}))
    else:
        torch.save({"model": Malicious()}, path)
    with pytest.raises(CheckpointError, match="not run"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(path), whole=False)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / "whole"
    if suffix == "pkl":
        whole.write_bytes(pickle.dumps({"model": {"weight": np.zeros((100, 100))}, "__author__": "x"}))
    else:
        torch.save({"model": {"weight": torch.zeros(100, 100)}}, whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="cut short"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(cut), whole=False)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS"):
        Checkpointer(nn.Linear(1, 1)).load_weights(str(tmp_path / "none.pth"), whole=False)


def test_a_kill_while_writing_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch) -> None:
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model", iteration=4)
    before = (tmp_path / "model.pth").read_bytes()

    def dies(data: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model", iteration=5)
    assert (tmp_path / "model.pth").read_bytes() == before
    assert checkpointer.resume() == 5


def test_the_best_checkpoint_is_not_what_a_run_goes_on_with(tmp_path: Path) -> None:
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000003", iteration=3)
    checkpointer.save("model_best", iteration=1)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


@pytest.mark.parametrize("content", [b"", b"model_00000", b"\xff\xfe\x00"])
def test_a_broken_word_of_the_last_checkpoint_means_the_newest_one(
    content: bytes, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    for iteration in (3, 5, 4):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    checkpointer.save("model_best", iteration=9)
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert checkpointer.resume() == 6
    assert f"{tmp_path / 'last_checkpoint'} cannot be read" in said.text


def test_a_broken_word_without_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").touch()
    (tmp_path / "model_0000003.pth").write_bytes(b"half")
    assert Checkpointer(nn.Linear(1, 1), str(tmp_path)).resume() == 0


def test_a_checkpoint_that_is_cut_means_the_one_before(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    for iteration in (3, 5):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    last = tmp_path / "model_0000005.pth"
    last.write_bytes(last.read_bytes()[:-300])
    assert checkpointer.resume() == 4
    assert f"{last} cannot be read" in said.text
