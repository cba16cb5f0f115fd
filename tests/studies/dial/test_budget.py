"""The search for per-flow steps, on a dial whose numbers are known."""

from dataclasses import dataclass, field

import pytest

from ode_detect.ode import Adaptive, FixedStep
from ode_detect.studies.dial.budget import Budget, BudgetError, Change, choose, greedy, measure_changes
from ode_detect.studies.dial.settings import Measured, Setting
from ode_detect.task import ConfigError

# What each flow loses and takes at 1, 2 or 4 Euler steps.
LOSS = {"a": {1: 0.30, 2: 0.02, 4: 0.0}, "b": {1: 0.01, 2: 0.0, 4: 0.0}, "c": {1: 0.06, 2: 0.05, 4: 0.0}}
PER_STEP = {"a": 1.0, "b": 2.0, "c": 3.0}
FULL = Setting(tuple((path, FixedStep(steps=4)) for path in LOSS))


def at(a: int, b: int, c: int) -> Setting:
    return FULL.with_flows({"a": FixedStep(steps=a), "b": FixedStep(steps=b), "c": FixedStep(steps=c)})


@dataclass
class KnownDial:
    """Stands for a `Dial`: losses add up, and ``together`` more is lost by every setting that changes two flows."""

    together: float = 0.0
    metric: str = "AP50"
    full: Setting = FULL
    measured: dict[str, Measured] = field(default_factory=dict)
    timed: list[list[str]] = field(default_factory=list)

    @property
    def known(self) -> list[str]:
        return list(self.measured)

    def evaluate(self, setting: Setting) -> Measured:
        steps = {path: solver.steps for path, solver in setting.solvers}
        loss = sum(LOSS[path][n] for path, n in steps.items())
        loss += self.together if len(setting.differs(FULL)) > 1 else 0.0
        cost = {"evaluations": sum(steps.values())}
        return self.measured.setdefault(setting.name, Measured(setting, {"AP50": 0.8 - loss}, cost))

    def quality(self, name: str) -> float:
        return self.measured[name].metrics["AP50"]

    def times(self, names: list[str]) -> dict[str, float]:
        self.timed.append(names)
        solvers = {name: self.measured[name].setting.solvers for name in names}
        return {name: 10 + sum(PER_STEP[p] * s.steps for p, s in pairs) for name, pairs in solvers.items()}


@pytest.fixture
def dial() -> KnownDial:
    known = KnownDial()
    for setting in (FULL, at(2, 2, 2), at(1, 1, 1)):
        known.evaluate(setting)
    return known


CANDIDATES = [FULL, at(2, 2, 2), at(1, 1, 1)]


def pick(dial: KnownDial, budget: Budget, flows: str = "abc") -> str:
    setting, times = choose(dial, CANDIDATES, budget, flows=list(flows))
    assert set(times) == set(dial.measured)
    return setting.name


def test_a_setting_is_called_by_its_methods_and_steps() -> None:
    assert FULL.name == "euler_4"
    assert at(1, 2, 4).name == "euler_1-2-4"
    assert FULL.with_flows({"a": FixedStep("rk4", steps=1)}).name == "rk4_1-euler_4-euler_4"
    assert FULL.with_flows(dict.fromkeys("abc", Adaptive("dopri5"))).name == "dopri5"
    assert FULL.with_flows({"a": Adaptive("dopri5")}).name == "dopri5-euler_4-euler_4"
    assert at(1, 4, 2).differs(FULL) == {"a", "c"}
    assert FULL.with_flows(dict.fromkeys("abc", Adaptive("implicit_adams", steps=3))).name == "implicit_adams_3"
    assert FULL.with_flows({"a": Adaptive("implicit_adams", steps=3)}).name == "implicit_adams_3-euler_4-euler_4"


def test_each_flow_is_measured_by_itself(dial: KnownDial) -> None:
    changes = measure_changes(dial, CANDIDATES, ["a", "c"])
    assert {(c.flow, c.setting.name): (round(c.loss, 9), c.saved) for c in changes} == {
        ("a", "euler_2-4-4"): (0.02, 2.0),
        ("a", "euler_1-4-4"): (0.30, 3.0),
        ("c", "euler_4-4-2"): (0.05, 6.0),
        ("c", "euler_4-4-1"): (0.06, 9.0),
    }


def test_changes_are_taken_by_loss_for_a_saved_millisecond() -> None:
    changes = [
        Change("a", at(2, 4, 4), 0.02, 2.0),
        Change("a", at(1, 4, 4), 0.30, 3.0),
        Change("b", at(4, 1, 4), 0.01, 6.0),
        Change("c", at(4, 4, 1), 0.06, 9.0),
        Change("c", at(4, 4, 2), 0.05, -1.0),
    ]
    order = greedy(changes)
    assert [setting.name for setting, _, _ in order] == ["euler_4-1-4", "euler_4-1-1", "euler_2-1-1", "euler_1"]
    assert [round(loss, 9) for _, loss, _ in order] == [0.01, 0.07, 0.09, 0.37]
    assert [saved for _, _, saved in order] == [6.0, 15.0, 17.0, 18.0]


def test_the_fastest_within_a_loss(dial: KnownDial) -> None:
    assert pick(dial, Budget(loss=0.0)) == "euler_4-2-4"
    assert pick(dial, Budget(loss=0.011)) == "euler_4-1-4"
    assert pick(dial, Budget(loss=0.08)) == "euler_4-1-1"
    assert pick(dial, Budget(loss=0.091)) == "euler_2-1-1"
    assert pick(dial, Budget(loss=1.0)) == "euler_1"


def test_what_does_not_keep_its_promise_is_not_chosen() -> None:
    dial = KnownDial(together=0.05)
    for setting in CANDIDATES:
        dial.evaluate(setting)
    # The sum of the losses promises euler_4-1-1 for 0.07; together they lose 0.12.
    assert pick(dial, Budget(loss=0.08)) == "euler_4-4-1"
    assert "euler_4-1-1" in dial.measured


def test_the_best_within_a_time(dial: KnownDial) -> None:
    assert dial.times(["euler_4"]) == {"euler_4": 34.0}
    assert pick(dial, Budget(milliseconds=100.0)) == "euler_4-2-4"  # as good as the full steps, and faster
    assert pick(dial, Budget(milliseconds=30.0)) == "euler_4-2-4"
    assert pick(dial, Budget(milliseconds=20.0)) == "euler_4-1-1"
    assert pick(dial, Budget(milliseconds=16.0)) == "euler_1"


def test_a_walk_times_what_it_compares_and_all_of_it_once(dial: KnownDial) -> None:
    with pytest.raises(BudgetError):
        pick(dial, Budget(milliseconds=15.0))
    _, *walk, everything = dial.timed
    assert walk == [["euler_4"], ["euler_4", "euler_1"]]
    assert everything == dial.known


def test_only_the_flows_that_may_change_do(dial: KnownDial) -> None:
    assert pick(dial, Budget(loss=1.0), flows="c") == "euler_4-4-1"
    assert pick(dial, Budget(milliseconds=30.0), flows="b") == "euler_4-2-4"


def test_a_budget_that_nothing_keeps_to_names_the_nearest(dial: KnownDial) -> None:
    with pytest.raises(BudgetError, match=r"keeps to 15 ms .* nearest is euler_1 with 16\.0 ms and a loss of 0\.3700"):
        pick(dial, Budget(milliseconds=15.0))


@pytest.mark.parametrize(
    "numbers",
    [{}, {"milliseconds": 1.0, "loss": 0.1}, {"milliseconds": 0.0}, {"loss": -0.1}, {"loss": float("nan")}],
)
def test_a_budget_is_one_number_in_its_range(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"a budget|a loss"):
        Budget(**numbers)
