from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ode_detect.classification.answers import Answers
from ode_detect.report.results import ResultsError

# Wrong are the pictures 1 (0.5), 3 (0.9), 4 (0.6) and 5 (0.7).
ANSWERS = Answers(
    names=("cat", "dog", "hen"),
    labels=(0, 1, 2, 0, 1, 2),
    classes=((0, 1), (2, 1), (2, 0), (1, 0), (0, 1), (1, 2)),
    probabilities=((0.8, 0.1), (0.5, 0.4), (1.0, 0.0), (0.9, 0.1), (0.6, 0.3), (0.7, 0.2)),
    far=(False, True, False, False, False, False),
)


@pytest.mark.parametrize("answers", [ANSWERS, replace(ANSWERS, far=()), Answers(("a",), (), (), ())])
def test_answers_are_written_and_read(answers: Answers, tmp_path: Path) -> None:
    answers.write(tmp_path / "predictions.json")
    assert Answers.read(tmp_path / "predictions.json") == answers


def test_the_file_has_a_short_entry_for_each_picture(tmp_path: Path) -> None:
    replace(ANSWERS, probabilities=(*ANSWERS.probabilities[:5], (1 / 3, 0.0))).write(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["names"] == ["cat", "dog", "hen"]
    assert written["pictures"][1] == [1, [2, 1], [0.5, 0.4], True]
    assert written["pictures"][5][2] == [0.333333, 0.0]


@pytest.mark.parametrize(
    ("count", "spread", "wrong"),
    [(4, [0, 5], [3, 4]), (2, [0], [3]), (1, [0], []), (3, [0, 5], [3]), (100, [0, 1, 2, 3, 4, 5], []), (0, [], [])],
)
def test_pictures_from_all_over_the_set_and_the_surest_mistakes_among_the_others_are_shown(
    count: int, spread: list[int], wrong: list[int]
) -> None:
    assert ANSWERS.chosen(count) == (spread, wrong)


def test_a_picture_has_names_for_what_was_said_about_it() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    shown = ANSWERS.classified(1, image, "a.png")
    assert (shown.labels, shown.probabilities, shown.truth) == (["hen", "dog"], (0.5, 0.4), "dog")
    assert (shown.far, shown.right, shown.name) == (True, False, "a.png")
    assert not replace(ANSWERS, far=()).classified(1, image).far


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (0,)}, "needs its label"),
        ({"far": (True,)}, "needs its label"),
        ({"probabilities": ((0.1,),) * 6}, "needs its label"),
        ({"labels": (0, 1, 2, 0, 1, 3)}, r"indices of 3 names.*\[3\]"),
        ({"classes": ((),) * 6, "probabilities": ((),) * 6}, "each picture needs a class"),
        ({"probabilities": (*ANSWERS.probabilities[:5], (1.5, 0.0))}, r"in \[0, 1\]; it is 1.5"),
    ],
)
def test_answers_that_do_not_fit_together_are_refused(change: dict[str, tuple], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        replace(ANSWERS, **change)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"names": ["a"], "pictures": [[0]]}', '{"names": ["a"], "pictures": [0]}']
)
def test_a_broken_file_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ResultsError, match=r"a\.json does not hold predictions"):
        Answers.read(tmp_path / "a.json")
    with pytest.raises(ResultsError, match="Evaluate first"):
        Answers.read(tmp_path / "none.json")
