"""The ResNets of the CIFAR experiments: three stages of basic blocks, shortcuts without parameters."""

# No annotations as strings: TorchScript reads those of forward().

import torch.nn.functional as F
from torch import Tensor, nn

from ode_detect.ode.names import check_name

BLOCKS_PER_STAGE = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}


class PadShortcut(nn.Module):
    """Every second row and column, and channels of zeros on both sides: the shortcut of option A.

    Args:
        padding: channels of zeros before and after the channels of the input.
    """

    def __init__(self, *, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 2 * padding, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class CifarBlock(nn.Module):
    """relu(shortcut(x) + branch(x)) with two 3x3 convolutions in the branch.

    Args:
        inputs: C of the input.
        outputs: C of the output: that of the input with stride 1, twice that with stride 2.
        stride: 1 or 2.
    """

    def __init__(self, *, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        keeps_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if keeps_shape else PadShortcut(padding=(outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A ResNet for pictures of 32x32.

    The names are those of the published checkpoints of akamaster/pytorch_resnet_cifar10, without their prefix
    ``module.``.

    Args:
        blocks: blocks in each of the three stages, of 16, 32 and 64 channels; the depth is 6 * blocks + 2.
        num_classes: number of outputs.

    Source: He et al. 2016, section 4.2, with shortcuts of option A.
    """

    def __init__(self, *, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(inputs=16, outputs=16, blocks=blocks, stride=1)
        self.layer2 = _stage(inputs=16, outputs=32, blocks=blocks, stride=2)
        self.layer3 = _stage(inputs=32, outputs=64, blocks=blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Score.

        Args:
            x: RGB, normalised by ImageNet's mean and deviation, shape (N, 3, 32, 32); other sizes work too.

        Returns:
            Logits, shape (N, num_classes).
        """
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build_cifar_resnet(name: str, *, num_classes: int = 10) -> CifarResNet:
    """Build "resnet20", "resnet32", "resnet44" or "resnet56".

    Raises:
        UnknownNameError: another name.
    """
    return CifarResNet(
        blocks=BLOCKS_PER_STAGE[check_name(name, BLOCKS_PER_STAGE, "CIFAR ResNet")], num_classes=num_classes
    )


def _stage(*, inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(inputs=inputs, outputs=outputs, stride=stride)
    return nn.Sequential(first, *(CifarBlock(inputs=outputs, outputs=outputs, stride=1) for _ in range(blocks - 1)))
