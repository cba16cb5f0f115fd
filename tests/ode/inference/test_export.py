import builtins
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ode_detect.ode import (
    Adaptive,
    BasicField,
    ConcatConvField,
    FixedStep,
    HatFunctions,
    ODEBlock,
    PiecewiseConstant,
    optimize_for_inference,
)
from ode_detect.ode.inference import export
from ode_detect.ode.inference.export import ExportError
from ode_detect.ode.inference.export import export_model as write

FORMATS = ["onnx", "torch"]


class Pyramid(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, stride=2, padding=1), block

    def forward(self, picture):
        p2 = self.block(F.relu(self.stem(picture)))
        return {"p2": p2, "p3": F.max_pool2d(p2, 2)}


def flow(field=None, **solver):
    field = field or PiecewiseConstant([BasicField(channels=4, norm="FrozenBN") for _ in range(2)])
    block = ODEBlock(
        field=field, solver=FixedStep(**({"steps": 2, "projection": "relu"} | solver)), gradient="checkpoint"
    )
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.fixture(params=FORMATS)
def format(request):
    if request.param == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    return request.param


@pytest.mark.parametrize(
    "block",
    [
        lambda: flow(),
        lambda: flow(steps=3, method="midpoint", projection="none"),
        lambda: flow(HatFunctions([BasicField(channels=4) for _ in range(2)]), steps=3),
        lambda: flow(ConcatConvField(channels=4), method="rk4"),
    ],
    ids=["pieces", "midpoint", "hats", "time as a channel"],
)
def test_the_file_computes_what_the_network_does(block, format, tmp_path):
    model, example = Pyramid(block()).train(), torch.randn(1, 3, 12, 16)
    done = write(model, example, tmp_path / "new" / "network", format=format)
    assert model.training
    assert done.path.stat().st_size > 1000
    assert (done.inputs, done.outputs) == (("batch", 3, 12, 16), ("p2", "p3"))
    assert max(done.errors.values()) <= 1e-4
    assert "p2, p3" in str(done)
    many = torch.randn(5, 3, 12, 16)
    if format == "torch":
        given = torch.export.load(done.path).module()(many)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
        values = session.run(None, {"image": many.numpy()})
        given = {o.name: torch.from_numpy(v) for o, v in zip(session.get_outputs(), values, strict=True)}
    with torch.no_grad():
        for name, wanted in model.eval()(many).items():
            torch.testing.assert_close(given[name], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_a_batch_of_fixed_size(format, tmp_path):
    done = write(nn.Sequential(flow()), torch.randn(2, 4, 6, 6), tmp_path / "n", format=format, dynamic_batch=False)
    assert (done.inputs, done.outputs) == ((2, 4, 6, 6), ("output",))


def test_outputs_that_differ_are_refused(format, tmp_path, monkeypatch):
    right = export.FORMATS[format]

    def wrong(*arguments):
        run = right(*arguments)
        return lambda image: {name: value * 1.001 for name, value in run(image).items()}

    monkeypatch.setitem(export.FORMATS, format, wrong)
    with pytest.raises(ExportError, match=r"within 0.0001, and output 'output' differs by 0.001 of its largest value"):
        write(flow(), torch.randn(1, 4, 6, 6), tmp_path / "n", format=format)


def test_an_adaptive_solver_is_refused(tmp_path):
    model = nn.Sequential(ODEBlock(field=BasicField(channels=4), solver=Adaptive("dopri5")))
    with pytest.raises(ExportError, match=r"'0' is solved by Adaptive\(method='dopri5'.*set a FixedStep"):
        write(model, torch.randn(1, 4, 6, 6), tmp_path / "n")


def test_a_network_that_looks_at_values_is_refused(tmp_path):
    class Looks(nn.Module):
        def forward(self, x):
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(ExportError, match="must not depend on the values of tensors"):
        write(Looks(), torch.randn(1, 4, 6, 6), tmp_path / "n", format="torch")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(missing, tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name == missing:
            raise ImportError(name)
        return builtins if name in ("onnx", "onnxscript", "onnxruntime") else real(name, *rest)

    monkeypatch.setattr(export.importlib, "import_module", without)
    with pytest.raises(ExportError, match=rf"and {missing} is not installed; pip install onnx onnxscript"):
        write(nn.Conv2d(4, 4, 1), torch.randn(1, 4, 6, 6), tmp_path / "n")


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match=r"unknown format 'onx'; known are onnx, torch\. Did you mean 'onnx'\?"):
        write(nn.Conv2d(4, 4, 1), torch.randn(1, 4, 6, 6), tmp_path / "n", format="onx")


class Many(nn.Module):
    """Outputs of several dtypes; the scores have no number where the picture is dark."""

    def forward(self, picture):
        scores = picture.flatten(1).mean(1)
        return {"index": scores.argmax(0, keepdim=True), "scores": scores, "roots": scores.sqrt()}


def test_integers_are_outputs_too_and_all_keep_their_names(format, tmp_path):
    example = torch.stack([torch.full((1, 2, 2), value) for value in (4.0, 9.0, -1.0)])
    done = write(Many(), example, tmp_path / "n", format=format)
    assert done.outputs == ("index", "scores", "roots")
    assert done.errors == {"index": 0.0, "scores": 0.0, "roots": 0.0}


@pytest.mark.parametrize("where", ["many", "one"])
@pytest.mark.parametrize("name", ["index", "roots"])
def test_an_output_that_is_not_a_number_is_refused(name, where, format, tmp_path, monkeypatch):
    """Any output, for the whole batch and for one picture."""
    right = export.FORMATS[format]

    def wrong(*arguments):
        run = right(*arguments)
        spoil = {name: torch.tensor([float("nan")])}
        return lambda image: (
            run(image)
            | (
                {k: v.expand(len(run(image)[k])) for k, v in spoil.items()}
                if (len(image) > 1) == (where == "many")
                else {}
            )
        )

    monkeypatch.setitem(export.FORMATS, format, wrong)
    with pytest.raises(ExportError, match=f"output '{name}' differs by inf"):
        write(Many(), torch.rand(3, 1, 2, 2), tmp_path / "n", format=format)


def test_outputs_without_a_name_are_refused(tmp_path):
    class Pair:
        def __init__(self, *parts):
            self.parts = parts

    torch.utils._pytree.register_pytree_node(Pair, lambda pair: (list(pair.parts), None), lambda parts, _: Pair(*parts))

    class Odd(nn.Module):
        def forward(self, x):
            return {"twice": 2 * x, "pair": Pair(x + 1, x + 2)}

    with pytest.raises(ExportError, match=r"has 3, of which these have one: twice\. Wrap it"):
        write(Odd(), torch.randn(2, 3), tmp_path / "n", format="torch")


@pytest.mark.parametrize("inside", [False, True])
def test_an_optimised_copy_is_refused_with_what_to_export(inside, tmp_path):
    original, example = Pyramid(flow()).eval(), torch.randn(1, 3, 8, 8)
    fast, _ = optimize_for_inference(original, example, precision="bfloat16", tolerance=0.9)
    model = nn.Sequential(nn.Identity(), fast) if inside else fast
    with pytest.raises(ExportError, match="export the original"):
        write(model, example, tmp_path / "fast.pt2", format="torch")
