import pytest
import torch
from torch import nn

from ode_detect.ode import FixedStep, ODEBlock
from ode_detect.studies.benchmark.stages import Stage, train_step

STAGES = [Stage("basic", "basic", 3, (2, 32, 6, 5)), Stage("bottleneck", "bottleneck", 3, (2, 16, 6, 5))]


@pytest.mark.parametrize("stage", STAGES, ids=lambda s: s.name)
def test_blocks_and_field_compute_the_same(stage: Stage) -> None:
    blocks, field = stage.build()
    flow = ODEBlock(field=field, solver=FixedStep("euler", steps=3, projection="relu"))
    h = stage.state()
    assert h.shape == stage.shape
    assert not torch.equal(blocks(h), h)
    torch.testing.assert_close(flow(h), blocks(h), rtol=0, atol=0)
    # The same parameters in the same order, so gradients can be compared one by one.
    for ours, theirs in zip(train_step(flow, h), train_step(blocks, h), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_stage_is_the_same_each_time_and_in_each_precision() -> None:
    stage = STAGES[1]
    (a, _), (b, _) = stage.build(), stage.build(dtype=torch.float64)
    h = stage.state(dtype=torch.float64)
    torch.testing.assert_close(a(h.float()).double(), b(h), rtol=1e-5, atol=1e-5)


def test_a_training_step_differentiates_by_state_and_weights() -> None:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    h = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    w = layer.weight.detach()
    by_state, by_weight = train_step(layer, h)
    out = h @ w.T  # d(out^2) = 2 out d(out)
    torch.testing.assert_close(by_state, 2 * out * w)
    torch.testing.assert_close(by_weight, 2 * out * h)
    assert layer.weight.grad is None
