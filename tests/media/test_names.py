import os
import unicodedata
from pathlib import Path

import pytest

from ode_detect.media.names import by_stem, is_file, one_line, other_spellings, printable, same_name

COMPOSED = "café/übung.png"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_composed_and_decomposed_names_are_the_same() -> None:
    assert COMPOSED != DECOMPOSED
    assert same_name(DECOMPOSED) == COMPOSED == same_name(COMPOSED)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("red blood cell", "red blood cell"),
        ("a\nb", "a b"),
        ("a\r\n\tb", "a b"),
        ("half \ud83d", "half  "),
        ("\x00", " "),
        ("$\\frac{$", "$\\frac{$"),
        ("家\u200d👩‍🌾", "家\u200d👩‍🌾"),
        (DECOMPOSED, COMPOSED),
        ("", ""),
    ],
)
def test_a_name_of_one_line(name: str, line: str) -> None:
    assert one_line(name) == line
    one_line(name).encode()


@pytest.mark.parametrize(("there", "asked"), [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)])
def test_a_file_is_found_by_the_other_form_of_its_name(tmp_path: Path, there: str, asked: str) -> None:
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).touch()
    found = other_spellings(tmp_path, [asked, there, "none.png", "nöne.png", asked.replace("/", "\\")])
    assert found == {asked: there, asked.replace("/", "\\"): there}


def test_backslashes_are_read_as_folders_unless_they_are_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "b\\2.png").touch()
    assert other_spellings(tmp_path, ["a\\1.png", "b\\2.png", "c\\3.png", "C:\\a\\1.png"]) == {"a\\1.png": "a/1.png"}


@pytest.mark.parametrize("name", ["é" * 300, "é\0", "\ud800", "é/" * 3000, "\\", "é/../é", "/é/é"])
def test_names_that_can_be_no_file_are_not_found(tmp_path: Path, name: str) -> None:
    assert other_spellings(tmp_path, [name]) == {}
    assert not is_file(tmp_path / name)


def test_files_by_their_stem_without_hidden_and_foreign_ones(tmp_path: Path) -> None:
    for name in ("p1.jpg", "p1.PNG", "p1.xml", "p1.txt", "._p1.jpg", ".p1.jpg", unicodedata.normalize("NFD", "é.jpg")):
        (tmp_path / name).touch()
    assert by_stem(tmp_path, {".jpg", ".png"}) == {
        "p1": ["p1.PNG", "p1.jpg"],
        "é": [unicodedata.normalize("NFD", "é.jpg")],
    }


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_file(tmp_path / "pipe")


def test_bytes_that_are_no_utf_8_are_written_out() -> None:
    assert printable("caf\udce9.jpg") == "caf\\udce9.jpg"
    assert printable("k\u00f6ln.jpg") == "k\u00f6ln.jpg"
