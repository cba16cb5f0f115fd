"""How each flow of a network is solved, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ode_detect.ode.adaptive import Solver, takes_steps


@dataclass(frozen=True)
class Setting:
    """How each flow of a network is solved.

    Attributes:
        solvers: (path of the flow, solver), in the order of the network.
    """

    solvers: tuple[tuple[str, Solver], ...]

    @property
    def name(self) -> str:
        """Such as "euler_2" where all flows are solved alike; "euler_1-2-2", "euler_1-rk4_2-euler_2" where not."""
        methods = {solver.method for _, solver in self.solvers}
        steps = [str(solver.steps) for _, solver in self.solvers if takes_steps(solver)]
        if len(methods) == 1 and len(steps) == len(self.solvers):
            return f"{methods.pop()}_{steps[0] if len(set(steps)) == 1 else '-'.join(steps)}"
        if len({solver for _, solver in self.solvers}) == 1:
            return methods.pop()
        return "-".join(f"{s.method}_{s.steps}" if takes_steps(s) else s.method for _, s in self.solvers)

    def with_flows(self, solvers: Mapping[str, Solver]) -> Setting:
        """The setting with other solvers for some flows."""
        return Setting(tuple((path, solvers.get(path, solver)) for path, solver in self.solvers))

    def differs(self, other: Setting) -> set[str]:
        """The flows that two settings of one network solve in different ways."""
        return {path for (path, a), (_, b) in zip(self.solvers, other.solvers, strict=True) if a != b}


@dataclass(frozen=True)
class Measured:
    """What was measured at a setting.

    Attributes:
        setting: the setting.
        metrics: of the test set; empty if the network could not be solved or gave nothing that can be evaluated.
        cost: parameters, and evaluations and multiply-adds of one picture.
    """

    setting: Setting
    metrics: dict[str, float]
    cost: dict[str, float]


def config_entry(name: str, solver: Solver) -> dict[str, Any]:
    """An entry of ``MODEL.ODE.FLOWS``: how the flow of that name is solved."""
    steps = {"STEPS": solver.steps} if takes_steps(solver) else {}
    return {"FLOW": name, "METHOD": solver.method, **steps}
