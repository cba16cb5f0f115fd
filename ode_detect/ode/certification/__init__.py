"""Certificates: whether gradients are right, and whether a network is a flow."""
