"""From tiny runs to a page, as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ode_detect.engine import run as runs
from ode_detect.engine import train
from ode_detect.engine.launch import run_tool
from ode_detect.report.protocol import in_words
from ode_detect.report.results import Results
from ode_detect.studies.compare import figures, measure
from ode_detect.studies.compare.runs import plan

from ..conftest import QUICKSTART

SMALL = {
    "INPUT.MIN_SIZE_TEST": "64",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "30",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "8",
    "MODEL.FPN.OUT_CHANNELS": "8",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "SOLVER.MAX_ITER": "2",
    "TEST.EVAL_PERIOD": "0",
}


def test_keys_may_stand_anywhere(tool: ModuleType) -> None:
    args = tool.parse(["--configs", "a.yaml", "b.yaml", "SEED", "3", "--train", "MODEL.ODE.STEPS", "2", "--seeds", "2"])
    assert (args.configs, args.train, args.seeds) == (["a.yaml", "b.yaml"], True, [2])
    assert dict(zip(args.overrides[::2], args.overrides[1::2], strict=True)) == {"SEED": "3", "MODEL.ODE.STEPS": "2"}
    args = tool.parse(["TASK", "x", "--configs", "a.yaml", "b.yaml", "--weights", "a.pth", "b.pth", "TASK", "y"])
    assert (args.weights, args.overrides) == (["a.pth", "b.pth"], ["TASK", "x", "TASK", "y"])
    args = tool.parse(["--configs", "a.yaml", "b.yaml", "--seeds", "3", "1", "TASK", "x"])
    assert (args.seeds, args.overrides) == ([3, 1], ["TASK", "x"])
    args = tool.parse(
        ["--config-file", "a.yaml", "--roles", "ode", "twin", "TASK", "x", "--networks", "b", "--seeds", "2"]
    )
    assert (args.configs, args.roles, args.networks, args.seeds) == (["a.yaml"], ["ode", "twin"], ["b"], [2])
    assert args.overrides == ["TASK", "x"]
    for flags in (["--roles", "ode"], ["--config-file", "a", "--configs", "b", "c"], ["--config-file", "a", "--roles"]):
        with pytest.raises(SystemExit):
            tool.parse(flags)
    wrong = (["SEED", "3"], ["a", "b", "--train", "--weights", "c", "d"], ["a", "b", "--seeds", "3", "few"])
    for flags in (["--configs", *words] for words in wrong):
        with pytest.raises(SystemExit):
            tool.parse(flags)


@pytest.mark.slow
def test_runs_become_results_and_a_page(
    tool: ModuleType,
    squares_run: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "PICTURES", 2)
    monkeypatch.setattr(figures, "EXAMPLES", 1)
    monkeypatch.setattr(measure, "STEPS", 1)
    pairs = squares_run("all", *(word for pair in SMALL.items() for word in pair))
    overrides = [w for k, v in zip(pairs[::2], pairs[1::2], strict=True) if k != "SEED" for w in (k, v)]
    configs = []
    for role in ("ode", "twin"):
        configs.append(str(tmp_path / f"{role}.yaml"))
        Path(configs[-1]).write_text(f"_BASE_: {QUICKSTART}\nMODEL: {{ODE: {{ROLE: {role}}}}}\n")
    output = tmp_path / "page"
    arguments = ["--configs", *configs, "--seconds", "0", "--output", str(output), *overrides]
    assert run_tool(tool.main, arguments) == 2
    assert "(missing): python tools/train_net.py" in capsys.readouterr().err
    for one in plan(configs, [1], overrides):
        run = runs.open_training(one.config(), command="train", config_file=one.config_file, resume=False)
        train.train(run, resume=False)
    # As an earlier version evaluated: without these metrics, under another protocol.
    earlier = tmp_path / "all" / "ode" / "seed_0" / "results.json"
    value = json.loads(earlier.read_text())
    value["rows"][0]["metrics"] = {"AP50": 0.987}
    value["protocol"] = "trained long ago; tested; by hand"
    earlier.write_text(json.dumps(value))
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*")}
    assert run_tool(tool.main, [*arguments, "--evaluate"]) == 0, capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*")} == left, "runs are only read"
    assert "comparison.html" in capsys.readouterr().out
    results = Results.read(output)
    assert results.rows[0].metrics["AP50"] != 0.987
    assert {"precision", "recall", "f1"} <= results.rows[0].metrics.keys() == results.rows[1].metrics.keys()
    for words in ("ode, seed 0: trained long ago; ", "with the last weights, evaluated anew; ", "at IoU 0.5"):
        assert words in in_words(results.protocol)
    assert "by hand" not in in_words(results.protocol)
    assert [(row.name, row.role, row.seed) for row in results.rows] == [("ode", "ode", 0), ("twin", "twin", 0)]
    for row in results.rows:
        measured = {"parameters", "backbone_parameters", "macs", "evaluations", "backward_evaluations", "train_minutes"}
        assert measured | {"latency_ms", "pictures_per_second", "kept_mib", "train_step_ms"} <= row.cost.keys()
        assert 0 < row.cost["backbone_parameters"] < row.cost["parameters"]
    assert [row.cost["evaluations"] for row in results.rows] == [6, 0]
    times = Results.read(output / "timing.json")
    assert (times.comparisons[0].ours, times.comparisons[0].other) == ("one picture: ode", "one picture: twin")
    text = (output / "comparison.html").read_text()
    for words in ("Against the twin", "MODEL.ODE.ROLE", "Not measured here: the ablation", "The same pictures"):
        assert words in text
    weights = [str(tmp_path / "all" / role / "seed_0" / "model_final.pth") for role in ("ode", "twin")]
    assert run_tool(tool.main, [*arguments, "--weights", weights[0], str(tmp_path / "none.pth")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    assert run_tool(tool.main, [*arguments, "--weights", weights[0]]) == 2
    assert "one checkpoint for each network" in capsys.readouterr().err
    apart = ["--output", str(tmp_path / "by weights")]
    assert run_tool(tool.main, [*arguments, *apart, "--weights", weights[1], weights[1]]) == 2
    assert "does not fit the network" in capsys.readouterr().err
    assert run_tool(tool.main, [*arguments, *apart, "--weights", *weights]) == 0, capsys.readouterr().err
    given = Results.read(tmp_path / "by weights")
    assert [row.metrics for row in given.rows] == [row.metrics for row in results.rows]
    assert "train_minutes" not in given.rows[0].cost
    text = (tmp_path / "by weights" / "comparison.md").read_text()
    assert "weights were given" in text
    assert "not trained alike" not in text
    other = tmp_path / "else.yaml"
    other.write_text(f"_BASE_: {QUICKSTART}\n")
    assert run_tool(tool.main, ["--configs", configs[0], str(other), "--output", str(output), *overrides]) == 2
    assert "comparison of other networks" in capsys.readouterr().err
