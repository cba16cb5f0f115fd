"""Small networks that are made ready for inference."""

from torch import nn

from ode_detect.ode import BasicField, FixedStep, ODEBlock, in_pieces


def flow(pieces="piecewise", field=BasicField, steps=3, norm="FrozenBN", **arguments):
    count = 1 if pieces == "constant" else 3
    made = in_pieces(pieces, count, lambda: field(channels=8, norm=norm))
    return ODEBlock(field=made, solver=FixedStep("euler", steps=steps, projection="relu"), **arguments)


class Residual(nn.Module):
    """A basic block as torchvision, timm and the CIFAR networks write it."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = norm(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.bn2 = norm(8)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
