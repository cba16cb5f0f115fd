import time
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from ode_detect.engine.build import build_network
from ode_detect.engine.config import flat, load_config, read_config_file
from ode_detect.engine.tasks import TASKS
from ode_detect.ode import Adaptive, FixedStep
from ode_detect.ode.flows import flows_of
from ode_detect.task import ConfigError

from ..conftest import QUICKSTART, ROOT, our_configs


@pytest.mark.parametrize("path", our_configs(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_that_comes_with_the_project_loads(path: Path) -> None:
    assert load_config(path).TASK in TASKS
    assert path.read_text().startswith("#"), "a config states its claim in its header"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("MODEL: {ODE: {SOLVR: euler}}", [], "unknown key MODEL.ODE.SOLVR"),
        ("MODEL: {ODE: {METHO: euler}}", [], r"did you mean MODEL\.ODE\.METHOD\?"),
        ("SOLVER: {BASE_LRR: 1.0}", [], r"did you mean SOLVER\.BASE_LR\?"),
        ("MODEL: {}", ["MODEL.ODE.STEP", "3"], r"command line; did you mean MODEL\.ODE\.STEPS\?"),
        ("SOLVER: {LR: 0.1}", [], r"unknown key SOLVER\.LR in .*; did you mean SOLVER\.BASE_LR\?"),
        ("SOLVER: {ITER: 10}", [], r"did you mean SOLVER\.MAX_ITER\?"),
        ("SOLVER: {BATCH_SIZE: 10}", [], r"did you mean SOLVER\.IMS_PER_BATCH\?"),
        ("SOLVER: {DAIL: {STEPS: [1]}}", [], r"did you mean SOLVER\.DIAL\?"),
        ("MODEL: {}", ["MODL.ODE.STEPS", "3"], r"did you mean MODEL\.ODE\.STEPS\?"),
        ("MODEL: {}", ["MODEL.ODE.STEPS"], "has no value"),
        ("MODEL: {}", ["MODEL.ODE.STEPS", "many"], "STEPS"),
        ("MODEL: {ODE: {STEPS: [1]}}", [], "STEPS"),
        ("MODEL: [", [], "not a yaml file"),
        ("just words", [], "holds no keys"),
        ("_BASE_: nowhere.yaml", [], "which is not there"),
        (
            f"_BASE_: {ROOT}/configs/detection/bccd_pieces.yaml",
            [],
            r"not there; bccd_pieces is .*/bccd\.yaml now: give",
        ),
        ("TEST: {SCORE_THRESHOLD: 1.5}", [], r"TEST\.SCORE_THRESHOLD is a number in \[0, 1\], and it is 1\.5"),
        ("MODEL: {}", ["TEST.SCORE_THRESHOLD", "-0.1"], r"a number in \[0, 1\], and it is -0\.1"),
        ("TEST: {SCORE_THRESHOLD: .nan}", [], r"a number in \[0, 1\], and it is nan"),
        ("TEST: {BATCH: 0}", [], r"TEST\.BATCH is a number in \[1, 1000000\], and it is 0; its default is 250"),
        ("INPUT: {CENTER_SHARE: 0.0}", [], r"CENTER_SHARE is a number in \(0, 1\], and it is 0"),
        ("INPUT: {SIDE: -1}", [], r"INPUT\.SIDE is a number in \[0, 100000\], and it is -1"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text), overrides)


def test_a_missing_config_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/"):
        load_config(tmp_path / "none.yaml")


def test_the_command_line_wins_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: {ODE: {STEPS: 2, METHOD: heun}}\nSEED: 3\nVERSION: 2")
    path = write(tmp_path, "_BASE_: base.yaml\nMODEL: {ODE: {STEPS: 4}}")
    cfg = load_config(path, ["SEED", "5"])
    assert (cfg.MODEL.ODE.STEPS, cfg.MODEL.ODE.METHOD, cfg.SEED) == (4, "heun", 5)


def test_of_several_bases_the_later_one_wins(tmp_path: Path) -> None:
    (tmp_path / "network.yaml").write_text("MODEL: {ODE: {STEPS: 2, METHOD: heun}}\nVERSION: 2")
    (tmp_path / "data.yaml").write_text("MODEL: {ODE: {STEPS: 3}}\nSEED: 4")
    cfg = load_config(write(tmp_path, "_BASE_: [network.yaml, data.yaml]\nSEED: 5"))
    assert (cfg.MODEL.ODE.STEPS, cfg.MODEL.ODE.METHOD, cfg.SEED) == (3, "heun", 5)
    (tmp_path / "data.yaml").write_text("MODEL: {ODE: {STEP: 3}}")
    with pytest.raises(ConfigError, match=r"MODEL\.ODE\.STEP in .*data.yaml; did you mean MODEL\.ODE\.STEPS"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"'nowhere\.yaml', which is not there"):
        load_config(write(tmp_path, "_BASE_: [network.yaml, nowhere.yaml]"))


def test_custom_data_sets_can_be_given_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "DATASETS: {CUSTOM: [{NAME: mine, IMAGES: a, ANNOTATIONS: b.json}]}")
    assert load_config(path).DATASETS.CUSTOM == [{"NAME": "mine", "IMAGES": "a", "ANNOTATIONS": "b.json"}]


def test_the_solver_of_one_flow_is_given_in_a_file_or_on_the_command_line(tmp_path: Path) -> None:
    entries = [{"FLOW": "res3", "STEPS": 5, "METHOD": "rk4"}, {"FLOW": "res4.flow", "STEPS": 1}]
    path = write(tmp_path, f"_BASE_: {ROOT}/configs/quickstart.yaml\nMODEL: {{ODE: {{FLOWS: {entries}}}}}")
    for cfg in (load_config(path), load_config(QUICKSTART, ["MODEL.ODE.FLOWS", str(entries), "MODEL.DEVICE", "cpu"])):
        solvers = [block.solver for block in flows_of(build_network(cfg)).values()]
        assert solvers == [FixedStep("euler", steps=2), FixedStep("rk4", steps=5), FixedStep("euler", steps=1)]
        cfg.MODEL.ODE.ROLE = "twin"  # the discrete twin of the same config has no flow to turn
        build_network(cfg)


def test_a_flow_that_leaves_fixed_steps_takes_the_tolerances_of_the_config() -> None:
    keys = ["MODEL.ODE.RTOL", "0.125", "MODEL.ODE.ATOL", "0.25", "MODEL.ODE.MAX_EVALUATIONS", "77"]
    flows = ["MODEL.ODE.FLOWS", "[{'FLOW': 'res3', 'METHOD': 'dopri5'}]", "MODEL.DEVICE", "cpu"]
    blocks = flows_of(build_network(load_config(QUICKSTART, [*keys, *flows]))).values()
    assert [block.solver for block in blocks][1] == Adaptive("dopri5", rtol=0.125, atol=0.25, max_evaluations=77)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"FLOW": "res9", "STEPS": 1}, r"unknown flow 'res9'; known are res2\.flow"),
        ({"FLOW": "res3", "STEPS": 0}, "integer of 1 or more, not 0"),
        ({"FLOW": "res3", "METHOD": "eulr"}, "Did you mean 'euler'"),
        ({"FLOW": "res3", "STEP": 1}, "unknown key in MODEL.ODE.FLOWS 'STEP'.*Did you mean 'STEPS'"),
        ({"FLOW": "res3"}, "names a FLOW and its STEPS"),
        ({"STEPS": 3}, "names a FLOW and its STEPS"),
        ("res3", "names a FLOW and its STEPS"),
        ({"FLOW": ["res3", "res4"], "STEPS": 1}, "names a FLOW and its STEPS"),
    ],
)
def test_a_flow_that_cannot_be_solved_so_says_why(entry: object, message: str) -> None:
    cfg = load_config(QUICKSTART, ["MODEL.ODE.FLOWS", str([entry]), "MODEL.DEVICE", "cpu"])
    with pytest.raises(ConfigError, match=message):
        build_network(cfg)


def test_a_flow_is_named_once_and_by_a_network_that_has_it() -> None:
    twice = str([{"FLOW": "res3", "STEPS": 1}, {"FLOW": "res3", "METHOD": "rk4"}])
    with pytest.raises(ConfigError, match="twice"):
        build_network(load_config(QUICKSTART, ["MODEL.ODE.FLOWS", twice]))
    one = ["MODEL.ODE.FLOWS", "[{'FLOW': 'res3', 'STEPS': 1}]", "MODEL.ODE.STAGES", "[]"]
    with pytest.raises(ConfigError, match="no ODEBlock"):
        build_network(load_config(QUICKSTART, one))


def test_fewer_than_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.ODE\.STEPS is a number in \[0, 100000\], and it is -1"):
        load_config(QUICKSTART, ["MODEL.ODE.STEPS", "-1"])


def test_a_config_is_flat_with_dots_and_lists() -> None:
    node = CfgNode({"A": {"B": {"C": (1, (2, 3))}, "D": "x"}, "E": []})
    assert flat(node) == {"A.B.C": [1, [2, 3]], "A.D": "x", "E": []}


UNSAFE = "SEED: !!python/object/apply:builtins.print ['code was run']"


def test_no_config_runs_code(tmp_path: Path, capsys) -> None:
    (tmp_path / "base.yaml").write_text(UNSAFE)
    for text in (UNSAFE, "_BASE_: base.yaml", "_BASE_: [base.yaml]"):
        for read in (load_config, read_config_file):
            with pytest.raises(ConfigError, match="python/object/apply"):
                read(write(tmp_path, text))
    assert "code was run" not in capsys.readouterr().out


def test_no_address_is_followed_whatever_lies_beside_the_config(tmp_path: Path, monkeypatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("an address was followed")

    monkeypatch.setattr("iopath.common.file_io.HTTPURLHandler._get_local_path", download)
    monkeypatch.setattr("iopath.common.file_io.HTTPURLHandler._open", download)
    decoy = tmp_path / "http:" / "localhost"
    decoy.mkdir(parents=True)
    (decoy / "x.yaml").write_text("SEED: 3")
    for base in ("http://localhost/x.yaml", "detectron2://x.yaml", "~/x.yaml", "[[a]]", "{a: b}", "7"):
        for text in (f"_BASE_: {base}", f"_BASE_: [{base}]"):
            with pytest.raises(ConfigError, match=r"names files of this machine|which is not there"):
                load_config(write(tmp_path, text))
    monkeypatch.chdir(tmp_path)
    # pathlib makes one slash of two: this is the file beside, read as a file.
    assert load_config("http://localhost/x.yaml").SEED == 3


def test_bases_that_lead_back_or_fan_out_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml builds on itself"):
        load_config(write(tmp_path, "_BASE_: config.yaml"))
    (tmp_path / "other.yaml").write_text("_BASE_: ./config.yaml")
    with pytest.raises(ConfigError, match="builds on itself"):
        load_config(write(tmp_path, "_BASE_: other.yaml"))
    for i in range(26):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]")
    (tmp_path / "26.yaml").write_text("SEED: 1")
    for i in range(2000):
        (tmp_path / f"chain{i}.yaml").write_text(f"_BASE_: chain{i + 1}.yaml")
    began = time.perf_counter()
    for name in ("0.yaml", "chain0.yaml"):
        with pytest.raises(ConfigError, match="is one of more than 100"):
            load_config(tmp_path / name)
    assert time.perf_counter() - began < 2


def test_a_base_may_be_named_twice(tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text("SEED: 1\nSOLVER: {MAX_ITER: 5}")
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: root.yaml\nOUTPUT_DIR: {name}")
    cfg = load_config(write(tmp_path, "_BASE_: [a.yaml, b.yaml]\nSEED: 2"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR) == (2, 5, "b")


BOMB = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: " + "[" * 100_000, "inside one another"),
        ("SEED: " + "{a: " * 100_000, "inside one another"),
        ("- " * 100_000, "inside one another"),
        ("a0: &a0 [1]\n" + BOMB, "values"),
        ("a0: &a0 {k: 1}\n" + BOMB.replace("[", "{<<: [").replace("]", "]}"), "values"),
        ("a: &a [*a]", "stands for nothing"),
        ("SEED: " + "9" * 900_000, "letters without quotes"),
        ("SEED: " + "1:" * 400_000 + "1", "letters without quotes"),
        ("SEED: !!int '" + "1:" * 400_000 + "1'", "letters without quotes"),
        ("SEED: 0x" + "f" * 900_000, "letters without quotes"),
        ("SOLVER: {BASE_LR: " + "1:" * 450 + "1.5}", "cannot|can be read"),
        ("SEED: 2001-99-99", "cannot|can be read"),
        ("SEED: '" + "-" * 200_000 + "1'", "type of the default"),
        ("SEED: '" + "1" + "+1" * 200_000 + "'", "type of the default"),
        ("SEED: '{[]: 1}'", "type of the default"),
        ("#" * 2_000_000, "has at most 1048576 bytes"),
        ("SEED: 1\nMODEL: 3", "MODEL is a section"),
        ("MODEL: {RPN: }", "MODEL.RPN is a section, and .* the value None"),
        ("VERSION: 1", "has VERSION 1"),
        ("SEED: \x00", "can be read"),
    ],
    ids=range(20),
)
def test_a_config_that_is_a_trap_is_an_error_within_a_second(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    began = time.perf_counter()
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert time.perf_counter() - began < 2  # on a busy machine
    assert len(str(error.value)) < 2000


def test_aliases_of_yaml_are_independent_of_one_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: {RPN: &x {NMS_THRESH: 0.5}}\n")
    base = "_BASE_: base.yaml\nMODEL: {RPN: {NMS_THRESH: 0.6}}"
    assert load_config(write(tmp_path, base)).MODEL.RPN.NMS_THRESH == 0.6
    (tmp_path / "base.yaml").write_text("MODEL: {FPN: &x {NORM: GN}, ROI_BOX_HEAD: *x}\n")
    cfg = load_config(write(tmp_path, "_BASE_: base.yaml\nMODEL: {FPN: {NORM: LN}}"))
    assert (cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM) == ("LN", "GN")


def test_a_value_in_a_base_takes_no_keys(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: 3")
    with pytest.raises(ConfigError, match=r"has keys for MODEL, which is a value in its base"):
        read_config_file(write(tmp_path, "_BASE_: base.yaml\nMODEL: {DEVICE: cpu}"))


def test_a_config_in_utf_16_or_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "config.yaml").write_text("OUTPUT_DIR: köln", encoding=encoding)
        assert load_config(tmp_path / "config.yaml").OUTPUT_DIR == "köln"
