"""The dial of the quickstart network: what is measured, kept and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.build import build_network
from ode_detect.engine.config import load_config
from ode_detect.ode import Adaptive, FixedStep, NonFiniteStateError
from ode_detect.ode.flows import flows_of
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.studies import kept
from ode_detect.studies.dial import dial as dials
from ode_detect.studies.dial.budget import Budget, BudgetError, turn
from ode_detect.studies.dial.output import write_choice
from ode_detect.task import ConfigError

from .quickstart_dial import QUICKSTART, STEPS, open_dial

Overrides = Callable[..., list[str]]


def no_evaluation(*arguments: Any) -> None:
    raise AssertionError("evaluated again")


def test_a_sweep_writes_numbers_and_a_plot(swept: tuple[Path, Results]) -> None:
    folder, results = swept
    assert {"dial.json", "dial.png", "evaluations.json", "statistics.pth"} <= {p.name for p in folder.iterdir()}
    assert Results.read(folder / "dial.json") == results
    assert [row.name for row in results.rows] == ["euler_1", "euler_2"]
    assert [row.cost["evaluations"] for row in results.rows] == [3, 6]
    assert results.rows[0].cost["macs"] < results.rows[1].cost["macs"]
    assert all(row.cost["latency_ms"] > 0 for row in results.rows)
    assert "full steps: euler_2" in in_words(results.protocol)
    assert "of the full steps the running averages in the checkpoint" in in_words(results.protocol)
    assert "all other settings estimated from 2 training batches of 2; " in in_words(results.protocol)
    assert "picked on squares itself among 2 settings: not an independent estimate" in in_words(results.protocol)
    assert results.machine["threads"] == torch.get_num_threads()


def test_the_full_steps_give_what_an_evaluation_gives(swept: tuple[Path, Results], trained: list[str]) -> None:
    run = runs.open_evaluation(load_config(QUICKSTART, trained), command="x", config_file=str(QUICKSTART))
    assert swept[1].rows[1].metrics == train.evaluate_only(run).rows[0].metrics


def test_what_is_known_is_not_evaluated_again_and_stays(
    swept: tuple[Path, Results], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = swept
    again = open_dial(trained, folder)
    monkeypatch.setattr(dials, "evaluate", no_evaluation)
    results, _ = turn(again, steps=[1], methods=["euler"])
    assert [(row.name, row.metrics) for row in results.rows] == [(row.name, row.metrics) for row in before.rows]
    with pytest.raises(AssertionError, match="again"):
        turn(again, steps=[3], methods=["euler"])


def test_the_network_is_left_as_it_was(trained: list[str], tmp_path: Path) -> None:
    dial = open_dial(trained, tmp_path)
    # Given a state without its statistics, it takes 0 and 1.
    dial.model.frozen = FrozenBatchNorm2d(2)
    dial.model.frozen.running_mean.fill_(3.0)
    before = {name: value.clone() for name, value in dial.model.state_dict().items()}
    solvers = [block.solver for block in flows_of(dial.model).values()]
    setting = dial.settings([1], ["euler"])[1]
    dial.evaluate(setting)
    assert same(before, dial.model.state_dict())
    assert [block.solver for block in flows_of(dial.model).values()] == solvers
    with dial.at(setting):
        changed = [name for name, value in dial.model.state_dict().items() if not torch.equal(value, before[name])]
        assert [block.solver.steps for block in flows_of(dial.model).values()] == [1, 1, 1]
    assert any("res3" in name for name in changed)
    assert all(name.split(".")[-1] in ("running_mean", "running_var", "num_batches_tracked") for name in changed)
    assert same(before, dial.model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_budget_that_is_not_met_leaves_the_sweep(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"no setting keeps to 1e-06 ms .*nearest is euler_"):
        turn(open_dial(trained, tmp_path), steps=[1], methods=["euler"], budget=Budget(milliseconds=1e-6))
    assert len(Results.read(tmp_path / "dial.json").rows) >= 2
    assert not (tmp_path / "config.yaml").exists()


def test_a_seed_that_is_left_open_stays_that_of_the_first_sweep(trained: list[str], tmp_path: Path) -> None:
    weights = str(Path(load_config(QUICKSTART, trained).OUTPUT_DIR) / "model_final.pth")
    more = ["SEED", "-1", "OUTPUT_DIR", str(tmp_path / "nowhere")]
    first = open_dial(trained, tmp_path, weights, *more)
    first.evaluate(first.full)
    again = open_dial(trained, tmp_path, weights, *more)
    assert again.run.cfg.SEED == first.run.cfg.SEED >= 0
    assert list(again.measured) == ["euler_2"]


def test_a_stopped_sweep_keeps_what_it_evaluated(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: runs.Run, model: torch.nn.Module) -> dict[str, Any]:
        if any(block.solver.steps == 1 for block in flows_of(model).values()):
            raise KeyboardInterrupt
        return train.evaluate(run, model)

    monkeypatch.setattr(dials, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        turn(open_dial(trained, tmp_path), **STEPS)
    assert list(json.loads((tmp_path / "evaluations.json").read_text())["settings"]) == ["euler_2"]
    assert list(open_dial(trained, tmp_path).measured) == ["euler_2"]


def test_a_solve_that_fails_is_left_out(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: runs.Run, model: torch.nn.Module) -> dict[str, Any]:
        if any(block.solver == FixedStep("euler", steps=1) for block in flows_of(model).values()):
            raise NonFiniteStateError(block="res4.flow", time=1.0, step="step 1 of 1", evaluations=1)
        return train.evaluate(run, model)

    monkeypatch.setattr(dials, "evaluate", fail)
    results, choice = turn(open_dial(trained, tmp_path), **STEPS, budget=Budget(loss=1.0))
    assert [row.name for row in results.rows] == ["euler_2"]
    assert choice is not None
    assert choice.setting.name == "euler_2"


def test_methods_that_choose_their_own_steps_come_once(trained: list[str], tmp_path: Path) -> None:
    dial = open_dial(trained, tmp_path)
    names = [setting.name for setting in dial.settings([1, 2], ["euler", "dopri5", "rk4"])]
    assert names == ["euler_2", "euler_1", "dopri5", "rk4_1", "rk4_2"]
    # Of the blocks of a flow at most all are kept.
    assert [setting.name for setting in dial.settings([1, 40], ["left_out"])] == ["euler_2", "left_out_1"]
    only = [setting.name for setting in dial.settings([1, 4], ["euler"], ["res3"])]
    assert only == ["euler_2", "euler_2-1-2", "euler_2-4-2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], ["euler"]), "integer of 1 or more"),
        (([1], ["eulr"]), "Did you mean 'euler'"),
        (([1], ["euler"], ["res9"]), "unknown flow 'res9'"),
    ],
)
def test_an_impossible_request_is_refused(arguments: Any, message: str, trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        open_dial(trained, tmp_path).settings(*arguments)


def test_another_network_is_not_mixed_in(swept: tuple[Path, Results], trained: list[str], tmp_path: Path) -> None:
    folder, _ = swept
    run_folder = Path(load_config(QUICKSTART, trained).OUTPUT_DIR)
    state = torch.load(run_folder / "model_final.pth", weights_only=True)
    state["model"]["backbone.fpn_lateral2.weight"] += 1
    torch.save({"model": state["model"]}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="another weights"):
        open_dial(trained, folder, str(tmp_path / "other.pth"))
    with pytest.raises(ConfigError, match="another config"):
        open_dial(trained, folder, "", "INPUT.MIN_SIZE_TEST", "80")


def test_numbers_of_another_commit_are_not_mixed_in(
    swept: tuple[Path, Results], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "commit", lambda: "another")
    with pytest.raises(ConfigError, match=r"the dial of another commit, .* Give another --output"):
        open_dial(trained, swept[0])


def test_a_refused_command_leaves_the_folder_as_it_was(swept: tuple[Path, Results], trained: list[str]) -> None:
    files = [swept[0] / "sweep" / name for name in ("config.yaml", "environment.json")]
    before = [file.read_text() for file in files]
    with pytest.raises(ConfigError, match="another config"):
        open_dial(trained, swept[0], "", "INPUT.MIN_SIZE_TEST", "80")
    with pytest.raises(ConfigError, match="unknown flow 'res7'"):
        turn(open_dial(trained, swept[0], "", "MODEL.ODE.RTOL", "0.001"), **STEPS, flows=["res7"])
    assert [file.read_text() for file in files] == before


@pytest.mark.parametrize("file", ["last_checkpoint", "metrics.json"])
def test_the_folder_of_a_run_is_not_written_into(file: str, trained: list[str], tmp_path: Path) -> None:
    (tmp_path / file).write_text("")
    with pytest.raises(ConfigError, match=r"holds a run.* give another --output"):
        open_dial(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_an_optimised_network_is_not_what_is_measured(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.OPTIMIZE_FOR_INFERENCE .* set it to False here"):
        open_dial(trained, tmp_path, "", "MODEL.OPTIMIZE_FOR_INFERENCE", "True")


def test_steps_and_tolerances_of_torchdiffeq_are_kept(trained: list[str], tmp_path: Path) -> None:
    more = ("MODEL.ODE.RTOL", "0.125", "MODEL.ODE.MAX_EVALUATIONS", "77", "SOLVER.DIAL.STATISTICS_BATCHES", "0")
    dial = open_dial(trained, tmp_path, "", *more)
    settings = dial.settings([1, 3], ["implicit_adams", "dopri5"], ["res3"])
    names = ["euler_2", "euler_2-implicit_adams_1-euler_2", "euler_2-implicit_adams_3-euler_2"]
    assert [setting.name for setting in settings] == [*names, "euler_2-dopri5-euler_2"]
    assert settings[2].solvers[1][1] == Adaptive("implicit_adams", rtol=0.125, max_evaluations=77, steps=3)
    assert settings[3].solvers[1][1] == Adaptive("dopri5", rtol=0.125, max_evaluations=77)
    dial.evaluate(settings[2])
    again = open_dial(trained, tmp_path, "", *more)
    assert again.measured[names[2]].setting == settings[2]
    path = write_choice(again, settings[2], "a claim")
    model = build_network(load_config(path))
    assert [block.solver for block in flows_of(model).values()] == [solver for _, solver in settings[2].solvers]


def test_a_flow_of_two_names_is_one(trained: list[str], tmp_path: Path) -> None:
    dial = open_dial(trained, tmp_path)
    assert dial.paths(["res3", "res3.flow"]) == [list(dial.flows)[1]]
    assert dial.paths(None) == list(dial.flows)


def test_a_network_without_flows_has_no_dial(trained: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no ODEBlock.*MODEL\.ODE\.ROLE ode"):
        open_dial(trained, tmp_path, "", "MODEL.ODE.STAGES", "[]", "MODEL.ALLOW_PARTIAL_WEIGHTS", "True")


def test_a_network_that_finds_nothing_cannot_be_compared(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "evaluate", lambda run, model: {"bbox": {"AP50": float("nan")}})
    with pytest.raises(ConfigError, match="compares AP50 with that at the full steps"):
        turn(open_dial(trained, tmp_path), **STEPS)
