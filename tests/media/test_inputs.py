from pathlib import Path

import pytest

from ode_detect.media import PICTURES, VIDEOS, find_inputs, first_overwritten


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_searched_for_pictures_and_videos(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "sub/c.mp4", "notes.txt", ".hidden.png", ".cache/d.png", "data.json")
    found = find_inputs([str(tmp_path)])
    assert [(str(i.name), i.video) for i in found.inputs] == [("a.png", False), ("b.JPG", False), ("sub/c.mp4", True)]
    assert found.problems == ()
    assert not PICTURES & VIDEOS


def test_globs_files_and_what_is_given_twice(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, "x/1.png", "x/2.png", "x/y/3.png", "x/[odd].png", "x/4.dat")
    monkeypatch.chdir(tmp_path)
    found = find_inputs(["x/*.png", "x/1.png", "x/**/3.png", "x/4.dat"])
    assert [str(i.path) for i in found.inputs] == ["x/1.png", "x/2.png", "x/[odd].png", "x/y/3.png", "x/4.dat"]
    # A name with brackets that is there is a file, not a pattern.
    assert [str(i.path) for i in find_inputs(["x/[odd].png"]).inputs] == ["x/[odd].png"]


def test_equal_names_in_two_folders_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "sunny/1.jpg", "rainy/1.jpg", "rainy/1.png")
    found = find_inputs([str(tmp_path / "sunny"), str(tmp_path / "rainy")])
    assert [str(i.name) for i in found.inputs] == ["sunny/1.jpg", "rainy/1.jpg", "rainy/1.png"]
    assert [str(i.name) for i in find_inputs([str(tmp_path / "rainy")]).inputs] == ["1.jpg", "1.png"]


def test_what_an_earlier_command_drew_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "out/predictions.json", "out/drawn/1.jpg", "out/mine/2.jpg", "drawn/3.jpg")
    skip = ("drawn", "predictions.json", "predictions.partial.jsonl")
    names = [str(i.name) for i in find_inputs([str(tmp_path)], skip=skip).inputs]
    assert names == ["1.jpg", "drawn/3.jpg", "out/mine/2.jpg"]
    touch(tmp_path, "predictions.partial.jsonl")
    assert "drawn/3.jpg" not in [str(i.name) for i in find_inputs([str(tmp_path)], skip=skip).inputs]
    # What is named is taken.
    assert len(find_inputs([str(tmp_path / "out" / "drawn")], skip=skip).inputs) == 1


@pytest.mark.parametrize(
    ("given", "problem"), [("none.jpg", "is not there"), ("*.zip", "fits no file"), ("", "folder")]
)
def test_what_is_not_there_is_told(given: str, problem: str, tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    found = find_inputs([str(tmp_path / given)])
    assert found.inputs == ()
    assert [path for path, _ in found.problems] == [str(tmp_path / given)]
    assert problem in found.problems[0][1]


def test_names_never_lead_up_and_one_file_has_one_name(tmp_path: Path, monkeypatch) -> None:
    work = tmp_path / "a" / "b"
    work.mkdir(parents=True)
    for folder in (tmp_path, work):
        (folder / "x.png").touch()
    (tmp_path / "link").symlink_to(work)
    monkeypatch.chdir(work)
    found = find_inputs(["../../x.png", "x.png", "../b/x.png", str(tmp_path / "link" / "x.png")])
    assert [item.name.as_posix() for item in found.inputs] == ["x.png", "a/b/x.png"]
    assert [str(item.path) for item in found.inputs] == ["../../x.png", "x.png"]
    # Of a link, ".." is the folder that it leads to.
    found = find_inputs([str(tmp_path / "link" / ".." / ".." / "x.png"), "x.png"])
    assert [item.name.as_posix() for item in found.inputs] == ["x.png", "a/b/x.png"]


def test_a_target_that_is_an_input_is_found(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert first_overwritten([tmp_path / "new", tmp_path / "c"], [tmp_path / "a", tmp_path / "gone"]) is None
    assert first_overwritten([tmp_path / "x" / ".." / "a"], [tmp_path / "a"]) is None  # there is no x
    assert first_overwritten([tmp_path / "." / "a"], [tmp_path / "a"]) == (tmp_path / "a", tmp_path / "a")
    # What a link leads to is read, and the link itself is what would be replaced.
    assert first_overwritten([tmp_path / "b"], [tmp_path / "link"]) == (tmp_path / "b", tmp_path / "link")
    assert first_overwritten([tmp_path / "link"], [tmp_path / "link"]) == (tmp_path / "link", tmp_path / "link")
    assert first_overwritten([tmp_path / "link"], [tmp_path / "b"]) is None
