"""Who is held against whom, and what the page says about numbers that cannot be compared or are not there."""

from pathlib import Path
from types import SimpleNamespace

from ode_detect.engine.config import load_config
from ode_detect.report.comparison import Compared, group
from ode_detect.report.protocol import from_words
from ode_detect.report.results import Row
from ode_detect.studies.compare.compare import Request, _protocol, _reasons, _warnings, opponents
from ode_detect.studies.compare.measure import MANY, ONE, Loaded

from ...conftest import QUICKSTART

REQUEST = Request(("a.yaml", "b.yaml"), Path("page"), "command")


def network(name: str, role: str, *overrides: str) -> Loaded:
    cfg = load_config(QUICKSTART, ["MODEL.ODE.ROLE", role, *overrides])
    return Loaded(name, role, SimpleNamespace(cfg=cfg), None)


def scored(name: str, **results: object) -> SimpleNamespace:
    row = Row(name, "ode", 0, "c", {"AP": 0.5}, {})
    return SimpleNamespace(row=row, results=SimpleNamespace(**results))


def test_the_opponent_is_the_one_that_differs_least() -> None:
    networks = [
        network("shared", "ode"),
        network("wide", "ode", "MODEL.FPN.OUT_CHANNELS", "16"),
        network("wide_twin", "twin", "MODEL.FPN.OUT_CHANNELS", "16"),
        network("twin", "twin"),
        network("ablation", "ablation"),
    ]
    twins, ablations = opponents(networks)
    assert twins == {"shared": "twin", "wide": "wide_twin", "ablation": "twin"}
    assert ablations == {"shared": "ablation", "wide": "ablation"}
    assert opponents(networks[:2]) == ({}, {})


def test_a_reader_is_warned_of_unequal_training_and_machines() -> None:
    rows = [Row("a", "ode", 0, "c", {"AP": 0.5}, {})]
    runs = [scored("a", machine={"cpu": "one", "torch": "2"}), scored("b", machine={"cpu": "other"})]
    keys = {"SOLVER.MAX_ITER": ("1", "2"), "MODEL.WEIGHTS": ("x.pth", "y.pth"), "MODEL.ODE.ROLE": ("ode", "twin")}
    unlike, missing, machines = _warnings(REQUEST, runs, Compared(group(rows)), keys)
    assert unlike.endswith("SOLVER.MAX_ITER: 1, 2; MODEL.WEIGHTS: x.pth, y.pth.")
    assert missing.startswith("Not measured here: the twin and the ablation.")
    assert "cpu one; cpu other" in machines
    # Weights that were given are what is compared, and say nothing about the training.
    given = Request(("a.yaml", "b.yaml"), Path("page"), "command", weights=("x.pth", "y.pth"))
    del keys["SOLVER.MAX_ITER"]
    assert not any("not trained alike" in text for text in _warnings(given, runs, Compared(group(rows)), keys))
    every = [*rows, Row("t", "twin", 0, "c", {}, {}), Row("n", "ablation", 0, "c", {}, {})]
    assert list(_warnings(given, runs[:1], Compared(group(every)), keys)) == []


def test_what_is_missing_has_a_reason() -> None:
    rows = [
        Row("a", "ode", 0, "c", {"AP": 0.5, "f1": 0.5}, {"train_minutes": 1.0}),
        Row("b", "twin", 0, "c", {"AP": 0.5}),
    ]
    reasons = _reasons(REQUEST, rows)
    assert set(reasons) == {("b", "f1"), ("b", "train_minutes")}
    assert "--evaluate" in reasons["b", "f1"]


def test_the_protocol_is_stated_once_where_runs_share_it() -> None:
    times = [Row(f"{case}: a", "ode", 0, "c", {}, {"rounds": 5}, case) for case in (ONE, f"{MANY} of 4")]

    def stated(*protocols: str) -> list[str]:
        runs = [scored(name, protocol=from_words(one)) for name, one in zip("ab", protocols, strict=True)]
        return list(map(str, _protocol(runs, times)))

    alike = stated("trained; tested", "trained; tested")
    assert alike[:2] == ["trained", "tested"]
    assert "4 at a time" in alike[2]
    assert "a training step: forward and backward on the first training batch, not timed" in alike
    unlike = stated("long; tested", "short; tested")
    assert unlike[:3] == ["a, seed 0: long", "b, seed 0: short", "tested"]
