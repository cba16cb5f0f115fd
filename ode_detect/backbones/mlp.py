"""A network without convolutions, to compare with: one hidden layer on all pixels."""

# No annotations as strings: TorchScript reads those of forward().

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn


class MLP(Backbone):
    """All pixels to one hidden layer with relu.

    Args:
        channels: C of the picture.
        side: height and width of the picture in pixels.
        hidden: units of the hidden layer.

    Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.C, with 300 units.
    """

    def __init__(self, *, channels: int, side: int, hidden: int) -> None:
        super().__init__()
        self.channels, self.side, self.hidden_units = channels, side, hidden
        self.hidden = nn.Linear(channels * side * side, hidden)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, side, side) -> "hidden" (N, units, 1, 1).

        Raises:
            ValueError: pictures of another size.
        """
        if list(x.shape[1:]) != [self.channels, self.side, self.side]:
            raise ValueError(
                f"this MLP is built for pictures of {[self.channels, self.side, self.side]}, not {list(x.shape[1:])}; "
                "set MODEL.MLP.SIZE to the side of the pictures."
            )
        return {"hidden": self.hidden(x.flatten(1)).relu()[:, :, None, None]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """One cell for a whole picture."""
        return {"hidden": ShapeSpec(channels=self.hidden_units, stride=self.side)}


@BACKBONE_REGISTRY.register()
def build_mlp_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MLP:
    """Build an `MLP`.

    Args:
        cfg: ``MODEL.MLP``.
        input_shape: channels of the picture.

    Raises:
        ValueError: a side or a number of units below 1.
    """
    mlp = cfg.MODEL.MLP
    if mlp.SIZE < 1 or mlp.HIDDEN < 1:
        raise ValueError(
            f"MODEL.MLP.SIZE and HIDDEN count pixels and units, 1 or more, not {mlp.SIZE} and {mlp.HIDDEN}; 28 and 300 "
            "are those of MNIST."
        )
    return MLP(channels=input_shape.channels, side=mlp.SIZE, hidden=mlp.HIDDEN)
