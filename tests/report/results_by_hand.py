"""Results that are written by hand, for tests."""

from __future__ import annotations

from typing import Any

from ode_detect.report.protocol import from_words
from ode_detect.report.results import Results, Row
from ode_detect.report.rows import Comparison


def a_row(name: str = "ode", role: str = "ode", seed: int = 0, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "config": "configs/a.yaml",
        "metrics": {"AP": 0.25, "AP50": 0.5},
        "cost": {"parameters": 208266, "evaluations": 22, "latency_ms": 12.345},
    }
    return Row(name=name, role=role, seed=seed, **{**values, **changes})


def some_results(*rows: Row, **changes: Any) -> Results:
    values: dict[str, Any] = {
        "what": "trees, ODE against twin",
        "command": "python tools/compare.py trees",
        "commit": "0123456789ab",
        "date": "2026-01-02",
        "machine": {"cpu": "a cpu", "cores": 2},
        "protocol": from_words("test 9 tiles"),
    }
    return Results(**{**values, **changes}, rows=rows or (a_row(),))


def a_benchmark(**changes: Any) -> Results:
    forward = {"config": "speed", "case": "forward"}
    rows = (
        a_row("forward: flow", metrics={}, cost={"latency_ms": 10.25, "kept_mib": 3.0}, **forward),
        a_row(
            "forward: blocks",
            "twin",
            metrics={},
            cost={"latency_ms": 10.0, "kept_mib": 12.0},
            config="speed",
            case="forward",
        ),
        a_row("backward: flow", metrics={"gradient_difference": 1e-7}, cost={}, config="memory", case="backward"),
    )
    comparisons = (
        Comparison("forward", "forward: flow", "forward: blocks", "latency_ms", 1.025, 1.01, 1.04, 1.02),
        Comparison("forward", "forward: flow", "forward: blocks", "kept_mib", 0.25, 0.25, 0.25, 0.25),
        Comparison("backward", "backward: flow", "forward: flow", "gradient_difference", 1e-7, 1e-7, 1e-7),
    )
    return some_results(*rows, **{"comparisons": comparisons, **changes})
