"""ODE-ResNets: the shape-keeping tail of each chosen stage is one flow.

In stage k of a ResNet the first block changes the shape (the transition) and the others keep it (the tail). What stands
in place of the tail is chosen by ``MODEL.ODE.ROLE``: a flow ("ode"), Detectron2's residual blocks ("twin"), or nothing
("ablation"). All three are registered under the same names and built from the same config. A backbone that ends before
res5 (``MODEL.RESNETS.OUT_FEATURES [res4]``) leaves that stage to the head of a C4 detector,
`ode_detect.detection.model.ODERes5ROIHeads`.
"""

# No annotations as strings: TorchScript reads those of forward().

from dataclasses import dataclass

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from fvcore.nn import weight_init
from torch import Tensor, nn

from ode_detect.ode.names import check_name

from .build import Tail, check_flows, make_flows
from .cifar_resnet import PadShortcut
from .weights import fill_flows

# The first four are those of CIFAR: three stages, at the resolution of the picture, a half and a quarter of it.
BLOCKS_PER_STAGE = {
    20: (3, 3, 3),
    32: (5, 5, 5),
    44: (7, 7, 7),
    56: (9, 9, 9),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")


class CifarStem(CNNBlockBase):
    """The stem of the ResNets of CIFAR: conv3x3, norm, relu; the resolution stays.

    Args:
        inputs: channels of the picture.
        outputs: C of the output.
        norm: as for Detectron2's blocks.
    """

    def __init__(self, *, inputs: int, outputs: int, norm: str) -> None:
        super().__init__(inputs, outputs, 1)
        self.conv1 = Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False, norm=get_norm(norm, outputs))
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return F.relu_(self.conv1(x))


@dataclass(frozen=True)
class _Stage:
    """What is known of one stage before it is built."""

    name: str
    blocks: int
    stride: int
    inputs: int
    outputs: int
    bottleneck: int
    dilation: int


@BACKBONE_REGISTRY.register()
def build_ode_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build an ODE-ResNet (18, 34, 50, 101, 152, or 20, 32, 44, 56 for CIFAR), its twin or its ablation.

    Those of CIFAR have a stem of one 3x3 convolution, stages res2 to res4, and shortcuts without parameters
    (`PadShortcut`); in the paper STEM_OUT_CHANNELS and RES2_OUT_CHANNELS are 16.

    Args:
        cfg: ``MODEL.RESNETS`` as for Detectron2's ResNet, and ``MODEL.ODE``.
        input_shape: channels of the picture.

    Returns:
        A Detectron2 ResNet; its outputs are (N, C, H, W) by the names in ``MODEL.RESNETS.OUT_FEATURES``.

    Raises:
        ValueError: a value that cannot be built, with what to do.
    """
    resnet = cfg.MODEL.RESNETS
    _check(cfg)
    stages = _plan(cfg)
    last = max([STAGES.index(name) for name in resnet.OUT_FEATURES if name in STAGES], default=len(stages) - 1)
    if last < len(stages) - 1:
        _check_head(cfg)
    stem = _stem(cfg, input_shape.channels)
    blocks = [_blocks(cfg, stage) for stage in stages[: last + 1]]
    backbone = ResNet(stem, blocks, out_features=resnet.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    backbone.register_load_state_dict_pre_hook(fill_flows)
    return backbone


@BACKBONE_REGISTRY.register()
def build_ode_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build an ODE-ResNet with a feature pyramid (Lin et al. 2017), as Detectron2's ``build_resnet_fpn_backbone``.

    p6 is made of p5, so a pyramid that ends before res5 has none.
    """
    top = LastLevelMaxPool() if "res5" in cfg.MODEL.FPN.IN_FEATURES else None
    return _pyramid(cfg, build_ode_resnet_backbone(cfg, input_shape), top)


@BACKBONE_REGISTRY.register()
def build_ode_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the pyramid of RetinaNet, as Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    p6 and p7 are made of res5 by convolutions of stride 2 (Lin et al. 2017, "Focal Loss").

    Raises:
        ValueError: res5 is not in ``MODEL.RESNETS.OUT_FEATURES``; and as `build_ode_resnet_backbone`.
    """
    bottom_up = build_ode_resnet_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ValueError(
            "build_ode_resnet_fpn_p6p7_backbone makes p6 and p7 of res5, and MODEL.RESNETS.OUT_FEATURES is "
            f"{cfg.MODEL.RESNETS.OUT_FEATURES}; add res5, or use build_ode_resnet_fpn_backbone."
        )
    return _pyramid(cfg, bottom_up, LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


def build_stage(cfg: CfgNode, name: str) -> tuple[nn.Sequential, int]:
    """Build one stage alone: the transition and what ``MODEL.ODE`` puts in place of its tail.

    Args:
        cfg: as for `build_ode_resnet_backbone`.
        name: "res2", "res3", "res4" or "res5".

    Returns:
        The stage, (N, C, H, W) -> (N, C', H / stride, W / stride), its blocks named as in Detectron2's ResNet; and C'.

    Raises:
        ValueError: a value that cannot be built, with what to do.
    """
    _check(cfg)
    stages = {stage.name: stage for stage in _plan(cfg)}
    stage = stages[check_name(name, stages, "stage")]
    blocks = nn.Sequential(*_blocks(cfg, stage))
    blocks.register_load_state_dict_pre_hook(fill_flows)
    return blocks, stage.outputs


def _plan(cfg: CfgNode) -> list[_Stage]:
    resnet = cfg.MODEL.RESNETS
    counts = BLOCKS_PER_STAGE[resnet.DEPTH]
    if _is_basic(resnet.DEPTH) and resnet.RES2_OUT_CHANNELS != resnet.STEM_OUT_CHANNELS:
        raise ValueError(
            f"in a ResNet-{resnet.DEPTH} res2 has as many channels as the stem, not {resnet.RES2_OUT_CHANNELS} after "
            f"{resnet.STEM_OUT_CHANNELS}; set MODEL.RESNETS.RES2_OUT_CHANNELS {resnet.STEM_OUT_CHANNELS}."
        )
    stages, inputs, outputs = [], resnet.STEM_OUT_CHANNELS, resnet.RES2_OUT_CHANNELS
    bottleneck = resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP
    for index, (name, count) in enumerate(zip(STAGES, counts, strict=False)):
        dilation = resnet.RES5_DILATION if name == "res5" else 1
        stride = 1 if index == 0 or dilation == 2 else 2
        stages.append(_Stage(name, count, stride, inputs, outputs, bottleneck, dilation))
        inputs, outputs, bottleneck = outputs, outputs * 2, bottleneck * 2
    return stages


def _is_cifar(depth: int) -> bool:
    return len(BLOCKS_PER_STAGE[depth]) == 3


def _is_basic(depth: int) -> bool:
    """Whether the blocks are basic ones, and not bottlenecks."""
    return depth < 50 or _is_cifar(depth)


def _check(cfg: CfgNode) -> None:
    ode, resnet = cfg.MODEL.ODE, cfg.MODEL.RESNETS
    check_flows(cfg)
    for name in ode.STAGES:
        check_name(name, STAGES, "stage in MODEL.ODE.STAGES")
    if resnet.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is one of {', '.join(map(str, sorted(BLOCKS_PER_STAGE)))}, not {resnet.DEPTH}; 18, "
            "34, 50, 101 and 152 are for large pictures, the others for those of CIFAR."
        )
    if ode.EXTRA_CHANNELS:
        raise ValueError(
            f"MODEL.ODE.EXTRA_CHANNELS is {ode.EXTRA_CHANNELS}, and the stages of an ODE-ResNet keep the channels of "
            "the ResNet, whose weights it takes. Set it to 0, or MODEL.BACKBONE.NAME to build_odenet_backbone."
        )
    if _is_cifar(resnet.DEPTH) and "res5" in resnet.OUT_FEATURES:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES names res5, and a ResNet-{resnet.DEPTH} ends with res4; set it to [res4], or "
            "DEPTH to 18 or 34."
        )
    if any(resnet.DEFORM_ON_PER_STAGE):
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE is set, and ODE-ResNets have no deformable convolutions. "
            "Use build_resnet_fpn_backbone for those."
        )
    if resnet.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is 1, or 2 for DC5, not {resnet.RES5_DILATION}.")
    if resnet.RES5_DILATION == 2 and _is_basic(resnet.DEPTH):
        raise ValueError(
            f"MODEL.RESNETS.RES5_DILATION 2 dilates bottleneck blocks, and a ResNet-{resnet.DEPTH} has basic ones. "
            "Set RES5_DILATION to 1, or DEPTH to 50, 101 or 152."
        )


def _check_head(cfg: CfgNode) -> None:
    """Whether a stage that the backbone leaves to the head would be built there without its flow."""
    model = cfg.MODEL
    stock = model.META_ARCHITECTURE == "GeneralizedRCNN" and model.ROI_HEADS.NAME == "Res5ROIHeads"
    if stock and "res5" in model.ODE.STAGES and model.ODE.ROLE != "twin":
        raise ValueError(
            f"MODEL.ODE.STAGES names res5, which the head Res5ROIHeads builds of residual blocks whatever the role "
            f"({model.ODE.ROLE!r}) is. Set MODEL.ROI_HEADS.NAME ODERes5ROIHeads, or leave res5 out of STAGES."
        )


def _pyramid(cfg: CfgNode, bottom_up: ResNet, top: nn.Module | None) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _stem(cfg: CfgNode, inputs: int) -> CNNBlockBase:
    resnet = cfg.MODEL.RESNETS
    if _is_cifar(resnet.DEPTH):
        return CifarStem(inputs=inputs, outputs=resnet.STEM_OUT_CHANNELS, norm=resnet.NORM)
    return BasicStem(in_channels=inputs, out_channels=resnet.STEM_OUT_CHANNELS, norm=resnet.NORM)


def _blocks(cfg: CfgNode, stage: _Stage) -> list[CNNBlockBase]:
    return [_residual_block(cfg, stage, first=True), *_tail(cfg, stage)]


def _residual_block(cfg: CfgNode, stage: _Stage, *, first: bool) -> CNNBlockBase:
    resnet = cfg.MODEL.RESNETS
    inputs, stride = (stage.inputs, stage.stride) if first else (stage.outputs, 1)
    if _is_basic(resnet.DEPTH):
        block = BasicBlock(inputs, stage.outputs, stride=stride, norm=resnet.NORM)
        if _is_cifar(resnet.DEPTH) and block.shortcut is not None:
            block.shortcut = PadShortcut(padding=(stage.outputs - inputs) // 2)
        return block
    return BottleneckBlock(
        inputs,
        stage.outputs,
        bottleneck_channels=stage.bottleneck,
        stride=stride,
        num_groups=resnet.NUM_GROUPS,
        norm=resnet.NORM,
        stride_in_1x1=resnet.STRIDE_IN_1X1,
        dilation=stage.dilation,
    )


def _tail(cfg: CfgNode, stage: _Stage) -> list[CNNBlockBase]:
    role = cfg.MODEL.ODE.ROLE if stage.name in cfg.MODEL.ODE.STAGES else "twin"
    if role == "ablation" or stage.blocks == 1:
        return []
    if role == "twin":
        return [_residual_block(cfg, stage, first=False) for _ in range(stage.blocks - 1)]
    resnet = cfg.MODEL.RESNETS
    return make_flows(
        cfg,
        Tail(
            stage=stage.name,
            channels=stage.outputs,
            blocks=stage.blocks - 1,
            norm=resnet.NORM,
            norm_key="MODEL.RESNETS.NORM",
            field="basic" if _is_basic(resnet.DEPTH) else "bottleneck",
            bottleneck=stage.bottleneck,
            groups=resnet.NUM_GROUPS,
            dilation=stage.dilation,
        ),
    )
