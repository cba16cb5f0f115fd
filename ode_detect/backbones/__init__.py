"""Pictures -> feature maps: ordinary Detectron2 backbones built from flows, and their discrete twins."""

from .cifar_resnet import CifarResNet, build_cifar_resnet
from .mlp import build_mlp_backbone
from .ode_resnet import (
    build_ode_resnet_backbone,
    build_ode_resnet_fpn_backbone,
    build_ode_resnet_fpn_p6p7_backbone,
    build_stage,
)
from .odenet import build_odenet_backbone
from .weights import discrete_names

__all__ = [
    "CifarResNet",
    "build_cifar_resnet",
    "build_mlp_backbone",
    "build_ode_resnet_backbone",
    "build_ode_resnet_fpn_backbone",
    "build_ode_resnet_fpn_p6p7_backbone",
    "build_odenet_backbone",
    "build_stage",
    "discrete_names",
]
