import copy

import pytest
import torch
from torch import nn

from ode_detect.ode import BasicField, BlockRecord, FixedStep, ODEBlock, in_pieces, record_solves
from ode_detect.ode.tally import Observer, Tally


def stage(count=2, solver=None, gradient="backprop"):
    blocks = [ODEBlock(field=BasicField(channels=4), solver=solver, gradient=gradient) for _ in range(count)]
    return nn.Sequential(*blocks)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_multiply_adds_by_hand(autocast, memory_format):
    field = in_pieces("piecewise", 2, lambda: BasicField(channels=8))
    block = ODEBlock(field=field, solver=FixedStep("midpoint", steps=2)).to(memory_format=memory_format)
    h = torch.randn(3, 8, 5, 7).to(memory_format=memory_format)
    with record_solves(block) as record, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        block(h)
        block(h[:1])
    per_picture = 2 * (8 * 8 * 3 * 3 * 5 * 7)  # two convolutions with padding 1
    assert record.total.macs == (3 + 1) * 4 * per_picture


def test_multiply_adds_of_groups_and_matrices():
    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Linear(6, 6)

        def forward(self, t, h):
            return self.linear(self.conv(h))

    with record_solves(block := ODEBlock(field=Field())) as record:
        block(torch.randn(2, 8, 6, 6))
    assert record.total.macs == 2 * (8 * 2 * 9 * 36) + 2 * 8 * 6 * 6 * 6


def test_time():
    with record_solves(model := stage()) as record:
        out = model(torch.randn(1, 4, 16, 16, requires_grad=True))
        for block in record.blocks.values():
            assert block.forward_seconds > 0
            assert block.backward_seconds == 0
        out.sum().backward()
    for block in record.blocks.values():
        assert 0 < block.backward_seconds < 60


def test_counting_leaves_statistics_and_random_numbers_alone():
    """A flow in training with batch statistics and dropout is the same with and without a record."""

    class Field(nn.Sequential):
        def forward(self, t, h):
            return super().forward(h)

    field = Field(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    block = ODEBlock(field=field, solver=FixedStep(steps=2), allow_stateful_field=True)
    other, h = copy.deepcopy(block), torch.randn(2, 4, 5, 5)
    torch.manual_seed(1)
    expected = other(h)
    torch.manual_seed(1)
    with record_solves(block) as record:
        out = block(h)
    assert record.total.macs == 2 * 2 * 4 * 4 * 9 * 25
    assert torch.equal(out, expected)
    for (name, a), b in zip(block.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_tally_counts_for_all_observers_and_knows_when_the_forward_solve_is_over():
    observers = [Observer(BlockRecord(), measure=False), Observer(BlockRecord(), measure=False)]
    tally, h = Tally(observers), torch.ones(1)
    assert tally.start(nn.Identity(), h) is h
    assert tally.phase == "forward"
    evaluate = tally.count(lambda t, h: t * h)
    assert [evaluate(t, h).item() for t in (2.0, 3.0)] == [2.0, 3.0]
    tally.steps(accepted=2, rejected=1)
    tally.finish(h)
    assert tally.phase == "backward"
    evaluate(1.0, h)
    assert tally.evaluations == 3
    expected = BlockRecord(solves=1, forward_evaluations=2, backward_evaluations=1, accepted=2, rejected=1)
    assert [observer.record for observer in observers] == [expected, expected]


def test_multiply_adds_are_counted_once_for_each_shape():
    field, calls = BasicField(channels=4), []
    field.register_forward_hook(lambda *_: calls.append(1))
    observer = Observer(BlockRecord(), measure=True)
    small, large = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 6, 6)
    found = [observer.macs_per_evaluation(field, h) for h in (small, small, large, small)]
    assert found == [2592, 2592, 4 * 2592, 2592]
    assert len(calls) == 2
