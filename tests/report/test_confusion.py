from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from ode_detect.report import confusion
from ode_detect.report.confusion import draw_confusion, short_name


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(confusion, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def draw(size: int) -> None:
    counts = [[9 if row == column else 1 for column in range(size)] for row in range(size)]
    draw_confusion(counts, [f"class {i}" for i in range(size)], "", title="Confusion")


def test_a_small_matrix_has_numbers_and_a_large_one_only_names(drawn: list[Figure]) -> None:
    for size in (2, 12, 13, 120, 121):
        draw(size)
    axes = [figure.axes[0] for figure in drawn]
    assert [len(one.texts) for one in axes] == [4, 144, 0, 0, 0]
    assert [one.get_yticklabels()[1].get_text() == "class 1" for one in axes] == [True] * 4 + [False]
    assert max(figure.get_size_inches().max() for figure in drawn) < 20


def test_a_few_mistakes_are_seen_beside_the_diagonal(drawn: list[Figure]) -> None:
    draw_confusion([[99, 1], [0, 100]], ["a", "b"], "", title="")
    image = drawn[0].axes[0].images[0]
    assert image.get_array()[0, 1] == pytest.approx(0.01)
    assert image.norm(0.01) == pytest.approx(0.1)


def test_numbers_can_be_read_on_their_ground(drawn: list[Figure]) -> None:
    draw_confusion([[60, 40], [20, 80]], ["a", "b"], "", title="", uncounted=1)
    texts = drawn[0].axes[0].texts
    assert [text.get_text() for text in texts] == ["60", "40", "20", "–"]
    assert [text.get_color() == "white" for text in texts] == [True, True, False, True]


def test_a_long_name_is_cut() -> None:
    assert short_name("a short name") == "a short name"
    assert short_name("a name that is far too long") == "a name that is fa…"
