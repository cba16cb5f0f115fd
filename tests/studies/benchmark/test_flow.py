import pytest
import torch

from ode_detect.ode import FixedStep, ODEBlock
from ode_detect.studies.benchmark import flow
from ode_detect.studies.benchmark.flow import QUICK_STAGES, PlainLoop, Torchdiffeq


@pytest.fixture(scope="module")
def cases():
    return list(flow.cases(quick=True))


def test_every_method_and_both_others_are_measured_on_every_stage(cases) -> None:
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for stage in QUICK_STAGES:
        assert f"{stage.name}, {stage.blocks} blocks, training step" in names
        for method in ("euler", "midpoint", "rk4"):
            assert f"{stage.name}, {method}, 2 steps, forward" in names
    assert {side.role for case in cases for side in case.sides.values()} == {"ode", "twin", "baseline"}


def test_the_sides_of_a_discrete_case_compute_the_same(cases) -> None:
    discrete = [case for case in cases if "residual blocks" in case.sides]
    assert len(discrete) == 2 * len(QUICK_STAGES)
    for case in discrete:
        outputs = [side.run() for side in case.sides.values()]
        for other in outputs[1:]:
            torch.testing.assert_close(other, outputs[0])
        assert all(side.metrics["output_difference"] == 0.0 for side in case.sides.values())
        assert [ratio.aim for ratio in case.ratios] == [1.02, 1.02]


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_torchdiffeq_solves_the_same_as_ours(method: str) -> None:
    stage = QUICK_STAGES[0]
    _, field = stage.build()
    ours = ODEBlock(field=field, solver=FixedStep(method, steps=4))
    torch.testing.assert_close(Torchdiffeq(field, method=method, steps=4)(stage.state()), ours(stage.state()))


def test_a_forward_pass_keeps_no_graph_and_evaluates_as_often_as_it_says(cases) -> None:
    case = next(case for case in cases if "rk4, 2 steps, forward" in case.name)
    assert not case.sides["flow"].run().requires_grad
    assert case.sides["flow"].cost["evaluations"] == 8


def test_the_plain_loop_is_the_formula() -> None:
    stage = QUICK_STAGES[0]
    _, field = stage.build()
    first, second = field.pieces
    h = (stage.state() + first(0.0, stage.state())).clamp(min=0)
    torch.testing.assert_close(PlainLoop(field)(stage.state()), (h + second(1.0, h)).clamp(min=0))
