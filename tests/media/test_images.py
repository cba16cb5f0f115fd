import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as read_by_detectron2
from PIL import Image

from ode_detect.media import images
from ode_detect.media.errors import DatasetError
from ode_detect.media.images import read_image, read_size

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_a_plain_picture_is_read_as_detectron2_reads_it(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for format in ("RGB", "BGR", "L", "YUV-BT.601"):
        ours = read_image(tmp_path / "a.png", format)
        np.testing.assert_array_equal(ours, read_by_detectron2(str(tmp_path / "a.png"), format))
        assert ours.flags.c_contiguous
        assert ours.flags.writeable
    assert read_image(tmp_path / "a.png").shape == (6, 9, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR[:, :, ::-1])


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_turns_a_picture_upright(tmp_path: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png", "RGB")
    # OpenCV has its own reading of the tag.
    np.testing.assert_array_equal(upright, cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR)[:, :, ::-1])
    assert read_size(tmp_path / "a.png") == (upright.shape[1], upright.shape[0])
    assert upright.shape[0] == (9 if tag >= 5 else 6)


def test_a_broken_exif_tag_is_no_reason_to_refuse_a_picture(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), COLOUR)


def test_grey_and_one_bit_become_colour(tmp_path: Path) -> None:
    grey = COLOUR[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[:, :, 1], np.where(grey > 127, 255, 0))


def test_the_upper_8_of_16_bits_are_kept(tmp_path: Path) -> None:
    deep = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    for name in ("deep.png", "deep.tif"):
        assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([deep] * 3, axis=2))
    assert read_image(tmp_path / "colour.png")[0, :, 2].tolist() == [0, 0, 1, 127, 128, 255]
    # One of the values is said to be transparent.
    Image.fromarray(deep).save(tmp_path / "transparent.png", transparency=255)
    with Image.open(tmp_path / "transparent.png") as image:
        assert "transparency" in image.info
    assert read_image(tmp_path / "transparent.png")[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_more_than_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5]], dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        with pytest.raises(DatasetError, match=rf"8 or 16 bits.*{name}.*Save it"):
            read_image(tmp_path / name)


def test_cmyk_is_turned_into_what_it_looks_like(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 40, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(read_image(tmp_path / "a.jpg", "RGB").astype(int) - [200, 40, 40]).max() <= 6


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_a_palette_is_looked_up(tmp_path: Path, mode: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.convert(mode).save(tmp_path / "a.png" if mode == "P" else tmp_path / "a.tif")
    found = read_image(next(tmp_path.iterdir()), "RGB")
    assert found[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 0, 128)):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    image.save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[0, :, 0].tolist() == [0, 255, 127]
    image.convert("LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png")[0, :, 0].tolist() == [0, 255, 127]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png")[0, :, 0].tolist() == [255, 9]
    Image.new("RGB", (1, 1), (7, 8, 9)).save(tmp_path / "rgb.png", transparency=(7, 8, 9))
    assert read_image(tmp_path / "rgb.png").tolist() == [[[255, 255, 255]]]


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", "RGB"), COLOUR)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read_and_this_is_told_once(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_TOLD", set())
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    for name in ("a", "b"):
        frames[0].save(tmp_path / name, format=kind, save_all=True, append_images=frames[1:], lossless=True)
    frames[1].save(tmp_path / "still", format=kind, lossless=True)
    with caplog.at_level("WARNING", "ode_detect.media"):
        assert read_image(tmp_path / "still", "RGB")[3, 4].tolist() == [0, 0, 255]
        assert not caplog.messages
        for name in ("a", "b"):
            assert read_image(tmp_path / name, "RGB")[3, 4].tolist() == [255, 0, 0]
    assert caplog.messages == [f"{tmp_path / 'a'} is animated; of such a {kind} the first frame is read."]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("left", [0.0, 0.02, 0.6])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, kind: str, left: float) -> None:
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, format=kind)
    (tmp_path / "cut").write_bytes(whole.getvalue()[: int(left * len(whole.getvalue()))])
    with pytest.raises(DatasetError, match=r"cut cannot be read as a picture .* Replace it"):
        read_image(tmp_path / "cut")


@pytest.mark.parametrize("content", [None, b"", b"no picture at all"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_size):
        with pytest.raises(DatasetError, match=r"x\.jpg cannot be read as a picture"):
            read(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_image(tmp_path)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\nshowpage\n"


def test_a_program_is_no_picture_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *a, **_: started.append(a))
    monkeypatch.setattr("subprocess.Popen", lambda *a, **_: started.append(a))
    (tmp_path / "a.png").write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "EPS"  # to Pillow it is one
    for read in (read_image, read_size):
        with pytest.raises(DatasetError, match=r"a\.png cannot be read as a picture"):
            read(tmp_path / "a.png")
    assert not started


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP"])
def test_the_usual_kinds_of_pictures_are_read(kind: str, tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 60), dtype=np.uint8)
    Image.fromarray(flat).save(tmp_path / "a", format=kind)
    assert np.abs(read_image(tmp_path / "a", "RGB").astype(int) - flat).max() < 12


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        for read in (read_image, read_size):
            with pytest.raises(DatasetError, match=rf"{name} cannot be read as a picture .* not a file"):
                read(tmp_path / name)


def png_of(width: int, height: int, bits: int = 8, colour: int = 3) -> bytes:
    """The header of a PNG, and a byte of its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"PLTE", bytes(6))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(170_000_000, 1), (13_000, 13_000), (1, 120_000_001), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of(*size))
    for read in (read_image, read_size):
        with pytest.raises(DatasetError, match=r"at most 120,000,000 pixels, and .*bomb\.png has more .*ODE_DETECT"):
            read(tmp_path / "bomb.png")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Set the variable with the most pixels."""

    def to(text: str) -> None:
        monkeypatch.setenv("ODE_DETECT_MAX_PIXELS", text)
        images.most_pixels.cache_clear()

    pillows = Image.MAX_IMAGE_PIXELS
    yield to
    Image.MAX_IMAGE_PIXELS = pillows
    images.most_pixels.cache_clear()


def test_the_limit_can_be_moved(tmp_path: Path, limit: Callable[[str], None]) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    limit("53")
    with pytest.raises(DatasetError, match=r"at most 53 pixels, and .*a\.png has more \(9 x 6\)"):
        read_image(tmp_path / "a.png")
    limit("54")
    assert read_image(tmp_path / "a.png").shape == (6, 9, 3)
    (tmp_path / "large.png").write_bytes(png_of(100_000, 10_000))
    limit("1000000000")
    assert read_size(tmp_path / "large.png") == (100_000, 10_000)
    for text in ("many", "-1", "0", ""):
        limit(text)
        with pytest.raises(DatasetError, match="ODE_DETECT_MAX_PIXELS is a number"):
            read_image(tmp_path / "a.png")


def test_an_opaque_palette_takes_no_detour_of_four_times_the_memory(tmp_path: Path, monkeypatch) -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "alpha_composite", None)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB"), np.asarray(palette.convert("RGB")))


def test_a_picture_is_given_as_stored_if_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", "RGB", upright=False), COLOUR)


def test_whatever_a_decoder_raises_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for error in (MemoryError(), KeyError("x"), RuntimeError("decoder"), OverflowError()):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(DatasetError, match=rf"a\.png cannot be read .*{type(error).__name__}"):
            read_image(tmp_path / "a.png")
