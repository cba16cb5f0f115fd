"""Export: a network with flows as a graph, in a file that runs without this package."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ode_detect.ode.block import ODEBlock
from ode_detect.ode.difference import TINY, difference
from ode_detect.ode.gradients import scheme_for
from ode_detect.ode.names import check_name
from ode_detect.ode.solvers import FixedStep

from .optimize import is_optimized, named_tensors

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportError(ValueError):
    """A network that cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and compared with the network; ``str()`` is a summary.

    Attributes:
        path: the file.
        inputs: shape of the picture; "batch" where any number of pictures is taken.
        outputs: names of the outputs.
        errors: for each output, the largest absolute difference divided by the largest absolute value.
        tolerance: the largest error that was allowed.
    """

    path: Path
    inputs: tuple[int | str, ...]
    outputs: tuple[str, ...]
    errors: dict[str, float]
    tolerance: float

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {value:.2g}" for name, value in self.errors.items())
        graph = f"{self.path}: picture {self.inputs} -> {', '.join(self.outputs)}"
        return f"{graph}\nrelative error: {errors} (allowed: {self.tolerance:g})"


def export_model(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    format: str = "onnx",
    dynamic_batch: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    """Write a network as a graph, and compare what is in the file with the network.

    The flows must be solved in fixed steps, which become part of the graph.

    Args:
        model: takes one tensor (N, ...), and returns tensors, alone or in lists, tuples and dicts, and nothing else;
            their order and, in a dict, their names are those of the outputs. Not changed.
        example: what it is called with. All axes but the first stay as they are here.
        path: the file; its folder is made.
        format: "onnx", compared by onnxruntime, or "torch", a program of torch.export (``torch.export.load``).
        dynamic_batch: whether the graph takes any number of pictures; otherwise as many as the example has.
        tolerance: the largest difference of an output, as a share of its largest value.

    Raises:
        ExportError: a copy optimised for inference, an adaptive solver, a package that is missing, a network that
            cannot be traced, or outputs that differ.
        UnknownNameError: an unknown format.
    """
    write = FORMATS[check_name(format, FORMATS, "format")]
    traced = _ready(model)
    path = Path(path)
    # A batch of one would be taken for a constant.
    shown = torch.cat([example, example]) if dynamic_batch and len(example) == 1 else example
    with torch.no_grad():
        expected = _outputs(traced(shown))
        try:
            program = torch.export.export(
                traced,
                (shown,),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None,
            )
        except Exception as error:  # tracing can fail in any way
            raise ExportError(
                f"the network cannot be traced into one graph ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "its forward must not depend on the values of tensors"
                + (", nor on the number of pictures: try dynamic_batch=False." if dynamic_batch else ".")
            ) from error
        _check_named(program, expected)
        path.parent.mkdir(parents=True, exist_ok=True)
        run = write(program, list(expected), path)
        errors = _differences(expected, run(shown))
        if dynamic_batch:
            one = _outputs(traced(example[:1]))
            errors = {name: max(errors[name], error) for name, error in _differences(one, run(example[:1])).items()}
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= tolerance:
        raise ExportError(
            f"the exported graph must compute what the network does within {tolerance:g}, and output {worst!r} differs "
            f"by {errors[worst]:.2g} of its largest value; {path} is there to look at. Allow more by tolerance, or "
            "export in the other format."
        )
    inputs = ("batch" if dynamic_batch else len(shown), *shown.shape[1:])
    return Exported(path, inputs, tuple(expected), errors, tolerance)


def _ready(model: nn.Module) -> nn.Module:
    if is_optimized(model):
        raise ExportError(
            "a graph is made of a network as it was trained, and this one is a copy that optimize_for_inference or "
            "optimize_detector laid out for this machine; export the original. What runs the graph optimises it itself."
        )
    clone = copy.deepcopy(model).eval().requires_grad_(False)
    for name, block in clone.named_modules():
        if not isinstance(block, ODEBlock):
            continue
        if not isinstance(block.solver, FixedStep):
            raise ExportError(
                f"a graph has a fixed number of evaluations, and {name or block.name!r} is solved by {block.solver}, "
                "which chooses its steps; set a FixedStep, by solver_override(model, method='rk4', steps=4) or "
                "MODEL.ODE.METHOD and STEPS."
            )
        block.gradient = scheme_for(block.gradient)
    return clone


def _outputs(value: Any) -> dict[str, Tensor]:
    """All tensors by name, integers too: the graph has them as outputs."""
    return dict(named_tensors(value, floating=False))


def _check_named(program: torch.export.ExportedProgram, expected: dict[str, Tensor]) -> None:
    outputs = program.graph_signature.user_outputs
    if not expected or len(outputs) != len(expected):
        raise ExportError(
            f"the outputs of a graph are tensors in lists, tuples and dicts, each with a name of its own; this network "
            f"has {len(outputs)}, of which these have one: {', '.join(expected) or 'none'}. Wrap it in a module that "
            "returns a dict of tensors."
        )


def _write_onnx(
    program: torch.export.ExportedProgram, outputs: list[str], path: Path
) -> Callable[[Tensor], dict[str, Tensor]]:
    for package in _PACKAGES:
        _require(package)
    onnxruntime = _require("onnxruntime")
    written = torch.onnx.export(
        program, (), input_names=["image"], output_names=outputs, dynamo=True, verbose=False, optimize=True
    )
    if written is None:
        raise ExportError("torch.onnx.export gave no program; use the format 'torch'.")
    written.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> dict[str, Tensor]:
        values = session.run(outputs, {"image": image.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(outputs, values, strict=True)}

    return run


def _write_torch(
    program: torch.export.ExportedProgram, outputs: list[str], path: Path
) -> Callable[[Tensor], dict[str, Tensor]]:
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda image: _outputs(loaded(image))


FORMATS: dict[str, Callable[..., Callable[[Tensor], dict[str, Tensor]]]] = {"onnx": _write_onnx, "torch": _write_torch}


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            f"an ONNX file needs the packages {', '.join(_PACKAGES)}, and {package} is not installed; "
            "pip install onnx onnxscript onnxruntime, or use the format 'torch'."
        ) from error


def _differences(expected: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, float]:
    """For each output, the largest difference as a share of the largest value; infinite where only one has a number."""
    return {name: difference([wanted], [given[name]]).relative_largest(TINY) for name, wanted in expected.items()}
