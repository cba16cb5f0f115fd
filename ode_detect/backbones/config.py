"""Config keys of flows, and of the backbones of ours that have no pretrained weights."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of flows and backbones, with their defaults, to a Detectron2 config.

    The defaults are those of a pretrained ResNet made continuous: one piece per replaced block, Euler, projected by
    relu, which gives the outputs of the ResNet.
    """
    cfg.MODEL.ODE = CfgNode()
    # What stands in place of the shape-keeping blocks of STAGES: a flow ("ode"), Detectron2's residual blocks ("twin"),
    # or nothing ("ablation").
    cfg.MODEL.ODE.ROLE = "ode"
    # Which stages of a ResNet: any of "res2", "res3", "res4", "res5". In build_odenet_backbone it is all of them.
    cfg.MODEL.ODE.STAGES = ["res2", "res3", "res4", "res5"]
    # Vector field: "basic" (two 3x3 convolutions), "bottleneck" (1x1, 3x3, 1x1), "preact" (as basic, normalisation and
    # activation before each convolution), "concat" (as preact, with time as an input channel), or "auto": the block of
    # the ResNet's depth; in build_odenet_backbone basic.
    cfg.MODEL.ODE.FIELD = "auto"
    # How the weights vary in time: "constant", "piecewise" (constant) or "hat" (linear between knots).
    cfg.MODEL.ODE.PIECES = "piecewise"
    # Number of pieces or knots of each flow; 0: one for each replaced block.
    cfg.MODEL.ODE.NUM_PIECES = 0
    # The time over which each flow is integrated, in steps of the ResNet (a tail of 8 blocks that keeps 2 pieces still
    # lasts 8); 0: one unit for each piece.
    cfg.MODEL.ODE.DURATION = 0
    # Fixed steps: "euler", "midpoint", "heun", "rk4". Or a method of torchdiffeq: "dopri5", "bosh3", ...
    cfg.MODEL.ODE.METHOD = "euler"
    # Steps of each flow over the whole time; 0: one for each piece. Adaptive methods choose their own.
    cfg.MODEL.ODE.STEPS = 0
    # Steps or method of single flows, which win over STEPS and METHOD: [{FLOW: res4, STEPS: 11, METHOD: midpoint}].
    # They count where ROLE is "ode", for any backbone; on the command line: "[{'FLOW': 'res4', 'STEPS': 11}]".
    cfg.MODEL.ODE.FLOWS = []
    # After each fixed step: "relu", as a ResNet does after its sum, or "none".
    cfg.MODEL.ODE.PROJECTION = "relu"
    # Relative tolerance of an adaptive method.
    cfg.MODEL.ODE.RTOL = 1e-3
    # Absolute tolerance of an adaptive method.
    cfg.MODEL.ODE.ATOL = 1e-4
    # The most evaluations of an adaptive method in one solve; more are an error.
    cfg.MODEL.ODE.MAX_EVALUATIONS = 1000
    # How the gradient is paid: "backprop" (memory grows with steps), "checkpoint" (exact, recomputes), "reversible"
    # (exact, constant memory, a scheme of its own with twice the evaluations; no projection), "auto" (the fastest of
    # backprop and checkpoint within MEMORY_BUDGET), "adjoint" (torchdiffeq's, inexact).
    cfg.MODEL.ODE.GRADIENT = "backprop"
    # checkpoint: keep each k-th state.
    cfg.MODEL.ODE.CHECKPOINT_EVERY = 1
    # checkpoint: keep at most this many states at any time (binomial schedule); 0: by CHECKPOINT_EVERY.
    cfg.MODEL.ODE.CHECKPOINT_STATES = 0
    # reversible: the coupling, in (0, 1).
    cfg.MODEL.ODE.COUPLING = 0.99
    # auto: what each flow may hold for its backward pass, in MiB.
    cfg.MODEL.ODE.MEMORY_BUDGET = 512
    # Normalisation in the field: "GN", "LN", "FrozenBN" (pretrained weights only), "none"; "BN" with PIECES piecewise,
    # whose statistics are those of the steps of the training; "": MODEL.RESNETS.NORM, or MODEL.ODE_NET.NORM.
    cfg.MODEL.ODE.NORM = ""
    # Activation in the field: "relu", "silu", "softplus".
    cfg.MODEL.ODE.ACTIVATION = "relu"
    # Flows behind one another in the place of one, each with weights of its own.
    cfg.MODEL.ODE.STACK = 1
    # Channels of zeros that the state gets before its flow, and keeps: an augmented state (Dupont et al. 2019). Not for
    # ResNets, whose weights have other shapes.
    cfg.MODEL.ODE.EXTRA_CHANNELS = 0

    # The network of build_odenet_backbone: a stem, then stages s1, s2, ... of one transition and one tail each.
    cfg.MODEL.ODE_NET = CfgNode()
    # "conv": a 3x3 convolution, the resolution stays. "chen": the three convolutions of Chen et al. 2018, 1/4 of it.
    cfg.MODEL.ODE_NET.STEM = "conv"
    # Channels of each stage; each but the first begins with a transition that halves the resolution.
    cfg.MODEL.ODE_NET.CHANNELS = [64]
    # Residual blocks in the tail of each stage of the twin; a flow takes their place.
    cfg.MODEL.ODE_NET.BLOCKS = [6]
    # Normalisation of stem, transitions and the twin's blocks: "BN", "GN", "LN". That of flows is MODEL.ODE.NORM.
    cfg.MODEL.ODE_NET.NORM = "BN"

    # The network of build_mlp_backbone: one hidden layer on all pixels.
    cfg.MODEL.MLP = CfgNode()
    # Height and width of the pictures in pixels.
    cfg.MODEL.MLP.SIZE = 28
    # Units of the hidden layer.
    cfg.MODEL.MLP.HIDDEN = 300
