"""Files of pictures and videos: finding, reading and writing them. Imports nothing else of ode_detect."""

from .inputs import PICTURES, VIDEOS, Found, Input, find_inputs, first_overwritten
from .video import Frame, VideoError, VideoReader, VideoWriter

__all__ = [
    "PICTURES",
    "VIDEOS",
    "Found",
    "Frame",
    "Input",
    "VideoError",
    "VideoReader",
    "VideoWriter",
    "find_inputs",
    "first_overwritten",
]
