"""Pictures -> feature maps: ordinary Detectron2 backbones built from flows, and their discrete twins."""

from .ode_resnet import build_ode_resnet_backbone, build_ode_resnet_fpn_backbone, discrete_names

__all__ = ["build_ode_resnet_backbone", "build_ode_resnet_fpn_backbone", "discrete_names"]
