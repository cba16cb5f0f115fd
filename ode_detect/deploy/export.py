"""Exporting the network of a config: the backbone of a detector, from pictures to feature maps."""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from ode_detect.engine.build import build_network
from ode_detect.engine.run import Run
from ode_detect.engine.train import fill
from ode_detect.ode.inference.export import Exported, ExportError, export_model
from ode_detect.task import ConfigError

_SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}


class PictureBackbone(nn.Module):
    """The backbone of a detector, with the normalisation of pictures before it.

    Args:
        detector: a Detectron2 detector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: GeneralizedRCNN) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.register_buffer("mean", detector.pixel_mean.clone())
        self.register_buffer("std", detector.pixel_std.clone())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures (N, 3, H, W), values 0 to 255 in the order of ``INPUT.FORMAT`` -> feature maps by name."""
        return self.backbone((image - self.mean) / self.std)


def export_backbone(run: Run, *, weights: str, size: tuple[int, int], format: str) -> Exported:
    """Build the detector of a run, fill it, and write its backbone as ``backbone.onnx`` or ``backbone.pt2``.

    The graph takes any number of pictures.

    Args:
        run: config, and the folder that the file goes to.
        weights: a checkpoint; "" takes what `ode_detect.engine.train.fill` takes.
        size: height and width of the pictures.
        format: "onnx" or "torch".

    Raises:
        ConfigError: the config is not that of a detector, the size does not fit, or the network cannot be exported.
        CheckpointError: there are no weights, or they do not fill the network.
    """
    model = build_network(run.cfg)
    if not isinstance(model, GeneralizedRCNN):
        raise ConfigError(
            f"the backbone of a GeneralizedRCNN can be exported, and MODEL.META_ARCHITECTURE is "
            f"{run.cfg.MODEL.META_ARCHITECTURE}; export other networks in Python, by ode_detect.ode.export_model."
        )
    divisor = max(model.backbone.size_divisibility, 1)
    if any(side < 1 or side % divisor for side in size):
        raise ConfigError(f"height and width of a picture must be multiples of {divisor}, not {size[0]} x {size[1]}.")
    fill(run, model, weights)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    path = run.folder / f"backbone{_SUFFIX.get(format, '')}"
    try:
        return export_model(PictureBackbone(model.to("cpu")), image, path, format=format)
    except ExportError as error:
        raise ConfigError(str(error)) from error
