"""Quantities: how they are called and shown."""

import subprocess
import sys

import pytest

from ode_detect.engine.tasks import TASKS
from ode_detect.report import metrics
from ode_detect.report.metrics import COSTS, Quantity, declare, fraction, in_order, names, quantity
from ode_detect.report.rows import Row


def test_the_metrics_of_all_tasks_are_declared() -> None:
    for task in TASKS.values():
        assert task.quantities
        assert {one.name for one in task.quantities} <= set(names())
        assert quantity(task.score).is_fraction


def test_headings_have_units_and_plain_words() -> None:
    assert quantity("top1").heading == "top-1 (%)"
    assert quantity("best_f1").heading == "best F1 (%)"
    assert quantity("train_step_ms").heading == "training step (ms)"
    assert quantity("macs").heading == "multiply-adds (G)"
    assert Quantity("AbsRel").heading == "AbsRel"


def test_a_fraction_is_shown_in_percent_and_checked() -> None:
    assert (quantity("error").factor, quantity("error").digits, quantity("error").better) == (100.0, 2, "less")
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]; it is 40"):
        Row(name="a", role="ode", seed=0, config="", metrics={"AP50": 40.0})


def test_a_name_of_a_family_is_shown_as_the_family_is() -> None:
    assert quantity("AP_of_cats") == fraction("AP_of_cats")
    assert quantity("RMSE") == Quantity("RMSE")
    assert quantity("precise") == Quantity("precise"), "no family"


def test_metrics_stand_in_the_order_of_their_task() -> None:
    assert in_order(["f1", "precision", "AP50", "nothing", "AP"]) == ["AP", "AP50", "precision", "f1", "nothing"]
    assert in_order(["nll", "precision", "f1", "top1", "error"]) == ["error", "top1", "precision", "f1", "nll"]
    assert in_order([]) == []


def test_every_cost_is_better_in_one_direction() -> None:
    assert {one.better for one in COSTS.values()} == {"less", "more"}
    assert [name for name, one in COSTS.items() if one.better == "more"] == ["pictures_per_second"]
    assert all(name == one.name for name, one in COSTS.items())


def test_a_group_is_declared_once_and_a_name_in_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_DECLARED", [])
    for _ in range(2):
        declare(Quantity("RMSE", unit="m", better="less"))
    assert names() == ["RMSE"]
    assert quantity("RMSE").heading == "RMSE (m)"
    with pytest.raises(ValueError, match=r"RMSE is declared as .* and as"):
        declare(Quantity("RMSE"))


def test_results_are_shown_rightly_by_report_alone() -> None:
    code = "from ode_detect.report.metrics import quantity; import sys;"
    code += "print(quantity('AP50').heading, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "AP50 (%) False\n"
