"""Settings are called by what their flows have in common."""

import pytest

from ode_detect.ode import Adaptive, FixedStep
from ode_detect.ode.adaptive import Solver
from ode_detect.studies.dial.settings import Setting, config_entry

EULER, RK4, DOPRI5 = FixedStep("euler", steps=2), FixedStep("rk4", steps=2), Adaptive("dopri5", rtol=0.1)


def setting(*solvers: Solver) -> Setting:
    return Setting(tuple((f"res{number}.flow", solver) for number, solver in enumerate(solvers, start=2)))


@pytest.mark.parametrize(
    ("solvers", "name"),
    [
        ((EULER, EULER), "euler_2"),
        ((EULER, FixedStep("euler", steps=1)), "euler_2-1"),
        ((EULER, RK4), "euler_2-rk4_2"),
        ((DOPRI5, DOPRI5), "dopri5"),
        ((DOPRI5, EULER), "dopri5-euler_2"),
        ((Adaptive("implicit_adams", steps=3), Adaptive("implicit_adams", steps=3)), "implicit_adams_3"),
    ],
)
def test_the_name_says_methods_and_steps(solvers: tuple[Solver, ...], name: str) -> None:
    assert setting(*solvers).name == name


def test_one_flow_is_changed_and_the_others_stay() -> None:
    full = setting(EULER, EULER, EULER)
    changed = full.with_flows({"res3.flow": RK4})
    assert changed == setting(EULER, RK4, EULER)
    assert changed.differs(full) == {"res3.flow"}
    assert full.differs(full) == set()


def test_a_config_holds_steps_where_the_method_takes_them() -> None:
    assert config_entry("res2", EULER) == {"FLOW": "res2", "METHOD": "euler", "STEPS": 2}
    assert config_entry("res2", DOPRI5) == {"FLOW": "res2", "METHOD": "dopri5"}
