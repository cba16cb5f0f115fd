import json
import math

import pytest
import torch
from torch import nn

from ode_detect.ode import Certificate
from ode_detect.ode.conversion.certificate import (
    ConvertedRun,
    Differences,
    KeptBlock,
    Observation,
    Pairing,
    compare,
    tensors_of,
)

SAME = Pairing({}, {})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2))


def found(original: nn.Module, converted: nn.Module, *, training: bool, pairing: Pairing = SAME) -> Differences:
    example = torch.ones(2, 3, 6, 6)
    a = Observation(original, example, pairing.states.values(), training=training)
    b = Observation(converted, example, pairing.states.keys(), training=training)
    return compare(a, b, pairing)


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_its_own_like(training: bool) -> None:
    # With dropout: both sides must draw the same mask.
    assert found(network(), network(), training=training).largest == 0.0


def test_what_differs_is_found_and_measured() -> None:
    other = network()
    with torch.no_grad():
        other[4].bias[1] += 0.25
    assert found(network(), other, training=False).evaluation == pytest.approx(0.25)
    assert found(network(), other, training=True) == Differences(training=pytest.approx(0.25))
    other = network()
    other[1].momentum = 0.2
    difference = found(network(), other, training=True)
    assert difference.buffers > 1e-3
    assert (difference.training, difference.gradients) == (0.0, 0.0)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class WrongGradient(nn.Module):
    def forward(self, x):
        return Halved.apply(x)


def test_a_wrong_gradient_is_found_though_the_outputs_agree() -> None:
    right, wrong = nn.Sequential(nn.Identity(), network()), nn.Sequential(WrongGradient(), network())
    difference = found(right, wrong, training=True)
    assert difference.training == 0.0
    assert difference.gradients > 1e-3, "the gradient of the input counts too"


def test_a_value_on_one_side_only_is_an_infinite_difference() -> None:
    other = network()
    other[0].weight.requires_grad_(False)
    assert found(network(), other, training=True).gradients == math.inf
    other[0].weight.requires_grad_(True)
    with torch.no_grad():
        other[4].bias[0] = float("nan")
    assert found(network(), other, training=False).evaluation == math.inf
    assert found(other, other, training=False).evaluation == 0.0
    other[4] = nn.Linear(64, 3)
    assert found(network(), other, training=False).evaluation == math.inf


def test_names_and_states_are_paired() -> None:
    original = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    converted = nn.Sequential(nn.Sequential(original[0], original[1]), original[2], original[3])
    tensors = {f"0.{i}.{n}": f"{i}.{n}" for i in (0, 1) for n in original[i].state_dict()}
    tensors |= {f"2.{name}": f"3.{name}" for name in original[3].state_dict()}
    pairing = Pairing(tensors, {"0": "1"})
    assert found(original, converted, training=True, pairing=pairing).largest == 0.0
    assert found(original, converted, training=True).gradients == math.inf
    # A state that differs counts, though it does not show in the output.
    assert found(original, converted, training=False, pairing=Pairing(tensors, {"0.0": "1"})).evaluation > 0


def test_observing_leaves_network_example_and_random_state() -> None:
    model, example = network(), torch.ones(2, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Observation(model.eval(), example, ["1"], training=True)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not model[1]._forward_hooks
    assert not example.requires_grad


def test_outputs_of_all_kinds_are_taken_apart() -> None:
    class Boxes:
        tensor = torch.ones(1)

    class Instances:
        def get_fields(self):
            return {"boxes": Boxes(), "scores": torch.ones(2)}

    output = {"a": [torch.ones(3), (torch.ones(4),)], "b": {"instances": Instances()}, "c": 7, "d": None}
    assert [t.numel() for t in tensors_of(output)] == [3, 4, 1, 2]


@pytest.fixture
def certificate() -> Certificate:
    return Certificate(
        runs=(ConvertedRun("layer1.1", ("layer1.1", "layer1.2"), 2, 1234, "relu"),),
        kept=(KeptBlock("layer1.0", "Bottleneck", "it changes the shape"),),
        parameters_before=5678,
        parameters_after=5678,
        differences=Differences(gradients=0.0125),
        measured_on="a random batch (2, 3, 64, 64) (evaluation and training)",
    )


def test_a_certificate_is_a_readable_table(certificate: Certificate) -> None:
    text = str(certificate)
    lines = [line.split() for line in text.splitlines()]
    assert ["layer1.1", "layer1.1", "to", "2", "2", "relu", "1,234"] in lines
    assert ["layer1.0", "Bottleneck", "it", "changes", "the", "shape"] in lines
    assert ["gradients", "0.0125"] in lines
    assert ["outputs,", "evaluation", "0.0"] in lines
    assert "5,678 before, 5,678 after" in text
    assert "measured on a random batch" in text
    assert max(map(len, text.splitlines())) < 120


def test_a_certificate_says_whether_anything_was_lost(certificate: Certificate) -> None:
    assert not certificate.lossless
    assert Certificate(**{**vars(certificate), "differences": Differences()}).lossless


def test_a_certificate_becomes_json(certificate: Certificate) -> None:
    content = json.loads(json.dumps(certificate.to_dict()))
    assert content["runs"][0]["blocks"] == ["layer1.1", "layer1.2"]
    assert content["kept"][0]["reason"] == "it changes the shape"
    assert content["differences"] == {"evaluation": 0.0, "training": 0.0, "gradients": 0.0125, "buffers": 0.0}
