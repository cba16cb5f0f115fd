import pytest

from ode_detect.media.errors import DatasetError, Problem, describe


@pytest.mark.parametrize(
    ("where", "done", "text"),
    [
        (("a.png",), "", "1 boxes without width: a.png"),
        (("a", "b"), "dropped", "2 boxes without width, dropped: a; b"),
        (("a", "b", "c"), "", "3 boxes without width: a; b; c"),
        (("a", "b", "c", "d"), "", "4 boxes without width: a; b; c; and 1 more"),
        (tuple("abcdef"), "dropped", "6 boxes without width, dropped: a; b; c; and 3 more"),
        ((), "", "0 boxes without width: "),
    ],
)
def test_a_problem_says_how_many_what_is_done_and_where(where: tuple[str, ...], done: str, text: str) -> None:
    assert str(Problem("boxes without width", where, done)) == text


def test_problems_are_listed_a_line_each() -> None:
    problems = [Problem("boxes without width", ("a",)), Problem("pictures that cannot be read", ("b", "c"), "left out")]
    assert describe(problems) == "  1 boxes without width: a\n  2 pictures that cannot be read, left out: b; c"
    assert describe([]) == ""


def test_what_is_wrong_with_data_is_caught_as_a_wrong_value() -> None:
    with pytest.raises(ValueError, match="get it"):
        raise DatasetError("get it")
