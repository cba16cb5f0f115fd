"""Flows that are certified."""

import pytest
import torch

from ode_detect.ode import ODEBlock, in_pieces


@pytest.fixture
def build(smooth_conv):
    def make(solver, dtype=torch.float32, pieces="constant"):
        field = in_pieces(pieces, 1 if pieces == "constant" else 2, lambda: smooth_conv(2, dtype))
        return ODEBlock(field=field, solver=solver)

    return make
