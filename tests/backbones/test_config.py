from typing import Any

import pytest
from detectron2.config import get_cfg

from ode_detect.backbones.config import add_backbone_config
from ode_detect.engine.config import flat

from ..config_keys import added, assert_documented, keys_read

DEFAULTS = {
    "MODEL.ODE.ROLE": "ode",
    "MODEL.ODE.STAGES": ["res2", "res3", "res4", "res5"],
    "MODEL.ODE.FIELD": "auto",
    "MODEL.ODE.PIECES": "piecewise",
    "MODEL.ODE.NUM_PIECES": 0,
    "MODEL.ODE.DURATION": 0,
    "MODEL.ODE.METHOD": "euler",
    "MODEL.ODE.STEPS": 0,
    "MODEL.ODE.FLOWS": [],
    "MODEL.ODE.PROJECTION": "relu",
    "MODEL.ODE.RTOL": 0.001,
    "MODEL.ODE.ATOL": 0.0001,
    "MODEL.ODE.MAX_EVALUATIONS": 1000,
    "MODEL.ODE.GRADIENT": "backprop",
    "MODEL.ODE.CHECKPOINT_EVERY": 1,
    "MODEL.ODE.CHECKPOINT_STATES": 0,
    "MODEL.ODE.COUPLING": 0.99,
    "MODEL.ODE.MEMORY_BUDGET": 512,
    "MODEL.ODE.NORM": "",
    "MODEL.ODE.ACTIVATION": "relu",
    "MODEL.ODE.STACK": 1,
    "MODEL.ODE.EXTRA_CHANNELS": 0,
    "MODEL.ODE_NET.STEM": "conv",
    "MODEL.ODE_NET.CHANNELS": [64],
    "MODEL.ODE_NET.BLOCKS": [6],
    "MODEL.ODE_NET.NORM": "BN",
    "MODEL.MLP.SIZE": 28,
    "MODEL.MLP.HIDDEN": 300,
}


def test_these_keys_are_added_with_these_defaults_and_no_other_changes() -> None:
    assert added(add_backbone_config) == DEFAULTS


def test_the_defaults_are_those_of_a_config_and_of_the_page_of_keys() -> None:
    assert_documented(DEFAULTS)


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_read_by_the_package(key: str) -> None:
    assert key in keys_read()


def test_each_config_gets_lists_of_its_own() -> None:
    one, other = get_cfg(), get_cfg()
    add_backbone_config(one)
    add_backbone_config(other)
    for key in [key for key, value in DEFAULTS.items() if isinstance(value, list)]:
        value: Any = one
        for part in key.split("."):
            value = value[part]
        value.append("more")
    assert flat(one) != flat(other)
    assert {key: flat(other)[key] for key in DEFAULTS} == DEFAULTS
