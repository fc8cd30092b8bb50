"""What a table of features shows of a video: thumbnails, and its signature, small grey pictures at a constant rate, by which
copies of its parts are found."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from labelgen.shards import ShardReader

RATE = 8  # pictures per second
SHAPE = 12, 16  # height and width of a picture
PIXELS = SHAPE[0] * SHAPE[1]
_THUMBNAIL = 96  # height, pixels
_DECODED = 256  # frames in memory
_USUAL = 25.0  # frames per second, if neither time stamps nor the header tell


def thumbnail(reader: ShardReader, video: int, frame: int, field: dict) -> bytes:
    """A frame of a video of a shard as JPEG. field: width and height of the video before resizing."""
    picture = reader.frames([reader.arrays["videos/first_frame"][video] + frame])[0]
    width = int(np.clip(round(_THUMBNAIL * field["width"] / max(1, field["height"])), 32, 256))
    small = cv2.resize(picture, (width, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def sampled(bounds: np.ndarray, fps: float) -> np.ndarray:
    """The frames that are shown 0, 1, 2, ... eighths of a second after the begin of a video, int64 [n].

    bounds: see labelgen.times.frame_bounds, whose values may be nan; fps: frames per second, for a video without time
    stamps
    """
    if np.isnan(bounds).any():
        bounds = np.arange(len(bounds)) / (fps if fps > 0 else _USUAL)
    times = np.arange(max(1, int(np.ceil((bounds[-1] - bounds[0]) * RATE - 1e-6)))) / RATE
    shown = np.searchsorted(bounds - bounds[0], times + 1e-6, side="right") - 1
    return np.clip(shown, 0, len(bounds) - 2)


def packed(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Frames RGB uint8 [n, H, W, 3] as pictures uint8 [n, 192].

    A value is the mean grey level of a 16th of the width and a 12th of the height; its square root is stored, times
    sqrt(255), in which dark pictures keep their steps.
    """
    found: np.ndarray = np.empty((len(frames), PIXELS), np.uint8)
    for frame, picture in zip(frames, found, strict=True):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        picture[:] = np.rint(np.sqrt(255 * cv2.resize(grey, SHAPE[::-1], interpolation=cv2.INTER_AREA))).ravel()
    return found


def signature(reader: ShardReader, video: int, bounds: np.ndarray) -> bytes:
    """The signature of a video of a shard: uint8 [n, 192], row by row. bounds: see `sampled`."""
    first, fps = reader.arrays["videos/first_frame"][video], float(reader.arrays["videos/fps"][video])
    frames, of_times = np.unique(sampled(bounds, fps), return_inverse=True)
    blocks = [first + frames[begin : begin + _DECODED] for begin in range(0, len(frames), _DECODED)]
    return np.concatenate([packed(reader.frames(block)) for block in blocks])[of_times].tobytes()
