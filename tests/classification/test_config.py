import pytest

from ode_detect.classification.config import add_classification_config

from ..config_keys import added, assert_documented, keys_read

DEFAULTS = {
    "MODEL.CLASSIFIER.NUM_CLASSES": 10,
    "MODEL.CLASSIFIER.IN_FEATURE": "",
    "MODEL.CLASSIFIER.NORM": "",
    "MODEL.CLASSIFIER.DROPOUT": 0.0,
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": 0.0,
    "INPUT.PAD_CROP": 0,
    "INPUT.ROTATION": 0.0,
    "INPUT.CUTOUT": 0,
    "INPUT.SIDE": 0,
    "INPUT.CENTER_SHARE": 1.0,
    "DATASETS.HELD_OUT": 0.02,
    "TEST.BATCH": 250,
    "TEST.FAMILIAR_SHARE": 0.99,
}


def test_these_keys_are_added_with_these_defaults_and_no_other_changes() -> None:
    assert added(add_classification_config) == DEFAULTS


def test_the_defaults_are_those_of_a_config_and_of_the_page_of_keys() -> None:
    assert_documented(DEFAULTS)


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_read_by_the_package(key: str) -> None:
    assert key in keys_read()
