import pytest
import torch

from ode_detect.studies.benchmark import gradients
from ode_detect.studies.benchmark.gradients import BACKPROP, BINOMIAL, CHECKPOINT, COUPLED, MODES, REVERSIBLE
from ode_detect.studies.timing import measure


@pytest.fixture(scope="module")
def cases():
    return list(gradients.cases(quick=True))


def test_every_mode_is_measured_at_every_number_of_steps(cases) -> None:
    steps = [case for case in cases if "training step" in case.name]
    assert [next(iter(case.sides.values())).cost["steps"] for case in steps] == [4, 8]
    for case in steps:
        assert set(case.sides) == set(MODES)
        for side in case.sides.values():
            assert all(torch.isfinite(g).all() for g in side.run())


def test_evaluations_are_those_of_the_schemes(cases) -> None:
    sides = next(case for case in cases if "8 steps, training step" in case.name).sides
    assert {mode: sides[mode].cost["evaluations"] for mode in (BACKPROP, CHECKPOINT, REVERSIBLE)} == {
        BACKPROP: 8,
        CHECKPOINT: 8,
        REVERSIBLE: 15,
    }
    assert sides[BACKPROP].cost["backward_evaluations"] == 0
    assert sides[COUPLED].cost["backward_evaluations"] == 0
    assert sides[CHECKPOINT].cost["backward_evaluations"] == 8


def test_exact_gradients_differ_by_rounding_only(cases) -> None:
    sides = next(case for case in cases if "8 steps, training step" in case.name).sides
    for mode in (CHECKPOINT, BINOMIAL, REVERSIBLE):
        assert sides[mode].metrics["gradient_difference_float32"] < 1e-5
        assert sides[mode].metrics["gradient_difference_float64"] < 1e-10
    assert sides["adjoint"].metrics["gradient_difference_float64"] > 1e-6


def test_memory_is_stated_across_steps(cases) -> None:
    (case,) = [case for case in cases if case.name.endswith("memory")]
    _, comparisons = measure(case, section="gradients", seconds=0.0)
    constant, binomial, checkpoint = [c for c in comparisons if c.quantity == "kept_mib"]
    assert constant.ours.endswith("reversible, 8 steps")
    assert constant.other.endswith("reversible, 4 steps")
    assert constant.met
    assert binomial.aim == 0.25
    assert binomial.ratio < checkpoint.ratio < 1
    assert checkpoint.aim is None
