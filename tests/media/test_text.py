import json
from pathlib import Path

import pytest

from ode_detect.media.errors import DatasetError
from ode_detect.media.text import is_ascii, read_json, read_text, read_xml


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "given"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_json_and_xml_are_read_in_any_of_the_unicode_encodings(file: Path, encoding: str) -> None:
    file.write_text("p1\né\n", encoding=encoding)
    assert read_text(file) == "p1\né\n"
    file.write_text('{"name": "é"}', encoding=encoding)
    assert read_json(file) == {"name": "é"}
    file.write_text("<a>é</a>", encoding=encoding)
    assert read_xml(file).text == "é"


def test_another_encoding_is_refused_with_the_file_and_the_cure(file: Path) -> None:
    file.write_text('{"name": "é"}', encoding="latin-1")
    for read in (read_text, read_json, read_xml):
        with pytest.raises(DatasetError, match=r"a text file is UTF-8, and .*given is not .*save it as UTF-8"):
            read(file)


@pytest.mark.parametrize(
    ("declared", "saved", "text"),
    [
        ("gb2312", "gb2312", "红细胞"),
        # A letter that only the successor of GB2312 has.
        ("GB2312", "gbk", "國"),
        ("GBK", "utf-8", "红"),
        ("windows-1251", "cp1251", "дом"),
        ("Shift_JIS", "cp932", "①"),
        ("utf-16", "utf-8", "é"),
        ("utf-8", "utf-16", "é"),
        ("no-such-encoding", "utf-8", "é"),
        ("idna", "utf-8", "é"),
        ("unicode_escape", "utf-8", "\\x41"),
        ("rot13", "utf-8", "é"),
    ],
)
def test_xml_is_read_in_the_encoding_that_it_declares_or_is_in(
    file: Path, declared: str, saved: str, text: str
) -> None:
    file.write_text(f"<?xml version='1.0' encoding='{declared}'?><a>{text}</a>", encoding=saved)
    assert read_xml(file).text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a>", "is not XML"),
        ("", "is not XML"),
        ("<!DOCTYPE a [<!ENTITY b 'bb'><!ENTITY c '&b;&b;'>]><a>&c;</a>", "defines no entities"),
        ("<a>\x00</a>", "is not XML"),
    ],
)
def test_what_is_no_xml_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_xml(file)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "\x00\x00\x00\x00", '{"a": 1} x'])
def test_what_is_no_json_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(DatasetError, match=r"given is no JSON"):
        read_json(file)


@pytest.mark.parametrize("deep", [33, 900, 100_000])
def test_json_is_nested_32_deep_at_most(file: Path, deep: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":[', "]}")):
        count = -(-deep // (len(closing)))
        file.write_text(opening * count + closing * count)
        with pytest.raises(DatasetError, match="at most 32 deep"):
            read_json(file)
    file.write_text("[" * deep)
    with pytest.raises(DatasetError):
        read_json(file)


def test_brackets_in_strings_do_not_nest(file: Path) -> None:
    content = [["["] * 50, "{[" * 50, json.loads("[" * 31 + "]" * 31)]
    file.write_text(json.dumps(content))
    assert read_json(file) == content


@pytest.mark.parametrize(
    ("digits", "value"),
    [
        ("9223372036854775807", 9223372036854775807),
        ("-9223372036854775808", -9223372036854775808),
        ("9223372036854775808", 9223372036854775808.0),
        ("1" * 30, float("1" * 30)),
        ("-" + "1" * 400, float("-inf")),
        ("1" * 5000, float("inf")),
        ("0.1234567890123456789012345", 0.1234567890123456789012345),
    ],
)
def test_whole_numbers_beyond_64_bits_become_floating_point(file: Path, digits: str, value: float) -> None:
    file.write_text(f"[{digits}, 7]")
    number, small = read_json(file)
    assert (number, type(number)) == (value, type(value))
    assert (small, type(small)) == (7, int)


@pytest.mark.parametrize("name", ["none", ".", "a" * 300, "a\0b"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="Check the path"):
        read_text(tmp_path / name)


def test_a_device_is_not_read_to_its_end() -> None:
    with pytest.raises(DatasetError, match="Check the path"):
        read_json(Path("/dev/zero"))


def test_ascii_is_what_every_program_reads_alike(file: Path) -> None:
    file.write_bytes(b"{}")
    assert is_ascii(file)
    for text, encoding in (("{}", "utf-8-sig"), ("{}", "utf-16"), ('{"é": 1}', "utf-8")):
        file.write_text(text, encoding=encoding)
        assert not is_ascii(file)
