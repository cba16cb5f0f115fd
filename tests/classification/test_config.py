import pytest

from ode_detect.classification.config import add_classification_config
from ode_detect.engine.config import default_values
from ode_detect.engine.config_reference import read_keys

from ..config_keys import added, keys_read

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
    everything, page = default_values(), {key.name: key for key in read_keys()}
    for key, value in DEFAULTS.items():
        assert everything[key] == value, key
        assert eval(page[key].default, {}) == value, key
        assert page[key].type == type(value).__name__, key
        assert page[key].comment, key


@pytest.mark.parametrize("key", DEFAULTS)
def test_each_key_is_read_by_the_package(key: str) -> None:
    assert key in keys_read()
