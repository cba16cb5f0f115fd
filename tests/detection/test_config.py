import pytest

from ode_detect.detection.config import add_detection_config
from ode_detect.engine.config import default_values
from ode_detect.engine.config_reference import read_keys

from ..config_keys import added, keys_read

DEFAULTS = {
    "INPUT.ANY_ORIENTATION": False,
    "INPUT.MIN_VISIBLE": 0.0,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "TEST.SCORE_THRESHOLD": 0.5,
}


def test_these_keys_are_added_with_these_defaults_and_no_other_changes() -> None:
    assert added(add_detection_config) == DEFAULTS


def test_the_defaults_are_those_of_a_config_and_of_the_page_of_keys() -> None:
    everything, page = default_values(), {key.name: key for key in read_keys()}
    for key, value in DEFAULTS.items():
        assert everything[key] == value, key
        assert eval(page[key].default, {}) == value, key
        assert page[key].type == type(value).__name__, key
        assert page[key].comment, key


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_read_by_the_package(key: str) -> None:
    assert key in keys_read()
