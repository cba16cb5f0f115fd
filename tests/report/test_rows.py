from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ode_detect.report.rows import Comparison, ResultsError, Row


def _comparison(**changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "case": "forward",
        "ours": "forward: flow",
        "other": "forward: blocks",
        "quantity": "latency_ms",
        "ratio": 1.01,
        "low": 1.0,
        "high": 1.03,
        "aim": 1.02,
    }
    return Comparison(**{**values, **changes})


@pytest.mark.parametrize(("ratio", "aim", "met"), [(1.02, 1.02, True), (1.03, 1.02, False), (9.0, None, None)])
def test_an_aim_is_a_bound_from_above(ratio: float, aim: float | None, met: bool | None) -> None:
    assert _comparison(ratio=ratio, aim=aim).met is met


def test_numbers_of_numpy_become_plain() -> None:
    assert type(_comparison(ratio=np.float32(0.5)).ratio) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case": None}, "`case`.*must be str"),
        ({"ratio": float("nan")}, "ratio of the comparison 'forward' must be a finite number"),
        ({"high": True}, "high of the comparison 'forward' must be a finite number"),
        ({"low": -0.1}, "a ratio must be 0 or more; low"),
        ({"aim": "1.02"}, "aim of the comparison 'forward' must be a finite number"),
    ],
)
def test_a_wrong_comparison_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        _comparison(**changes)


def test_a_row_of_a_case_knows_what_it_is_called_in_it() -> None:
    row = Row("forward: flow", "ode", 0, "speed", {}, case="forward")
    assert (row.case, row.side) == ("forward", "flow")
    assert Row("flow", "ode", 0, "speed", {}).side == "flow"
    with pytest.raises(ResultsError, match="is not of 'backward'"):
        Row("forward: flow", "ode", 0, "speed", {}, case="backward")
