"""Clauses are found by their keys, and old files, whose protocol is one text, say the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from ode_detect.report.protocol import (
    FULL_PIECES,
    FULL_STEPS,
    LATENCY,
    TEST,
    TRAINING,
    Clause,
    about,
    clauses,
    from_json,
    from_words,
    full_settings,
    in_words,
    joined,
    renamed,
    to_json,
)
from ode_detect.report.rows import ResultsError

ROOT = Path(__file__).resolve().parents[2]
OLD = (
    "trained on a_train: 6 iterations; tested on a_test with the last weights; AP by pycocotools; "
    "full steps: euler_2; dial: full steps: dial_rk4_1-2-2; full pieces: pieces_8; latency: one picture at a time"
)


def test_the_known_keys_of_an_old_text_are_recognised() -> None:
    protocol = from_words(OLD)
    assert [clause.key for clause in protocol] == [
        *(TRAINING, TEST, "", FULL_STEPS, FULL_STEPS, FULL_PIECES, LATENCY),
    ]
    assert protocol[4] == Clause(FULL_STEPS, "dial_rk4_1-2-2", "dial")
    assert full_settings(protocol) == ["euler_2", "dial_rk4_1-2-2"]
    assert [clause.text for clause in about(protocol, FULL_PIECES)] == ["pieces_8"]
    assert in_words(protocol) == OLD


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_file_of_ours_reads_as_it_did(path: Path) -> None:
    value = json.loads(path.read_text())["protocol"]
    protocol = from_json(value)
    if isinstance(value, str):
        assert in_words(protocol) == value
    assert from_json(to_json(protocol)) == protocol


def test_a_file_holds_keys_and_texts_and_a_part_where_there_is_one() -> None:
    protocol = (Clause(TEST, "tested on a"), Clause(FULL_STEPS, "euler_2", "dial"))
    assert to_json(protocol) == [
        {"key": "test", "text": "tested on a"},
        {"key": "full steps", "text": "euler_2", "part": "dial"},
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "must be a list of clauses"),
        ([["test", "tested"]], "must be a list of clauses"),
        ([{"key": "test"}], "has a key and a text"),
        ([{"kye": "test", "text": "tested"}], "did you mean key"),
        ([{"key": "test", "text": ""}], "is empty"),
        ([{"key": 3, "text": "tested"}], "must be str"),
    ],
)
def test_what_is_no_protocol_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        from_json(value)


def test_what_parts_share_is_stated_once_at_the_end() -> None:
    first, second = from_words("trained long; tested; full steps: euler_2"), from_words("trained short; tested")
    assert in_words(joined([("a", first), ("b", second)])) == (
        "a: trained long; a: full steps: euler_2; b: trained short; tested"
    )
    again = joined([("x", joined([("a", first), ("b", second)])), ("y", second)])
    assert [clause.part for clause in again] == ["x: a", "x: a", "x: b", "y", ""]
    assert in_words(joined([("a", first)])) == in_words(first)


def test_old_and_new_files_that_say_the_same_are_alike() -> None:
    new = (*clauses("metrics", ["AP by pycocotools"]), Clause(TEST, "tested on a"))
    assert in_words(joined([("a", new), ("b", from_words(in_words(new)))])) == "AP by pycocotools; tested on a"


def test_rows_with_another_name_are_named_so_in_the_protocol() -> None:
    assert in_words(renamed(from_words("tested; full steps: euler_2"), "dial")) == "tested; full steps: dial_euler_2"
