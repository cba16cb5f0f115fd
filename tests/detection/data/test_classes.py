import pytest

from ode_detect.detection.data.classes import Classes, difference, listed


def xml(of: str, *names: str) -> Classes:
    return Classes(of, names, xml=True)


def coco(of: str, *names: str) -> Classes:
    return Classes(of, names, xml=False)


@pytest.mark.parametrize(
    ("one", "other", "wrong", "todo"),
    [
        (
            xml("train", "a", "b", "c"),
            xml("test", "a", "c"),
            "test lacks b. ",
            "write CLASSES: [a, b, c] in DATASETS.CUSTOM for train and test; and set NUM_CLASSES 3.",
        ),
        (
            coco("train", "a"),
            coco("test", "a", "b"),
            "train lacks b. ",
            "give the annotations of train and test the categories a, b; and set NUM_CLASSES 2.",
        ),
        (coco("train", "a", "b"), coco("test", "b", "a"), "another order. ", "the categories a, b; and set"),
        # Only the order of CLASSES can be chosen.
        (
            xml("train", "a", "b"),
            coco("test", "b", "c"),
            "test lacks a, and train lacks c. ",
            "write CLASSES: [b, c, a] in DATASETS.CUSTOM for train; give the annotations of test the categories b",
        ),
        (xml("train", "a"), xml("test", "b"), "they have none in common", "CLASSES: [a, b]"),
    ],
)
def test_what_differs_is_told_with_its_cure(one: Classes, other: Classes, wrong: str, todo: str) -> None:
    text = difference(one, other)
    assert wrong in text
    assert todo in text


def test_the_same_classes_are_no_difference() -> None:
    assert difference(xml("train", "a", "b"), coco("test", "a", "b")) == ""


def test_of_many_names_the_first_are_listed() -> None:
    assert listed([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    assert listed([]) == "none"
