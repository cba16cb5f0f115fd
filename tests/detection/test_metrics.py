"""The metrics that evaluators give are declared, each once."""

from ode_detect.detection.metrics import METRICS
from ode_detect.report.results import Results

from ..conftest import ROOT


def test_each_metric_has_one_name() -> None:
    names = [one.name for one in METRICS]
    assert len(names) == len(set(names))


def test_all_metrics_of_results_are_declared() -> None:
    known, seen = {one.name for one in METRICS}, set()
    for file in sorted((ROOT / "results").glob("detection*.json")):
        seen |= {name for row in Results.read(file).rows for name in row.metrics}
    assert len(seen) > 5
    assert seen <= known
