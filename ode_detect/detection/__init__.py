"""Object detection with Detectron2's heads on ODE backbones."""
