import pytest

from ode_detect.ode.names import UnknownNameError, check_name


def test_a_known_name_is_given_back():
    assert check_name("rk4", ["euler", "rk4"], "method") == "rk4"


@pytest.mark.parametrize(("wrong", "near"), [("eular", "euler"), ("RK4", "rk4"), ("frozenbn", "FrozenBN")])
def test_an_unknown_name_lists_the_known_and_the_nearest(wrong, near):
    with pytest.raises(UnknownNameError) as caught:
        check_name(wrong, ["rk4", "euler", "FrozenBN"], "thing")
    assert str(caught.value) == f"unknown thing {wrong!r}; known are FrozenBN, euler, rk4. Did you mean {near!r}?"


@pytest.mark.parametrize("wrong", ["zzz", "", None, 99, ["dopri5"]])
def test_nothing_is_near(wrong):
    with pytest.raises(UnknownNameError, match=r"known are euler, rk4.$"):
        check_name(wrong, ["rk4", "euler"], "method")


def test_it_is_a_value_error():
    assert issubclass(UnknownNameError, ValueError)
