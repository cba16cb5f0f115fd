from pathlib import Path

import pytest

from ode_detect.media.errors import DatasetError
from ode_detect.media.places import datasets_root, refuse_as_path


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "", "a\nb", "caf\udce9", "x" * 201])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="up to 200 printable letters and no slash"):
        refuse_as_path(name)


@pytest.mark.parametrize("name", ["trees_test", "my data, v1.2", "k\u00f6ln", "\u6811"])
def test_a_usual_name_is_one(name: str) -> None:
    refuse_as_path(name)


def test_the_folder_of_data_sets_is_the_one_of_detectron2(monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets_root() == Path.home() / "data"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert datasets_root() == Path("datasets")
