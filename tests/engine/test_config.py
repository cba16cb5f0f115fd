from pathlib import Path

import pytest

from ode_detect.engine.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_that_comes_with_the_project_loads(path: Path) -> None:
    cfg = load_config(path)
    assert cfg.TASK == "detection"
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
        ("MODEL: {}", ["MODEL.ODE.STEPS"], "has no value"),
        ("MODEL: {}", ["MODEL.ODE.STEPS", "many"], "STEPS"),
        ("MODEL: {ODE: {STEPS: [1]}}", [], "STEPS"),
        ("MODEL: [", [], "not a yaml file"),
        ("just words", [], "holds no keys"),
        ("_BASE_: nowhere.yaml", [], "which is not there"),
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


def test_custom_data_sets_can_be_given_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "DATASETS: {CUSTOM: [{NAME: mine, IMAGES: a, ANNOTATIONS: b.json}]}")
    assert load_config(path).DATASETS.CUSTOM == [{"NAME": "mine", "IMAGES": "a", "ANNOTATIONS": "b.json"}]
