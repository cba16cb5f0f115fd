"""The meta-architecture of classification: backbone, pooling, linear layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn

from ode_detect.backbones.build import norm_layer
from ode_detect.classification.data.sources import FORMATS
from ode_detect.ode.fields import make_norm
from ode_detect.ode.names import check_name

from .familiarity import Familiarity

Example = dict[str, Any]
NORMS = ("BN", "GN", "LN")


@META_ARCH_REGISTRY.register()
class Classifier(nn.Module):
    """Scores pictures of one size.

    Args:
        backbone: gives a dict of feature maps, and ``output_shape()``.
        in_feature: which of them; "" is the last.
        num_classes: K, 2 or more.
        norm: normalisation before the pooling ("GN", "LN", "BN"), with a relu behind it, as pre-activated blocks need
            it; "" for neither.
        dropout: before the linear layer, in [0, 1).
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        pixel_mean: subtracted from each channel, in 0..255.
        pixel_std: divided by.
        channels_last: the memory format of the pictures.

    Raises:
        ValueError: a feature that the backbone does not give, an unknown norm, or a number out of range.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    # How the names of tensors begin that say nothing before `Task.after_training`: a checkpoint may lack them.
    optional_tensors = ("familiarity.",)

    @configurable
    def __init__(
        self,
        *,
        backbone: Any,  # Detectron2's modules come without types
        num_classes: int,
        pixel_mean: list[float],
        pixel_std: list[float],
        in_feature: str = "",
        norm: str = "",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        self.backbone = backbone
        self.in_feature = in_feature or list(shapes)[-1]
        if self.in_feature not in shapes:
            raise ValueError(
                f"MODEL.CLASSIFIER.IN_FEATURE is one of what the backbone gives ({', '.join(shapes)}), not "
                f"{in_feature!r}; '' takes the last."
            )
        if num_classes < 2:
            raise ValueError(
                f"a classifier has two classes or more, and MODEL.CLASSIFIER.NUM_CLASSES is {num_classes}; "
                "give the data a folder for each class, and set it to their number."
            )
        for key, share in (("DROPOUT", dropout), ("LABEL_SMOOTHING", label_smoothing)):
            if not 0 <= share < 1:
                raise ValueError(f"MODEL.CLASSIFIER.{key} is a share in [0, 1), not {share}; 0.1 is usual.")
        channels = shapes[self.in_feature].channels
        self.norm = _activation(norm, channels) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)
        self.familiarity = Familiarity(classes=num_classes, channels=channels)
        self.label_smoothing, self.channels_last = label_smoothing, channels_last
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.CLASSIFIER``, and the backbone that ``MODEL.BACKBONE`` names.

        Raises:
            ValueError: ``PIXEL_MEAN`` and ``PIXEL_STD`` are not those of the channels of ``INPUT.FORMAT``.
        """
        model = cfg.MODEL
        _check_channels(cfg)
        return {
            "backbone": build_backbone(cfg),
            "in_feature": model.CLASSIFIER.IN_FEATURE,
            "num_classes": model.CLASSIFIER.NUM_CLASSES,
            "norm": model.CLASSIFIER.NORM,
            "dropout": model.CLASSIFIER.DROPOUT,
            "label_smoothing": model.CLASSIFIER.LABEL_SMOOTHING,
            "pixel_mean": model.PIXEL_MEAN,
            "pixel_std": model.PIXEL_STD,
            "channels_last": model.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Where the pictures are taken to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[Example]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Classify.

        Args:
            batched_inputs: for each picture its "image", uint8 (C, H, W), all of one size; in training its "label".

        Returns:
            In training ``loss_cls``, the mean cross-entropy. Otherwise for each picture "logits" (K,) and "features"
            (D,), and once the classifier knows its training pictures "distance" and "far" (bool), both scalars.
        """
        images = torch.stack([example["image"] for example in batched_inputs]).to(self.device)
        features = self.features(images)
        logits = self.linear(self.dropout(features)).float()
        if self.training:
            labels = torch.tensor([example["label"] for example in batched_inputs], device=self.device)
            return {"loss_cls": F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)}
        found = {"logits": logits, "features": features}
        if self.familiarity.fitted:
            found["distance"] = self.familiarity(features)
            # A distance that is not a number is no small one.
            found["far"] = ~(found["distance"] <= self.familiarity.threshold)
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]

    def features(self, images: Tensor) -> Tensor:
        """Pooled features: (N, C, H, W) in 0..255 -> (N, D)."""
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        images = ((images - self.pixel_mean) / self.pixel_std).contiguous(memory_format=memory)
        return self.norm(self.backbone(images)[self.in_feature]).mean((2, 3))


def _activation(norm: str, channels: int) -> nn.Sequential:
    check_name(norm, NORMS, "MODEL.CLASSIFIER.NORM")
    return nn.Sequential(make_norm(norm_layer(norm), channels), nn.ReLU())


def _check_channels(cfg: CfgNode) -> None:
    # Detectron2 builds the backbone for as many channels as there are means, and torch would repeat a grey picture.
    mean, std, format = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
    check_name(format, FORMATS, "INPUT.FORMAT of a classifier")
    channels = 1 if format == "L" else 3
    if (len(mean), len(std)) != (channels, channels):
        raise ValueError(
            f"MODEL.PIXEL_MEAN and PIXEL_STD have a value for each channel, {channels} of INPUT.FORMAT {format}, and "
            f"they are {list(mean)} and {list(std)}. Give {channels} of each, or set INPUT.FORMAT to RGB or L."
        )
