"""Which runs may be compared, and training what is missing."""

from pathlib import Path

import pytest

from ode_detect.engine.config import load_config
from ode_detect.studies.compare.runs import differing_keys, plan
from ode_detect.task import ConfigError

from ...conftest import QUICKSTART


def config(folder: Path, name: str, *lines: str) -> str:
    path = folder / f"{name}.yaml"
    path.write_text("\n".join([f"_BASE_: {QUICKSTART}", f"OUTPUT_DIR: {folder / name}", *lines]) + "\n")
    return str(path)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [config(tmp_path, "ode"), config(tmp_path, "twin", "MODEL: {ODE: {ROLE: twin}}")]


def test_runs_lie_in_a_folder_for_each_seed_of_each_config(pair: list[str], tmp_path: Path) -> None:
    found = plan(pair, [2], ["SOLVER.MAX_ITER", "3"])
    assert [(one.name, one.seed, str(one.folder.relative_to(tmp_path))) for one in found] == [
        ("ode", 0, "ode/seed_0"),
        ("twin", 0, "twin/seed_0"),
        ("ode", 1, "ode/seed_1"),
        ("twin", 1, "twin/seed_1"),
    ]
    cfg = found[2].config()
    assert cfg.SEED == 1
    assert cfg.SOLVER.MAX_ITER == 3
    assert str(tmp_path / "ode" / "seed_1") == cfg.OUTPUT_DIR
    shared = plan(pair, [1], ["OUTPUT_DIR", str(tmp_path / "all")])
    assert [one.folder for one in shared] == [tmp_path / "all" / name / "seed_0" for name in ("ode", "twin")]
    assert [(one.name, one.seed) for one in plan(pair, [2, 1], [])] == [("ode", 0), ("twin", 0), ("ode", 1)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["TASK: other"], "TASK is detection"),
        (["DATASETS: {TEST: [else]}"], "DATASETS.TEST is"),
        (["DATASETS: {CUSTOM: [{NAME: trees_test, IMAGES: a, ANNOTATIONS: b}]}"], "in DATASETS.CUSTOM is"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan([config(tmp_path, "a"), config(tmp_path, "b", *lines)], [1], [])


def test_nonsense_is_refused(pair: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given 2 times"):
        plan([pair[0], pair[0]], [1], [])
    with pytest.raises(ConfigError, match="two configs or more"):
        plan(pair[:1], [1], [])
    for seeds in ([0], [2, 0], [1, 2, 3], []):
        with pytest.raises(ConfigError, match="one seed or more"):
            plan(pair, seeds, [])
    with pytest.raises(ConfigError, match="by --seeds"):
        plan(pair, [1], ["SEED", "4"])
    same = tmp_path / "same.yaml"
    same.write_text(Path(pair[0]).read_text())
    with pytest.raises(ConfigError, match="folder of its own"):
        plan([pair[0], str(same)], [1], [])


def test_the_keys_that_differ_are_listed(pair: list[str]) -> None:
    ode, twin = (load_config(path, ["SEED", seed]) for path, seed in zip(pair, "12", strict=True))
    assert differing_keys({"ode": ode, "twin": twin}) == {"MODEL.ODE.ROLE": ("ode", "twin")}
