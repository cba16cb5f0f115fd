"""The same weights with half the step and by another method."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from ode_detect.engine.config import load_config
from ode_detect.engine.run import Run, open_evaluation, open_training
from ode_detect.engine.train import evaluate, load_network, train
from ode_detect.ode import Adaptive, FixedStep
from ode_detect.ode.flows import flows_of
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.studies.compare import compare as comparison
from ode_detect.studies.compare.compare import Request, compare
from ode_detect.studies.compare.measure import Loaded
from ode_detect.studies.compare.runs import plan
from ode_detect.studies.compare.turned import finer, other, turned

from ...conftest import ROOT, overrides_for_shapes

CONFIG = str(ROOT / "configs" / "classification" / "mnist_odenet.yaml")
NAMES = {"ode": "mnist_odenet", "ablation": "mnist_ablation"}


def words(shapes: Path, folder: Path) -> list[str]:
    short = ["SOLVER.MAX_ITER", "12", "SOLVER.WARMUP_ITERS", "3", "TEST.EVAL_PERIOD", "0", "SEED", "0"]
    return [*overrides_for_shapes(shapes, folder), *short]


def words_in_role(shapes: Path, networks: Path, role: str) -> list[str]:
    return [*words(shapes, networks / NAMES[role] / "seed_0"), "MODEL.ODE.ROLE", role]


@pytest.fixture(scope="module")
def networks(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a flow and of its ablation, trained for a moment."""
    folder = tmp_path_factory.mktemp("turned")
    for role in NAMES:
        cfg = load_config(CONFIG, words_in_role(shapes, folder, role))
        train(open_training(cfg, command="train", config_file=CONFIG, resume=False), resume=False)
    return folder


def loaded(shapes: Path, networks: Path, role: str) -> Loaded:
    run = open_evaluation(
        load_config(CONFIG, words_in_role(shapes, networks, role)),
        command="",
        config_file=CONFIG,
    )
    return Loaded("it", role, run, load_network(run)[0])


@pytest.mark.parametrize(
    ("solver", "smaller", "swapped"),
    [
        (FixedStep("euler", steps=3), FixedStep("euler", steps=6), FixedStep("rk4", steps=3)),
        (
            FixedStep("rk4", steps=2, projection="relu"),
            FixedStep("rk4", steps=4, projection="relu"),
            FixedStep("midpoint", steps=4, projection="relu"),
        ),
        (Adaptive("dopri5", rtol=1e-2, atol=1e-3), Adaptive("dopri5", rtol=1e-3, atol=1e-4), FixedStep("rk4", steps=8)),
        (Adaptive("rk4", steps=5), Adaptive("rk4", steps=10), FixedStep("rk4", steps=5)),
    ],
)
def test_the_other_solvers(solver: object, smaller: object, swapped: object) -> None:
    found = finer(solver)  # type: ignore[arg-type]
    if isinstance(smaller, Adaptive):
        assert (found.rtol, found.atol) == pytest.approx((smaller.rtol, smaller.atol))  # type: ignore[union-attr]
        found = replace(found, rtol=smaller.rtol, atol=smaller.atol)
    assert found == smaller
    assert other(solver) == swapped  # type: ignore[arg-type]


def test_a_flow_is_evaluated_in_two_other_ways_and_stays_as_it_was(shapes: Path, networks: Path) -> None:
    network = loaded(shapes, networks, "ode")
    before = {path: block.solver for path, block in flows_of(network.model).items()}
    kept = network.run.folder / "inference" / "shapes_test" / "scores.json"
    evaluate(network.run, network.model)
    scores = kept.read_text()
    found = turned(network)
    assert kept.read_text() == scores
    assert set(found) == {"top1_half_step", "top1_other_method"}
    assert all(0 <= value <= 1 for value in found.values())
    assert {path: block.solver for path, block in flows_of(network.model).items()} == before


def test_a_network_without_flows_has_nothing_to_turn(shapes: Path, networks: Path) -> None:
    assert turned(loaded(shapes, networks, "ablation")) == {}


def test_a_comparison_holds_what_was_turned(shapes: Path, networks: Path, tmp_path: Path) -> None:
    overrides = words(shapes, networks)[:-2]
    roles, keys = tuple(NAMES), tuple(overrides)
    results, _ = compare(Request((CONFIG,), tmp_path, "compare", roles=roles, overrides=keys, turn=True, seconds=0.1))
    assert Results.read(tmp_path / "results.json") == results
    ode, ablation = results.rows
    assert {row.role: (row.name, row.config) for row in results.rows} == {r: (n, CONFIG) for r, n in NAMES.items()}
    assert {"top1_half_step", "top1_other_method"} <= ode.metrics.keys()
    assert "top1_half_step" not in ablation.metrics
    assert "networks with seed 0, twice the steps" in in_words(results.protocol)


def test_runs_that_began_with_weights_are_compared_with_their_last_ones(
    shapes: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ["MODEL.WEIGHTS", str(networks / NAMES["ode"] / "seed_0" / "model_final.pth"), "SOLVER.MAX_ITER", "4"]
    overrides = (*words(shapes, tmp_path / "runs")[:-2], *begin)
    trainings = plan([CONFIG], [1], overrides, roles=list(NAMES))
    for one in trainings:
        run = open_training(one.config(), command="train", config_file=CONFIG, resume=False)
        train(run, resume=False)
    files = []

    def noted(run: Run, weights: str = "") -> tuple[nn.Module, str]:
        model, file = load_network(run, weights)
        files.append(file)
        return model, file

    monkeypatch.setattr(comparison, "load_network", noted)
    request = Request((CONFIG,), tmp_path / "page", "compare", roles=tuple(NAMES), overrides=overrides, seconds=0.1)
    compare(request)
    assert files == [str(one.folder / "model_final.pth") for one in trainings]
