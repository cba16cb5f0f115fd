import datetime
from dataclasses import fields

import torch

from ode_detect.engine.provenance import commit, machine, provenance
from ode_detect.report.results import Results


def test_it_fills_the_fields_of_results() -> None:
    about = provenance("a command")
    assert about.keys() <= {field.name for field in fields(Results)}
    assert about["command"] == "a command"
    assert about["commit"] == commit()
    assert about["machine"] == {**machine(), "threads": torch.get_num_threads()}
    age = datetime.datetime.now(datetime.timezone.utc).date() - datetime.date.fromisoformat(about["date"])
    assert age <= datetime.timedelta(days=1)
