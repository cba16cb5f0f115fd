import pytest
import torch
from torch import nn

from ode_detect.ode import BasicField, FixedStep, ODEBlock, estimate_statistics, in_pieces, solver_override
from ode_detect.ode.statistics import statistics_kept

from .two_stages import Network


@pytest.fixture
def smooth(lively):
    return lively(Network(FixedStep("euler", steps=4))).eval()


def test_statistics_are_the_averages_of_those_of_the_batches(smooth):
    batches = [torch.randn(3, 4, 5, 5) * (k + 1) + k for k in range(3)]
    norm = smooth.res2[1]
    inputs = [smooth.res2[0](batch) for batch in batches]
    with torch.no_grad():
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variance = torch.stack([x.var((0, 2, 3), unbiased=True) for x in inputs]).mean(0)
    assert estimate_statistics(smooth, iter(batches)) == 3
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


def test_statistics_follow_the_solver(smooth):
    batches = [torch.randn(3, 4, 5, 5) for _ in range(2)]
    found = []
    for steps in (4, 1, 4):
        with solver_override(smooth, steps=steps):
            estimate_statistics(smooth, batches)
        found.append(smooth.res3[1].running_mean.clone())
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


class Synchronised(nn.BatchNorm2d):
    """Computes with the momentum, and counts no batches, as Detectron2's NaiveSyncBatchNorm does on many machines."""

    def forward(self, x):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        self.running_mean += self.momentum * (mean.detach() - self.running_mean)
        self.running_var += self.momentum * (variance.detach() - self.running_var)
        return nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)


def test_statistics_of_a_layer_that_computes_with_its_momentum():
    norm, batches = Synchronised(3), [torch.randn(4, 3, 5, 5) * (k + 1) + k for k in range(3)]
    estimate_statistics(nn.Sequential(norm), batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))
    variances = [x.var((0, 2, 3), unbiased=False) for x in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1
    assert not norm._forward_pre_hooks


def test_a_layer_that_is_evaluated_several_times_averages_over_all():
    field = NormField()
    block = ODEBlock(field=field, solver=FixedStep(steps=3), allow_stateful_field=True)
    seen = []
    field.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    estimate_statistics(block, [torch.randn(4, 3, 5, 5) + k for k in range(2)])
    assert len(seen) == 6
    torch.testing.assert_close(field.norm.running_mean, torch.stack(seen).mean(0))


def test_modes_and_momentum_come_back_and_dropout_does_not_act(smooth):
    smooth.res2.append(nn.Dropout(0.9))
    smooth.train()
    smooth.res3[0].eval()
    modes = [module.training for module in smooth.modules()]
    batch = torch.randn(2, 4, 5, 5)
    estimate_statistics(smooth, [batch])
    assert [module.training for module in smooth.modules()] == modes
    assert smooth.res2[1].momentum == 0.1
    first = smooth.res3[1].running_mean.clone()
    estimate_statistics(smooth, [batch])
    assert torch.equal(smooth.res3[1].running_mean, first)


def test_a_piece_that_is_left_out_keeps_its_statistics(lively):
    field = in_pieces("piecewise", 4, lambda: nn.Module())
    for index in range(4):
        field.pieces[index] = NormField()
    block = ODEBlock(field=field, solver=FixedStep(steps=4), allow_stateful_field=True)
    with solver_override(block, steps=2):
        estimate_statistics(block, [torch.randn(4, 3, 5, 5) + 7])
    means = [float(piece.norm.running_mean.abs().sum()) for piece in field.pieces]
    assert [mean > 1 for mean in means] == [True, False, True, False]
    assert all(piece.norm.momentum == 0.1 for piece in field.pieces)


class NormField(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, t, h):
        return self.norm(h)


def test_a_failure_keeps_the_old_statistics(smooth):
    old = smooth.res2[1].running_mean.clone()
    for batches, message in (([], "there was none"), ([torch.full((2, 4, 3, 3), float("nan"))], "not finite")):
        smooth.res2[2].check_finite = smooth.res3[2].check_finite = False
        with pytest.raises(ValueError, match=message):
            estimate_statistics(smooth, batches)
        assert torch.equal(smooth.res2[1].running_mean, old)
        assert not smooth.res2[1].training
        assert smooth.res2[1].momentum == 0.1


def test_a_model_without_batch_norm_has_nothing_to_estimate():
    block = ODEBlock(field=BasicField(channels=4))
    assert estimate_statistics(block, [torch.randn(1, 4, 3, 3)]) == 1


def test_statistics_are_kept_while_the_batch_normalises(smooth):
    x = torch.randn(4, 4, 5, 5) + 3
    smooth.train()
    expected = smooth(x)
    expected.sum().backward()
    gradient = smooth.res2[0].weight.grad.clone()
    smooth.zero_grad()
    before = {name: value.clone() for name, value in smooth.state_dict().items()}
    with statistics_kept(smooth):
        out = smooth(x)
        out.sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(smooth.res2[0].weight.grad, gradient)
    assert all(torch.equal(value, before[name]) for name, value in smooth.state_dict().items())
    smooth(x)
    assert not torch.equal(smooth.res2[1].running_mean, before["res2.1.running_mean"])


def test_statistics_kept_in_evaluation_are_those_that_normalise(smooth):
    x = torch.randn(4, 4, 5, 5) + 3
    expected = smooth(x)
    with statistics_kept(smooth):
        assert torch.equal(smooth(x), expected)
