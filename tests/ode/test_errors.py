import copy
import pickle

import pytest

from ode_detect.ode import NonFiniteStateError, SolveError, StepUnderflowError, TooManyEvaluationsError

KINDS = SolveError.__subclasses__()


def make(kind: type[SolveError]) -> SolveError:
    return kind(block="backbone.res4", time=3.25, step="step 7 of 22", evaluations=28)


def test_all_kinds_are_here():
    assert {NonFiniteStateError, StepUnderflowError, TooManyEvaluationsError} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_where_and_what_to_do(kind):
    error = make(kind)
    assert isinstance(error, RuntimeError)
    assert (error.block, error.time, error.step, error.evaluations) == ("backbone.res4", 3.25, "step 7 of 22", 28)
    for part in ("'backbone.res4'", "at time 3.25", "step 7 of 22", "after 28 evaluations", kind.cause, kind.cure):
        assert part in str(error)
    assert len(kind.cure) > 20


@pytest.mark.parametrize("kind", [SolveError, *KINDS])
@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_an_error_survives_the_way_between_processes(kind, clone):
    error = make(kind)
    again = clone(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_causes_and_cures_differ():
    assert len({kind.cause for kind in KINDS}) == len({kind.cure for kind in KINDS}) == len(KINDS)
