"""Videos frame by frame, by PyAV: read as far as they can be decoded, written as H.264 (or MPEG-4) in MP4."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from .errors import DatasetError
from .images import check_pixels, most_pixels

# Some files count a frame that no decoder gives, and stop a little before the end that they announce.
_FRAMES_OFF, _SHARE_OFF = 2, 0.01
# Ticks per second in what is written: the usual frame rates are whole numbers of them. MPEG-4 allows at most 65535.
_TICKS = {"libx264": 120_000, "mpeg4": 60_000}


# Files that hold the video themselves. Others are lists of further files and addresses, which FFmpeg would open.
_OPTIONS = {
    "format_whitelist": "aac,asf,av1,avi,dv,flac,flv,gif,h264,hevc,ivf,m4v,matroska,webm,mjpeg,mov,mp3,mp4,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,vc1,wav,wtv,yuv4mpegpipe",
    "protocol_whitelist": "file",
}


class VideoError(ValueError):
    """A file that cannot be read as a video, or a video that cannot be written."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        index: 0, 1, ...
        time: seconds after the first frame; the steps differ where the frame rate varies.
        image: RGB in 0..255, uint8, shape (H, W, 3), upright.
    """

    index: int
    time: float
    image: NDArray[np.uint8] = field(repr=False)


class VideoReader:
    """The frames of a video in order, one at a time.

    Broken packets are left out; where a file is cut short, the frames end.

    Args:
        path: a file of one of the usual kinds that FFmpeg reads.

    Attributes:
        rate: mean frames per second.
        expected: frames that the file announces; 0 if it does not.
        problem: after the last frame, what was wrong with the file; "" if nothing.

    Raises:
        VideoError: the file cannot be opened, holds no video, or one whose frames are too large.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise OSError("it is a folder, a pipe or a device, not a file")
            # A name that begins with a slash is no address to FFmpeg. Old AVI files name their maker in whatever
            # encoding they like.
            self._container = av.open(str(self._path.absolute()), metadata_errors="replace", options=_OPTIONS)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be read as a video ({_reason(error)}).") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{path} holds no video, only {len(self._container.streams)} other streams.")
        self._stream: Any = self._container.streams.video[0]
        try:
            check_pixels(path, self._stream.width, self._stream.height)
        except DatasetError as error:
            self._container.close()
            raise VideoError(str(error)) from error
        # Frames that are larger than their header says are left out as broken.
        self._stream.codec_context.options = {"max_pixels": str(most_pixels())}
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.expected = self._announced()
        self.problem = ""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Decode; each frame has the size of the first, to which others are scaled."""
        index, broken, first, last, size = 0, 0, 0.0, -1.0, (0, 0)
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                time = float(index / self.rate) if frame.time is None else float(frame.time)
                first, size = (time, (frame.width, frame.height)) if index == 0 else (first, size)
                # Time stamps that stand still or go back are those of a broken file.
                last = time - first if time - first > last else last + float(1 / self.rate)
                broken += bool(frame.is_corrupt)
                yield Frame(index, last, _upright(frame, size))
                index += 1
        self.problem = self._judge(index, broken)

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux(self._stream)
        except (av.error.FFmpegError, OSError) as error:
            self.problem = _reason(error)

    def _announced(self) -> int:
        stream = self._stream
        if stream.frames:
            return int(stream.frames)
        if stream.duration:
            return round(stream.duration * stream.time_base * self.rate)
        # The duration of the file is that of its longest stream, which may be sound.
        if self._container.duration and len(self._container.streams) == 1:
            return round(Fraction(self._container.duration, av.time_base) * self.rate)
        return 0

    def _judge(self, frames: int, broken: int) -> str:
        allowed = _FRAMES_OFF + _SHARE_OFF * self.expected
        if frames < self.expected - allowed or (broken and not frames) or self.problem:
            of = f" of the {self.expected} frames that it announces" if self.expected else " frames"
            why = f" ({self.problem})" if self.problem else ""
            return f"{self._path} is cut short or damaged: {frames}{of} could be decoded{why}."
        if broken:
            return f"{self._path} is damaged: {broken} of its {frames} frames could not be decoded in full."
        return "" if frames else f"{self._path} holds no frame."


class VideoWriter:
    """Writes an MP4, frame by frame: H.264 if the installed PyAV has libx264, else MPEG-4.

    Args:
        path: the file; its folder must be there. The name may end in anything.
        rate: mean frames per second, as the file announces it.

    Attributes:
        codec: "libx264" or "mpeg4".
    """

    def __init__(self, path: str | Path, *, rate: Fraction, codec: str = "") -> None:
        self.codec = codec or ("libx264" if "libx264" in av.codec.codecs_available else "mpeg4")
        self._path, self._rate = Path(path), rate
        self._container: Any = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Add a frame.

        Args:
            image: RGB in 0..255, uint8, shape (H, W, 3), the same for all frames. An odd side gets one more pixel.
            time: when it is shown, in seconds, later than the one before.

        Raises:
            VideoError: the frame cannot be encoded.
        """
        height, width = image.shape[:2]
        try:
            if self._stream is None:
                self._open(height + height % 2, width + width % 2)
            padded = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            self._last = max(self._last + 1, round(time * _TICKS[self.codec]))
            frame.pts, frame.time_base = self._last, Fraction(1, _TICKS[self.codec])
            self._container.mux(self._stream.encode(frame))
        except av.error.FFmpegError as error:
            raise VideoError(f"{self._path} cannot be written ({_reason(error)}). Is the disk full?") from error

    def close(self) -> None:
        """Finish the file.

        Raises:
            VideoError: what is left cannot be written.
        """
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                self._container.mux(stream.encode(None))
            self._container.close()
        except av.error.FFmpegError as error:
            raise VideoError(f"{self._path} cannot be written ({_reason(error)}). Is the disk full?") from error

    def _open(self, height: int, width: int) -> None:
        stream = self._container.add_stream(self.codec, rate=self._rate.limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS[self.codec])
        # Thin lines and small letters want more than the usual quality.
        if self.codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = max(1_000_000, round(0.25 * height * width * self._rate))
        self._stream = stream


def _upright(frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB of the first frame's size, turned as the file says it is to be shown."""
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    # The display matrix turns counterclockwise, and so does rot90.
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
