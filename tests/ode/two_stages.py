"""A network of two stages, each with a flow."""

from torch import nn

from ode_detect.ode import BasicField, ODEBlock, in_pieces


class Network(nn.Module):
    """Two stages, each a convolution with BatchNorm and then a flow."""

    def __init__(self, *solvers):
        super().__init__()
        self.res2 = self._stage("res2.flow", solvers[0])
        self.res3 = self._stage("res3.flow", solvers[-1])

    def _stage(self, name, solver):
        field = in_pieces("piecewise", 4, lambda: BasicField(channels=4, norm="none"))
        return nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), ODEBlock(field=field, solver=solver, name=name)
        )

    def forward(self, x):
        return self.res3(self.res2(x))

    @property
    def solvers(self):
        return [self.res2[2].solver, self.res3[2].solver]
