from pathlib import Path

import numpy as np
import pytest

from ode_detect.deploy.drawings import drawn_paths, frames_path, short, write_picture
from ode_detect.media import Input


def names(*given: str, video: bool = False) -> list[str]:
    items = [Input(Path(name), Path(name), video) for name in given]
    return [path.relative_to("out/drawn").as_posix() for path in drawn_paths(Path("out"), items)]


def test_what_is_drawn_keeps_its_name_and_its_type_where_that_can_be_written() -> None:
    assert names("1.jpg", "a/1.JPG", "1.tif", "1.gif", "1.webp") == [
        "1.jpg",
        "a/1.JPG",
        "1.tif.jpg",
        "1.gif.jpg",
        "1.webp",
    ]
    assert names("1.mp4", "a/1.MP4", "1.avi", video=True) == ["1.mp4", "a/1.MP4", "1.avi.mp4"]


def test_each_input_has_a_drawing_of_its_own_whatever_their_order() -> None:
    assert names("t.gif", "t.gif.jpg") == ["t.gif_2.jpg", "t.gif.jpg"]
    assert names("t.gif.jpg", "t.gif", "t.gif_2.jpg") == ["t.gif.jpg", "t.gif_3.jpg", "t.gif_2.jpg"]
    assert names("t.avi.mp4", "t.avi", video=True) == ["t.avi.mp4", "t.avi_2.mp4"]


def test_long_names_are_cut_and_stay_apart() -> None:
    long = ["l" * 249 + ending for ending in ("a.png", "b.png", "c.tif", "d.tif")]
    cut = names(*long)
    assert len(set(cut)) == 4
    assert [Path(name).suffix for name in cut] == [".png", ".png", ".jpg", ".jpg"]
    assert all(len(name) <= 200 for name in cut)
    item = Input(Path("x"), Path("\u00e4" * 125 + ".avi"), True)
    assert len(frames_path(Path("out"), item).name.encode()) <= 200
    assert short(Path("a/short.png")) == Path("a/short.png")


def test_a_side_that_is_too_long_for_the_type_makes_it_another_file(tmp_path: Path) -> None:
    wide = np.zeros((1, 65_501, 3), np.uint8)
    path = write_picture(tmp_path / "a.jpg", wide, {tmp_path / "a.jpg.png"})
    assert path == tmp_path / "a.jpg_2.png"
    assert path.is_file()
    assert write_picture(tmp_path / "b.jpg", wide[:, :65_500]) == tmp_path / "b.jpg"
    assert write_picture(tmp_path / "c.webp", wide[:, :16_384]) == tmp_path / "c.webp.png"


def test_what_cannot_be_encoded_is_an_error_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be encoded"):
        write_picture(tmp_path / "a.xyz", np.zeros((2, 2, 3), np.uint8))
    assert not list(tmp_path.iterdir())
