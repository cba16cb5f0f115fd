"""Neural ordinary differential equations for computer vision, on Detectron2."""

__version__ = "0.1.0"
