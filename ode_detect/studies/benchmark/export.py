"""Section ``export``: a converted classifier as an ONNX graph in onnxruntime, against itself in PyTorch."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from ode_detect.ode import export_model, to_ode
from ode_detect.studies.timing import Case, Ratio, Side

REQUIRED = ("onnx", "onnxscript", "onnxruntime")
DIFFERENCE_AIM = 1e-4


def cases(*, quick: bool) -> Iterator[Case]:
    """A ResNet-50 at 224x224, with flows, batch 1."""
    name, build, size = ("ResNet-18", resnet18, 32) if quick else ("ResNet-50", resnet50, 224)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = torch.randn(1, 3, size, size)
        model, _ = to_ode(build(weights=None).eval(), example=image)
    with tempfile.TemporaryDirectory() as folder:
        exported = export_model(model, image, Path(folder) / "classifier.onnx")
        run = _session(exported.path, image)
    sides = {
        "onnxruntime": Side("ode", run, metrics={"output_difference": max(exported.errors.values())}),
        "PyTorch": Side("ode", partial(_classify, model, image)),
    }
    ratios = [
        Ratio("onnxruntime", "PyTorch"),
        Ratio("onnxruntime", "PyTorch", DIFFERENCE_AIM, "output_difference"),
    ]
    yield Case(f"{name} with flows, 1x3x{size}x{size}", sides, ratios)


def _session(path: Path, image: Tensor) -> Callable[[], object]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, given)


@torch.no_grad()
def _classify(model: nn.Module, image: Tensor) -> Tensor:
    return model(image)
