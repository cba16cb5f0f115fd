import pytest

from ode_detect.detection.config import add_detection_config

from ..config_keys import added, assert_documented, keys_read

DEFAULTS = {
    "INPUT.ANY_ORIENTATION": False,
    "INPUT.MIN_VISIBLE": 0.0,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "TEST.SCORE_THRESHOLD": 0.5,
}


def test_these_keys_are_added_with_these_defaults_and_no_other_changes() -> None:
    assert added(add_detection_config) == DEFAULTS


def test_the_defaults_are_those_of_a_config_and_of_the_page_of_keys() -> None:
    assert_documented(DEFAULTS)


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_read_by_the_package(key: str) -> None:
    assert key in keys_read()
