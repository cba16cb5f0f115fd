"""ODE-Nets for small pictures: a stem, then stages of one transition and one tail each, without pretrained weights.

What the tail of a stage is says ``MODEL.ODE.ROLE``: flows ("ode"), residual blocks ("twin"), or nothing ("ablation").
Where the field is pre-activated (normalisation and activation come first), the transitions are so too, and the stem
ends in a convolution: normalisation and relu there would be followed by the same two again. Elsewhere stem and
transitions end in normalisation and relu, as in a ResNet.
"""

# No annotations as strings: TorchScript reads those of forward().

import math
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from ode_detect.ode import PreactField
from ode_detect.ode.fields import PREACTIVATED, make_norm
from ode_detect.ode.names import check_name

from .build import Tail, check_flows, make_flows, norm_layer

STEMS = ("conv", "chen")
NORMS = ("BN", "GN", "LN")


class Layers(CNNBlockBase):
    """Layers in a row that count as one block.

    Args:
        layers: in order.
        inputs: C of the input.
        outputs: C of the output.
        stride: of all of them together.
    """

    def __init__(self, *layers: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride); "chen" takes a border of 1 to 3 cells away."""
        return self.layers(x)


class PreactBlock(CNNBlockBase):
    """A pre-activated residual block, h + f(h); a new one is the identity, as a new flow is.

    Args:
        field: f, called as ``field(t, h)``; it does not depend on t.
        channels: C.
    """

    def __init__(self, *, field: nn.Module, channels: int) -> None:
        super().__init__(channels, channels, 1)
        self.field = field

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.field(0.0, x)


class ODENet(Backbone):
    """A stem and stages s1, s2, ...

    Args:
        stem: the stem.
        stages: the blocks of each stage; there may be none.
    """

    def __init__(self, *, stem: CNNBlockBase, stages: Sequence[Sequence[CNNBlockBase]]) -> None:
        super().__init__()
        self.stem = stem
        shapes: dict[str, ShapeSpec] = {}
        channels, stride = stem.out_channels, stem.stride
        for index, blocks in enumerate(stages, 1):
            self.add_module(f"s{index}", nn.Sequential(*blocks))
            channels = blocks[-1].out_channels if blocks else channels
            stride *= math.prod(block.stride for block in blocks)
            shapes[f"s{index}"] = ShapeSpec(channels=channels, stride=stride)
        self._shapes = shapes

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the feature map of each stage; `output_shape` has their channels and strides."""
        x = self.stem(x)
        features: dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if name != "stem":
                x = stage(x)
                features[name] = x
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        return dict(self._shapes)


@BACKBONE_REGISTRY.register()
def build_odenet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ODENet:
    """Build an ODE-Net, its twin or its ablation.

    With the stem "chen", one stage of 64 channels, ``MODEL.ODE.FIELD`` "concat", ``PIECES`` "constant" and GN it is the
    MNIST network of Chen et al. 2018, as torchdiffeq's example has it, up to pooling and linear layer. But for the
    start: here a new flow is the identity.

    Args:
        cfg: ``MODEL.ODE_NET`` and ``MODEL.ODE``, of which STAGES is not read: all stages have a tail.
        input_shape: channels of the picture.

    Returns:
        The backbone; its outputs are (N, C, H, W) by the names s1, s2, ... Extra channels of flows count among C.

    Raises:
        ValueError: a value that cannot be built, with what to do.
    """
    net = cfg.MODEL.ODE_NET
    _check(cfg)
    blocks: list[list[CNNBlockBase]] = []
    channels = net.CHANNELS[0]
    for index, (outputs, count) in enumerate(zip(net.CHANNELS, net.BLOCKS, strict=True), 1):
        transition = [_transition(cfg, channels, outputs)] if index > 1 else []
        blocks.append([*transition, *_tail(cfg, f"s{index}", outputs, count)])
        channels = blocks[-1][-1].out_channels if blocks[-1] else outputs
    return ODENet(stem=_stem(cfg, input_shape.channels), stages=blocks)


def _check(cfg: CfgNode) -> None:
    net, ode = cfg.MODEL.ODE_NET, cfg.MODEL.ODE
    check_flows(cfg)
    check_name(net.STEM, STEMS, "MODEL.ODE_NET.STEM")
    check_name(net.NORM, NORMS, "MODEL.ODE_NET.NORM")
    if not net.CHANNELS or len(net.CHANNELS) != len(net.BLOCKS) or min(net.CHANNELS) < 1 or min(net.BLOCKS) < 0:
        raise ValueError(
            "MODEL.ODE_NET.CHANNELS and BLOCKS have one number for each stage, of 1 or more and of 0 or more, and they "
            f"are {net.CHANNELS} and {net.BLOCKS}; write CHANNELS [64, 128] and BLOCKS [2, 2] for two stages."
        )
    if _is_preactivated(cfg) and ode.PROJECTION != "none":
        raise ValueError(
            f"MODEL.ODE.PROJECTION {ode.PROJECTION!r} would cut off half of the state, which before the pre-activated "
            f"field {ode.FIELD!r} has both signs; set MODEL.ODE.PROJECTION none, or FIELD basic."
        )


def _is_preactivated(cfg: CfgNode) -> bool:
    return cfg.MODEL.ODE.FIELD in PREACTIVATED


def _activation(cfg: CfgNode, channels: int) -> list[nn.Module]:
    """Normalisation and relu."""
    return [make_norm(norm_layer(cfg.MODEL.ODE_NET.NORM), channels), nn.ReLU()]


def _stem(cfg: CfgNode, inputs: int) -> Layers:
    width = cfg.MODEL.ODE_NET.CHANNELS[0]
    layers: list[nn.Module]
    if cfg.MODEL.ODE_NET.STEM == "conv":
        layers, stride = [_conv(inputs, width, stride=1)], 1
    else:
        # As in torchdiffeq's example: with biases, and torch's own start.
        layers, stride = [nn.Conv2d(inputs, width, 3)], 4
        for _ in range(2):
            layers += [*_activation(cfg, width), nn.Conv2d(width, width, 4, stride=2, padding=1)]
    end = [] if _is_preactivated(cfg) else _activation(cfg, width)
    return Layers(*layers, *end, inputs=inputs, outputs=width, stride=stride)


def _transition(cfg: CfgNode, inputs: int, outputs: int) -> Layers:
    conv = _conv(inputs, outputs, stride=2)
    layers = [*_activation(cfg, inputs), conv] if _is_preactivated(cfg) else [conv, *_activation(cfg, outputs)]
    return Layers(*layers, inputs=inputs, outputs=outputs, stride=2)


def _conv(inputs: int, outputs: int, *, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _tail(cfg: CfgNode, name: str, channels: int, blocks: int) -> list[CNNBlockBase]:
    role, norm = cfg.MODEL.ODE.ROLE, cfg.MODEL.ODE_NET.NORM
    if role == "ablation" or blocks == 0:
        return []
    if role == "twin":
        return [_residual_block(cfg, channels) for _ in range(blocks)]
    tail = Tail(stage=name, channels=channels, blocks=blocks, norm=norm, norm_key="MODEL.ODE_NET.NORM")
    return make_flows(cfg, tail)


def _residual_block(cfg: CfgNode, channels: int) -> CNNBlockBase:
    norm, ode = norm_layer(cfg.MODEL.ODE_NET.NORM), cfg.MODEL.ODE
    if _is_preactivated(cfg):
        return PreactBlock(
            field=PreactField(channels=channels, norm=norm, activation=ode.ACTIVATION), channels=channels
        )
    # Detectron2's normalisations by name are not those of the fields: its GN has 32 groups whatever the channels.
    if ode.FIELD == "bottleneck":
        width = max(channels // 4, 1)
        return BottleneckBlock(channels, channels, bottleneck_channels=width, norm=lambda c: make_norm(norm, c))
    return BasicBlock(channels, channels, norm=lambda c: make_norm(norm, c))
