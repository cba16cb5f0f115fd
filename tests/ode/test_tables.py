import pytest

from ode_detect.ode.tables import table


def test_a_table():
    rows = [("a", "1.5", "first"), ("long name", "10", "b")]
    assert table(("name", "size", "note"), rows, left=(0, 2)) == "\n".join(
        [
            "name       size  note",
            "---------  ----  -----",
            "a           1.5  first",
            "long name    10  b",
        ]
    )
    assert table(("n", "x"), [("a", "1")], total=("sum", "1")) == "n    x\n---  -\na    1\n---  -\nsum  1"


def test_a_row_that_lacks_a_cell():
    with pytest.raises(ValueError, match="zip"):
        table(("a", "b"), [("1",)])
