import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from ode_detect.engine.config import add_ode_config
from ode_detect.engine.optimizer import build_optimizer
from ode_detect.ode.names import UnknownNameError


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_an_optimizer_takes_detectron2s_keys(name: str, kind: type) -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.SOLVER.merge_from_list(["OPTIMIZER", name, "BASE_LR", 0.5, "WEIGHT_DECAY", 0.1, "WEIGHT_DECAY_NORM", 0.0])
    cfg.SOLVER.CLIP_GRADIENTS.merge_from_list(["ENABLED", True, "CLIP_TYPE", "norm", "CLIP_VALUE", 1.0])
    model = nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2))
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, kind)
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.5, 0.1), (0.5, 0.0)}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer.step()
    assert sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt() <= 1.0 * 4


def test_an_unknown_optimizer_tells_those_that_exist() -> None:
    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(UnknownNameError, match="AdamW"):
        build_optimizer(cfg, nn.Linear(1, 1))
