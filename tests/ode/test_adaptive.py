import pytest

from ode_detect.ode import Adaptive, FixedStep, adaptive_methods
from ode_detect.ode.adaptive import takes_steps


def test_which_methods_take_steps():
    assert takes_steps(FixedStep())
    assert takes_steps(Adaptive("rk4"))
    assert takes_steps(Adaptive("explicit_adams"))
    assert not takes_steps(Adaptive("dopri5"))
    assert not takes_steps(Adaptive("scipy_solver"))


@pytest.mark.parametrize("limit", [0, -5, 10.5, True])
def test_the_limit_must_be_whole(limit):
    with pytest.raises(ValueError, match="max_evaluations must be an integer of 1 or more"):
        Adaptive(max_evaluations=limit)


@pytest.mark.parametrize("tolerance", [0.0, -1e-3, float("nan")])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_must_be_positive(name, tolerance):
    with pytest.raises(ValueError, match="tolerances must be above 0"):
        Adaptive(**{name: tolerance})


@pytest.mark.parametrize("method", adaptive_methods())
def test_every_method_of_torchdiffeq_can_be_named(method):
    assert Adaptive(method).method == method
