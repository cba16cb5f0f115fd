"""Residual blocks into flows and back, without loss."""
