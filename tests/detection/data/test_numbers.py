import json
from typing import Any

import pytest

from ode_detect.detection.data.numbers import number, read_numbers, whole


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *(("12", 12), (" 12 ", 12), ("-7", -7), ("12.0", 12), (12.0, 12), ("1e2", 100), ("012", 12), (True, True)),
        *(("a1", "a1"), ("", ""), ("12,5", "12,5"), ("1_0", "1_0"), ("nan", "nan"), ("\u0661", "\u0661"), (None, None)),
        *((1.5, 1.5), ("1.5", 1.5), (1e300, 1e300), ("9" * 5000, "9" * 5000), ([1], [1])),
    ],
)
def test_only_what_can_be_one_whole_number_is_read_as_it(value: Any, read: Any) -> None:
    assert whole(value) == read
    assert type(whole(value)) is type(read)


def test_a_number_keeps_its_point() -> None:
    assert [number(v) for v in ("996.0000", "3", ".5", 2)] == [996.0, 3, 0.5, 2]
    assert type(number("996.0000")) is float


def test_places_name_what_was_written() -> None:
    content: dict[str, Any] = {
        "images": [{"id": "3", "width": 10, "height": 10.0}],
        "categories": [{"id": 1}],
        "annotations": [{"id": 5, "image_id": "3", "bbox": [1, "2", 3, 4.0]}, {"id": 6, "image_id": 3, "bbox": None}],
    }
    before = json.dumps(content)
    read, (problem,) = read_numbers(content)
    assert json.dumps(content) == before
    assert problem.where == ("image 3, id '3', height 10.0", "annotation 5, image_id '3', bbox [1, '2', 3, 4.0]")
    assert read["annotations"][0] == {"id": 5, "image_id": 3, "bbox": [1, 2, 3, 4.0]}
    assert read["categories"] is content["categories"]
    assert read_numbers(read) == (read, [])
