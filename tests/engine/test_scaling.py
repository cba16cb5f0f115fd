import pytest
from detectron2.config import CfgNode, get_cfg

from ode_detect.engine.scaling import check_batch, linear_rule, scaled_to_processes
from ode_detect.task import ConfigError


def config(**solver: object) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.update({"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "MAX_ITER": 900, "STEPS": (600, 800), **solver})
    return cfg


def test_a_reference_of_processes_scales_batch_rate_and_schedule() -> None:
    cfg, (line,) = scaled_to_processes(config(REFERENCE_WORLD_SIZE=8), 2)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (4, 0.005)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (3600, (2400, 3200), 4000)
    assert "8 processes and this run has 2" in line
    assert "SOLVER.BASE_LR 0.02 -> 0.005" in line


@pytest.mark.parametrize(("reference", "world"), [(0, 4), (4, 4)])
def test_without_a_reference_nothing_is_scaled(reference: int, world: int) -> None:
    given = config(REFERENCE_WORLD_SIZE=reference)
    assert scaled_to_processes(given, world) == (given, [])


@pytest.mark.parametrize(("reference", "world", "message"), [(0, 3, "multiple of 3"), (5, 2, "REFERENCE_WORLD_SIZE")])
def test_a_batch_that_cannot_be_shared_is_refused(reference: int, world: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batch(config(REFERENCE_WORLD_SIZE=reference), world)


def test_another_batch_than_the_files_prints_the_linear_rule_and_changes_nothing() -> None:
    cfg = config(IMS_PER_BATCH=4)
    before = cfg.dump()
    (line,) = linear_rule(cfg, config(), "base.yaml")
    assert "is 4 and base.yaml was made for 16" in line
    assert "SOLVER.BASE_LR 0.005 (here 0.02)" in line
    assert "SOLVER.MAX_ITER 3600 (here 900)" in line
    assert "SOLVER.STEPS (2400, 3200) (here (600, 800))" in line
    assert cfg.dump() == before


def test_the_rule_is_silent_where_it_is_kept() -> None:
    kept = config(IMS_PER_BATCH=4, BASE_LR=0.005, MAX_ITER=3600, STEPS=(2400, 3200), WARMUP_ITERS=4000)
    assert linear_rule(kept, config(), "base.yaml") == []
    assert linear_rule(config(), config(), "base.yaml") == []
