import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import ode_detect.classification.model  # noqa: F401  registers the classifier
from ode_detect.backbones import CifarResNet
from ode_detect.deploy.convert import convert_for_config, convert_weights, load_ode, restore_for_config, restore_weights
from ode_detect.engine.checkpoint import Checkpointer
from ode_detect.engine.config import load_config
from ode_detect.engine.weights import CheckpointError, read_weights
from ode_detect.ode import ConversionError, ODEBlock
from ode_detect.ode.names import UnknownNameError

from ..conftest import CIFAR_R20, ROOT, SMALL_R50, like_trained

PUBLISHED = ROOT.parent / "shared" / "data" / "weights" / "cifar10_resnets"


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in b)


# --- reading ---


class Malicious:
    def __reduce__(self) -> tuple:
        return print, ("code was run",)


def write_torch(content: object, path: Path) -> None:
    torch.save(content, path)


def write_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_state_dicts_are_found_and_their_prefix_taken_off(wrap, prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in nn.Linear(2, 3).state_dict().items()}
    content = state if wrap is None else {wrap: state, "epoch": 7, "best": 0.9}
    torch.save(content, tmp_path / "weights.pth")
    weights = read_weights(tmp_path / "weights.pth")
    assert list(weights) == ["weight", "bias"]
    assert torch.equal(weights["weight"], state[f"{prefix}weight"])


def test_a_name_that_only_some_tensors_have_in_front_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "weights.pt")
    assert list(read_weights(tmp_path / "weights.pt")) == ["module.a", "b"]


def test_files_of_the_zoo_and_safetensors_are_read(tmp_path: Path) -> None:
    numbers = {"stem.conv1.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3)}
    write_pickle({"model": numbers, "__author__": "Detectron2 Model Zoo"}, tmp_path / "zoo.pkl")
    read = read_weights(tmp_path / "zoo.pkl")
    assert torch.equal(read["stem.conv1.weight"], torch.arange(6.0).reshape(2, 3))
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(read, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path / "model.safetensors"), read)


@pytest.mark.parametrize(("write", "name"), [(write_torch, "weights.pth"), (write_pickle, "weights.pkl")])
def test_a_file_that_holds_code_is_refused_and_not_run(write, name: str, tmp_path: Path, capsys) -> None:
    write({"model": Malicious(), "__author__": "x"}, tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read as weights .*not run"):
        read_weights(tmp_path / name)
    assert "code was run" not in capsys.readouterr().out


def test_a_network_saved_whole_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match="hold code, which is not run"):
        read_weights(tmp_path / "network.pth")


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_a_file_that_is_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        pytest.importorskip("safetensors.torch").save_file({"weight": torch.zeros(100, 100)}, file)
    elif suffix == "pth":
        torch.save({"weight": torch.zeros(100, 100)}, file)
    else:
        write_pickle({"model": {"weight": np.zeros((100, 100))}, "__author__": "x"}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=rf"weights\.{suffix} cannot be read as weights .*cut short"):
        read_weights(file)


@pytest.mark.parametrize("name", ["network.onnx", "weights.h5", "weights", "weights.npz"])
def test_another_kind_of_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(CheckpointError, match=rf"{name} is not a kind of file .*torch\.save"):
        read_weights(tmp_path / name)


def test_no_file_and_no_tensors_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no file"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty\.pth holds no tensors by name"):
        read_weights(tmp_path / "empty.pth")
    (tmp_path / "nothing.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_weights(tmp_path / "nothing.pth")


# --- networks of libraries ---


@pytest.fixture(scope="module")
def cifar() -> nn.Module:
    torch.manual_seed(0)
    model = CifarResNet(blocks=3, num_classes=7)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_(0, 0.1)
    return model.eval()


def test_a_checkpoint_becomes_an_ode_checkpoint_and_comes_back(cifar: nn.Module, tmp_path: Path) -> None:
    # As the published files are: a prefix, and no counters.
    state = {n: t for n, t in cifar.state_dict().items() if "num_batches" not in n}
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "resnet20.th")
    certificate = convert_weights(tmp_path / "resnet20.th", "cifar:resnet20", tmp_path / "ode")
    assert certificate.lossless
    assert sorted(p.name for p in (tmp_path / "ode").iterdir()) == [
        *("certificate.json", "certificate.txt", "ode_model.pth")
    ]
    assert json.loads((tmp_path / "ode" / "certificate.json").read_text()) == certificate.to_dict()
    assert (tmp_path / "ode" / "certificate.txt").read_text() == f"{certificate}\n"
    content = torch.load(tmp_path / "ode" / "ode_model.pth", weights_only=True)
    assert content["architecture"] == "cifar:resnet20"
    assert [run["flow"] for run in content["flows"]] == ["layer1.0", "layer2.1", "layer3.1"]
    assert "layer3.1.field.pieces.1.block.conv2.weight" in content["model"]

    ode_model = load_ode(tmp_path / "ode" / "ode_model.pth")
    assert sum(isinstance(m, ODEBlock) for m in ode_model.modules()) == 3
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ode_model(pictures), cifar(pictures))
    file = restore_weights(tmp_path / "ode" / "ode_model.pth", tmp_path / "back")
    assert same(torch.load(file, weights_only=True), state)


@pytest.mark.parametrize(
    ("architecture", "make"),
    [
        ("torchvision:resnet18", lambda: torchvision.models.resnet18(num_classes=7)),
        ("torchvision:mobilenet_v2", lambda: torchvision.models.mobilenet_v2(num_classes=7)),
        ("timm:resnet18.a1_in1k", lambda: pytest.importorskip("timm").create_model("resnet18", num_classes=7)),
    ],
)
def test_the_number_of_classes_is_read_from_the_file(architecture: str, make, tmp_path: Path) -> None:
    model = make()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    convert_weights(tmp_path / "weights.pth", architecture, tmp_path / "ode")
    assert load_ode(tmp_path / "ode" / "ode_model.pth")(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    file = restore_weights(tmp_path / "ode" / "ode_model.pth", tmp_path)
    assert same(torch.load(file, weights_only=True), dict(model.state_dict()))


def test_weights_of_another_network_list_what_does_not_fit(cifar: nn.Module, tmp_path: Path) -> None:
    torch.save(cifar.state_dict(), tmp_path / "resnet20.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_weights(tmp_path / "resnet20.pth", "cifar:resnet32", tmp_path / "ode")
    message = str(caught.value)
    assert "resnet20.pth does not fit cifar:resnet32 in 60 tensors" in message
    assert "layer1.3.conv1.weight: not in the file" in message
    assert not (tmp_path / "ode").exists()
    weights = dict(cifar.state_dict())
    weights["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    weights["more"] = torch.zeros(1)
    torch.save(weights, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_weights(tmp_path / "grey.pth", "cifar:resnet20", tmp_path / "ode")
    assert "conv1.weight: (16, 1, 3, 3) in the file, (16, 3, 3, 3) in the network" in str(caught.value)
    assert "more: in the file, and the network has no place for it" in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("resnet50", r"LIBRARY:NAME, such as torchvision:resnet50\) 'resnet50'; known are cifar, timm, torchvision"),
        ("torchvision:resnet51", "Did you mean 'resnet50'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown network of torchvision"),
        ("timm:resnet51", "unknown network of timm"),
        ("cifar:resnet18", "known are resnet20"),
    ],
)
def test_an_unknown_network_is_told(architecture: str, said: str, cifar: nn.Module, tmp_path: Path) -> None:
    if architecture.startswith("timm"):
        pytest.importorskip("timm")
    torch.save(cifar.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UnknownNameError, match=said):
        convert_weights(tmp_path / "weights.pth", architecture, tmp_path / "ode")


def test_only_an_ode_checkpoint_goes_back(cifar: nn.Module, tmp_path: Path) -> None:
    torch.save(cifar.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="not an ODE checkpoint"):
        restore_weights(tmp_path / "weights.pth", tmp_path)
    convert_weights(tmp_path / "weights.pth", "cifar:resnet20", tmp_path)
    content = torch.load(tmp_path / "ode_model.pth", weights_only=True)
    del content["model"]["layer1.0.field.pieces.2.block.bn1.weight"]
    torch.save(content, tmp_path / "ode_model.pth")
    with pytest.raises(CheckpointError, match=r"pieces\.2\.block\.bn1\.weight: not in the file"):
        load_ode(tmp_path / "ode_model.pth")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
def test_a_published_checkpoint_makes_the_whole_way(tmp_path: Path) -> None:
    (file,) = PUBLISHED.glob("resnet20-*.th")
    assert convert_weights(file, "cifar:resnet20", tmp_path).lossless
    back = torch.load(restore_weights(tmp_path / "ode_model.pth", tmp_path), weights_only=True)
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    assert same({f"module.{name}": tensor for name, tensor in back.items()}, dict(published))


# --- configs ---


def config(*more: str) -> CfgNode:
    overrides = [word for item in SMALL_R50.items() for word in item]
    return load_config(ROOT / "configs" / "faster_rcnn_ode.yaml", [*overrides, *more])


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """The twin with statistics like those of a trained one, under Detectron2's names."""
    torch.manual_seed(0)
    return like_trained(build_model(config("MODEL.ODE.ROLE", "twin")).eval())


def zoo_file(model: nn.Module, path: Path, prefix: str = "") -> Path:
    numbers = {n.removeprefix(prefix): t.numpy() for n, t in model.state_dict().items() if n.startswith(prefix)}
    content = {"model": numbers, "__author__": "Detectron2 Model Zoo"}
    write_pickle(content | ({"matching_heuristics": True} if prefix else {}), path)
    return path


def test_a_detector_of_the_zoo_makes_the_whole_way(detector: nn.Module, tmp_path: Path) -> None:
    weights = zoo_file(detector, tmp_path / "model_final.pkl")
    # What the config does with the flows afterwards has nothing to do with their weights.
    cfg = config("MODEL.ODE.STEPS", "2", "MODEL.ODE.METHOD", "midpoint")
    certificate = convert_for_config(str(weights), cfg, tmp_path / "ode")
    assert certificate.lossless
    assert certificate.parameters_before == certificate.parameters_after
    assert [(run.flow, run.pieces) for run in certificate.runs] == [
        (f"backbone.bottom_up.res{stage}.1.flow", count) for stage, count in ((2, 2), (3, 3), (4, 5), (5, 2))
    ]
    assert certificate.runs[2].blocks == tuple(f"backbone.bottom_up.res4.{index}" for index in (1, 2, 3, 4, 5))

    # The checkpoint is one that MODEL.WEIGHTS may name, and fills the network.
    model = build_model(config())
    coverage = Checkpointer(model).load_weights(str(tmp_path / "ode" / "ode_model.pth"), whole=True)
    assert coverage.missing == []
    example = [{"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64}]
    with torch.no_grad():
        ours, theirs = model.eval()(example)[0]["instances"], detector(example)[0]["instances"]
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)

    file = restore_for_config(tmp_path / "ode" / "ode_model.pth", cfg, tmp_path / "back")
    back = torch.load(file, weights_only=True)["model"]
    assert {n: back[n].tolist() for n in back} == {n: t.tolist() for n, t in detector.state_dict().items()}


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published checkpoints are not here")
def test_a_published_classifier_of_cifar_makes_the_whole_way(tmp_path: Path) -> None:
    (file,) = PUBLISHED.glob("resnet20-*.th")
    cfg = config(*(word for item in CIFAR_R20.items() for word in item))
    certificate = convert_for_config(str(file), cfg, tmp_path / "ode")
    assert certificate.lossless
    assert [run.pieces for run in certificate.runs] == [2, 2, 2]
    assert certificate.parameters_before == certificate.parameters_after == 269_722
    back = torch.load(restore_for_config(tmp_path / "ode" / "ode_model.pth", cfg, tmp_path), weights_only=True)["model"]
    published = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    assert len(back) == len(published)
    assert torch.equal(back["backbone.res4.2.conv2.weight"], published["module.layer3.2.conv2.weight"])
    assert torch.equal(back["linear.bias"], published["module.linear.bias"])


def test_a_backbone_stays_a_backbone(detector: nn.Module, tmp_path: Path) -> None:
    weights = zoo_file(detector, tmp_path / "R-50.pkl", "backbone.bottom_up.")
    assert convert_for_config(str(weights), config(), tmp_path / "ode").lossless
    content = torch.load(tmp_path / "ode" / "ode_model.pth", weights_only=True)
    assert all(name.startswith("backbone.bottom_up.") for name in content["model"])
    coverage = Checkpointer(build_model(config())).load_weights(str(tmp_path / "ode" / "ode_model.pth"), whole=False)
    assert all("bottom_up" not in name for name in coverage.missing)


@pytest.mark.parametrize(
    "more",
    [
        ("MODEL.ODE.PIECES", "constant"),
        ("MODEL.ODE.PIECES", "hat"),
        ("MODEL.ODE.NUM_PIECES", "2"),
        ("MODEL.ODE.DURATION", "4"),
        ("MODEL.ODE.STACK", "2"),
    ],
)
def test_flows_that_hold_no_run_of_blocks_are_refused(more, detector: nn.Module, tmp_path: Path) -> None:
    weights = zoo_file(detector, tmp_path / "model_final.pkl")
    with pytest.raises(ConversionError, match=f"{more[0].rpartition('.')[2]} {more[1]}.*one piece for each block"):
        convert_for_config(str(weights), config(*more), tmp_path / "ode")


def test_flows_that_compute_something_else_are_refused(detector: nn.Module, tmp_path: Path) -> None:
    weights = zoo_file(detector, tmp_path / "model_final.pkl")
    with pytest.raises(ConversionError, match="do not compute what its twin does"):
        convert_for_config(str(weights), config("MODEL.ODE.ACTIVATION", "silu"), tmp_path / "ode")
    assert not (tmp_path / "ode").exists()


def test_only_weights_with_flows_that_fit_go_back(detector: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no flow"):
        restore_for_config(zoo_file(detector, tmp_path / "model_final.pkl"), config(), tmp_path / "back")
    state = build_model(config()).state_dict()
    del state["backbone.bottom_up.res4.1.flow.field.pieces.3.conv2.weight"]
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"res4\.4\.conv2\.weight: not in the file"):
        restore_for_config(tmp_path / "part.pth", config(), tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_misfit_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    state = build_model(config()).state_dict()
    del state["backbone.bottom_up.res4.1.flow.field.pieces.3.conv2.weight"]
    torch.save({"model": state}, tmp_path / "part.pth")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "model.pth").write_text("mine")
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'part.pth'} does not fit")):
        restore_for_config(tmp_path / "part.pth", config(), tmp_path / "back")
    assert [(file.name, file.read_text()) for file in (tmp_path / "back").iterdir()] == [("model.pth", "mine")]
    partly = config("MODEL.ALLOW_PARTIAL_WEIGHTS", "True")
    back = torch.load(restore_for_config(tmp_path / "part.pth", partly, tmp_path / "back"), weights_only=True)
    assert len(back["model"]) == len(state)


def test_what_is_read_is_not_overwritten(cifar: nn.Module, tmp_path: Path) -> None:
    torch.save(build_model(config()).state_dict(), tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()
    for restore in (lambda f: restore_for_config(f, config(), tmp_path), lambda f: restore_weights(f, tmp_path)):
        with pytest.raises(CheckpointError, match=r"model\.pth is what is read.* give another --output"):
            restore(tmp_path / "back" / ".." / "model.pth")
    assert (tmp_path / "model.pth").read_bytes() == before
    torch.save(cifar.state_dict(), tmp_path / "ode_model.pth")
    with pytest.raises(CheckpointError, match="is what is read"):
        convert_weights(tmp_path / "ode_model.pth", "cifar:resnet20", tmp_path)
    with pytest.raises(CheckpointError, match="is what is read"):
        convert_for_config(str(tmp_path / "ode_model.pth"), config(), tmp_path)


def test_a_network_without_flows_is_not_converted(detector: nn.Module, tmp_path: Path) -> None:
    weights = zoo_file(detector, tmp_path / "model_final.pkl")
    with pytest.raises(ConversionError, match=r"has none: MODEL\.ODE\.STAGES \[\]"):
        convert_for_config(str(weights), config("MODEL.ODE.STAGES", "[]"), tmp_path / "ode")
    assert not (tmp_path / "ode").exists()


def test_weights_that_fit_in_part_are_converted_if_asked(detector: nn.Module, tmp_path: Path) -> None:
    state = detector.state_dict()
    del state["backbone.bottom_up.res4.3.conv2.weight"]
    torch.save({"model": state}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"set MODEL\.ALLOW_PARTIAL_WEIGHTS True"):
        convert_for_config(str(tmp_path / "part.pth"), config(), tmp_path / "ode")
    partly = config("MODEL.ALLOW_PARTIAL_WEIGHTS", "True")
    assert convert_for_config(str(tmp_path / "part.pth"), partly, tmp_path / "ode").lossless
