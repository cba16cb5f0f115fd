import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import mobilenetv2
from torchvision.models import resnet as tv
from torchvision.ops import StochasticDepth

from ode_detect.ode import ConversionError, ResidualBranch
from ode_detect.ode.conversion.residual import branch_path, looks_residual, projection_of


def mobile_v3() -> nn.Module:
    return next(m for m in torchvision.models.mobilenet_v3_small().features if getattr(m, "use_res_connect", False))


BLOCKS = {
    "basic": (lambda: tv.BasicBlock(8, 8), "relu"),
    "bottleneck": (lambda: tv.Bottleneck(32, 8), "relu"),
    "ResNeXt": (lambda: tv.Bottleneck(32, 8, groups=4, base_width=64), "relu"),
    "inverted": (lambda: mobilenetv2.InvertedResidual(8, 8, 1, 6), "none"),
    "MobileNetV3": (mobile_v3, "none"),
}


@pytest.mark.parametrize(("make", "projection"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_is_its_state_plus_its_branch(make, projection) -> None:
    block = make()
    assert looks_residual(block)
    assert projection_of(block) == projection
    channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    h = torch.randn(2, channels, 6, 5)
    before, total = h.clone(), h + ResidualBranch(block)(0.0, h)
    assert torch.equal(h, before), "the branch must not work in place on the state"
    # A block works in place on what it computed, and may on nothing else.
    assert torch.equal(block(h), F.relu(total) if projection == "relu" else total)


@pytest.mark.parametrize(("make", "projection"), BLOCKS.values(), ids=BLOCKS)
def test_asking_changes_neither_block_nor_mode(make, projection) -> None:
    block = make().train()
    before = copy.deepcopy(block.state_dict())
    projection_of(block)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert all(module.training for module in block.modules())
    assert all(p.grad is None for p in block.parameters())


def test_weights_of_zero_hide_nothing() -> None:
    class Silu(tv.BasicBlock):
        def forward(self, x):
            return F.relu(x + self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x))))))

    block = Silu(8, 8)
    nn.init.zeros_(block.bn2.weight)  # as new networks have it: the branch is zero whatever is in it
    with pytest.raises(ConversionError, match="neither"):
        projection_of(block)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.downsample = None

    def forward(self, x):
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class Relu6Block(tv.BasicBlock):
    def forward(self, x):
        return F.relu6(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ScaledBlock(tv.BasicBlock):
    def forward(self, x):
        return F.relu(x + 0.5 * self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class DropoutBlock(tv.BasicBlock):
    def forward(self, x):
        return F.relu(x + F.dropout(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))), 0.5, self.training))


class FixedSizeBlock(tv.BasicBlock):
    def forward(self, x):
        return super().forward(x).reshape(2, 8, 7, 7)


def with_layer(name: str, layer: nn.Module, block: nn.Module | None = None) -> nn.Module:
    block = block or tv.BasicBlock(8, 8)
    setattr(block, name, layer)
    return block


def hooked() -> nn.Module:
    block = tv.BasicBlock(8, 8)
    block.register_forward_hook(lambda module, x, out: None)
    return block


REFUSED = {
    "transition": (lambda: tv.BasicBlock(8, 8, downsample=nn.Conv2d(8, 8, 1)), "its shortcut is a layer of its own"),
    "no shortcut": (lambda: mobilenetv2.InvertedResidual(8, 16, 1, 6), "it has no shortcut"),
    "pre-activation": (PreActivation, r"normalises before it convolves \(pre-activation\)"),
    "SiLU after the sum": (lambda: with_layer("relu", nn.SiLU()), "it applies SiLU after the sum"),
    "relu6 after the sum": (lambda: Relu6Block(8, 8), r"neither h \+ f\(h\) nor relu"),
    "scaled": (lambda: ScaledBlock(8, 8), r"neither h \+ f\(h\) nor relu"),
    "a function that draws": (lambda: DropoutBlock(8, 8), r"neither h \+ f\(h\) nor relu"),
    "dropout": (lambda: with_layer("bn1", nn.Dropout2d(0.25)), r"Dropout2d at 'bn1' draws at random .*\(0.25\)"),
    "stochastic depth": (
        lambda: with_layer("stochastic_depth", StochasticDepth(0.1, "row"), mobilenetv2.InvertedResidual(8, 8, 1, 6)),
        "StochasticDepth at 'stochastic_depth' draws at random",
    ),
    "another layer": (
        lambda: with_layer("attention", nn.Conv2d(8, 8, 1)),
        "it has layers that .*: attention",
    ),
    "hooks": (hooked, "hooks are registered on it"),
    "fixed size": (lambda: FixedSizeBlock(8, 8), "cannot be evaluated on a random state"),
    "other layers": (lambda: nn.TransformerEncoderLayer(8, 2), "not those of a basic, bottleneck or inverted"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_step_is_refused_with_the_reason(make, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        projection_of(make())


def test_an_identity_or_an_empty_sequence_is_no_shortcut_of_its_own() -> None:
    for shortcut in (nn.Identity(), nn.Sequential(), None):
        assert projection_of(tv.BasicBlock(8, 8, downsample=shortcut)) == "relu"


def test_a_path_names_the_layers_in_the_order_of_evaluation() -> None:
    assert branch_path(tv.Bottleneck(32, 8)) == ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3")
    assert branch_path(mobilenetv2.InvertedResidual(8, 8, 1, 6)) == ("conv",)
    # timm's blocks: drop_block before, and aa after, the activation before the last convolution; se at the end.
    timm = pytest.importorskip("timm")
    basic = timm.create_model("seresnet18").layer1[1]
    assert branch_path(basic) == (*("conv1", "bn1", "drop_block", "act1", "aa"), *("conv2", "bn2", "se"))
    bottleneck = timm.create_model("resnet26").layer1[1]
    last = ("conv3", "bn3")
    assert branch_path(bottleneck) == ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", *last)


def test_freezing_a_branch_makes_its_weights_constant() -> None:
    branch = ResidualBranch(tv.BasicBlock(8, 8))
    branch.freeze()
    assert not any(p.requires_grad for p in branch.parameters())
