"""The page of config keys, against the config that the code builds."""

from collections.abc import Iterator
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from ode_detect.engine.config import add_ode_config
from ode_detect.engine.config_reference import ConfigReferenceError, Key, read_keys, to_markdown

SOURCE = '''
def add_keys(cfg):
    """Doc."""
    cfg.PART = CfgNode()
    # How many there are: "all" or a number, see
    # PART.OTHER_KEY.
    cfg.PART.COUNT = 1e-3
    {extra}

def elsewhere(cfg):
    cfg.PART.SET_LATER = 1
'''


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_key_that_the_code_adds_is_there_with_its_default_and_type() -> None:
    before, cfg = dict(leaves(get_cfg())), get_cfg()
    add_ode_config(cfg)
    ours = {name: value for name, value in leaves(cfg) if name not in before}
    keys = {key.name: key for key in read_keys()}
    assert len(ours) > 30
    assert set(ours) - set(keys) == set()
    assert set(keys) - set(ours) <= set(before), "the others are keys of Detectron2 with a default of ours"
    for name, value in ours.items():
        assert eval(keys[name].default, {}) == value, name
        assert keys[name].type == type(value).__name__, name


def test_the_lines_above_a_key_are_its_comment() -> None:
    (key,) = read_keys(SOURCE.format(extra=""))
    assert key == Key("PART.COUNT", "float", "1e-3", 'How many there are: "all" or a number, see PART.OTHER_KEY.')
    assert key.section == "PART"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("cfg.PART.BARE = 2", r"PART\.BARE \(line 8\) has none"),
        ("# Said.\n    cfg.PART.NAMED = limit", r"PART\.NAMED is limit"),
    ],
)
def test_a_key_that_cannot_be_documented_is_an_error(extra: str, message: str) -> None:
    with pytest.raises(ConfigReferenceError, match=message):
        read_keys(SOURCE.format(extra=extra))


def test_the_page_has_a_heading_for_each_key_and_code_for_values_and_names() -> None:
    page = to_markdown(
        [
            Key("TASK", "str", '"detection"', "What is trained."),
            Key("PART.COUNT", "int", "1", 'Either "all", [0, 1] or PART.OTHER_KEY; a 3x3 GN.'),
            Key("PART.LIST", "list", "[]", "[{NAME: x, STEPS: [1, 2]}] is one."),
        ]
    )
    assert page.splitlines()[:5] == ["## Top level", "", "### `TASK`", "", 'str, default `"detection"`']
    assert page.count("## PART\n") == 1
    assert 'Either `"all"`, `[0, 1]` or `PART.OTHER_KEY`; a 3x3 GN.' in page
    assert "`[{NAME: x, STEPS: [1, 2]}]` is one." in page
