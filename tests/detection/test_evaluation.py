import math

from ode_detect.detection.evaluation import metrics


def test_percents_become_fractions_and_what_does_not_exist_is_left_out() -> None:
    assert metrics({"bbox": {"AP": 31.5, "AP50": 50.0, "APl": math.nan}}) == {"AP": 0.315, "AP50": 0.5}
    assert metrics({}) == {}
