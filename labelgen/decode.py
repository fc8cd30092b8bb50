"""One video file to upright RGB frames, streamed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Generator, Iterator, Sequence

import av
import av.logging
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from labelgen.errors import DecodeError

av.logging.set_level(av.logging.PANIC)  # every failure is raised, with its reason; nothing is printed past us
VERSION = 1  # counts up with every change that may change a pixel of a frame
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)
_RESIZE = Interpolation.AREA | Interpolation.ACCURATE_RND


class FrameStream(Iterator[np.ndarray]):
    """Iterator of RGB uint8 frames [height, width, 3] in presentation order, made by `frames`.

    native_height, native_width: size of the upright picture before resizing, in pixels
    fps:   frames per second of the stream as yielded (0.0 where the file does not say)
    count: frames yielded so far
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int | None,
        width: int | None,
        fps: float | None,
        region: Sequence[float] | None = None,
    ) -> None:
        self.path, self._height, self._width, self._region = os.fspath(path), height, width, region
        self.native_height = self.native_width = self.count = 0
        self.fps = float(fps or 0)
        self._read = 0  # frames of the file so far; `fps` may yield more or fewer
        self._last: av.VideoFrame | None = None
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than the decoding
        self._frames = self._decode(fps)

    def __next__(self) -> np.ndarray:
        frame = next(self._frames)
        self.count += 1
        return frame

    def close(self) -> None:
        """Close the file; iteration ends."""
        self._frames.close()

    def _decode(self, fps: float | None) -> Generator[np.ndarray, None, None]:
        try:
            # text metadata that is not UTF-8 must not stop a video
            with av.open(self.path, metadata_errors="replace") as container:
                if not container.streams.video:
                    raise DecodeError(self.path, "no video stream")
                stream = container.streams.video[0]
                stream.thread_count = 1  # parallelism is by video
                self.fps = float(fps or stream.average_rate or stream.guessed_rate or 0)
                decoded = self._counted(container.decode(stream))
                for frame in decoded if fps is None else _resample(decoded, fps):
                    yield self._upright(frame)
                if self.count and self._last and (lack := self._lack(container, stream, self._last)):
                    raise DecodeError(self.path, f"the file ends {lack}")
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            where = f"after {self.count} frames" if self.count else "at opening"
            reason = getattr(error, "strerror", None) or error
            if os.path.islink(self.path) and not os.path.exists(self.path):
                reason = f"a link to {os.readlink(self.path)}, which is not there"
            raise DecodeError(self.path, f"cannot be decoded {where}: {reason}") from error
        if not self.count:
            raise DecodeError(self.path, "no frame in the video stream")

    def _counted(self, decoded: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in decoded:
            self._read, self._last = self._read + 1, frame
            yield frame

    def _lack(self, container: av.container.InputContainer, stream: av.VideoStream, last: av.VideoFrame) -> str:
        """Where the file breaks off, which FFmpeg takes for its end; "" where it is whole or does not tell its length."""
        promised = stream.frames
        time, each = float(last.time or 0), float(1 / (stream.average_rate or 1000))
        average = time / max(1, self._read - 1)  # longer than one frame where most of an AVI's frames are repeated ones
        end = time + max(float((last.duration or 0) * (last.time_base or 0)), each, average)
        if promised:
            # Frames alone do not tell: an AVI may count repeated ones, an MP4 those before the start of its edit list.
            # The duration of a broken AVI is no promise, FFmpeg derives it from the size of the file.
            duration = promised if container.format.name == "avi" else stream.duration or 0
            if promised - self._read > max(2, 0.02 * promised) and end < 0.98 * duration * (stream.time_base or 0):
                return f"after {self._read} of {promised} frames"
        else:
            seconds = 0.0
            if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # of Matroska
                seconds = sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
            elif stream.duration is None and len(container.streams) == 1:  # where a stream has one, it may be a guess
                seconds = (container.duration or 0) / av.time_base
            if end < seconds - max(0.5, 0.05 * seconds):
                return f"after {end:.1f} of {seconds:.1f} s"
        return f"within frame {self._read}" if last.is_corrupt else ""

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4  # counter-clockwise quarters
        size = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
        self.native_height, self.native_width = size
        if self._region:
            return self._part(np.rot90(frame.to_ndarray(format="rgb24"), turns), self._region)
        height, width = self._height or size[0], self._width or size[1]
        if turns % 2:
            height, width = width, height
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=_RESIZE, threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def _part(self, rgb: np.ndarray, region: Sequence[float]) -> np.ndarray:
        """The region of an upright picture, resized."""
        (height, width), (left, top, right, bottom) = rgb.shape[:2], region
        x, y = math.floor(left * width), math.floor(top * height)
        part = np.ascontiguousarray(rgb[y : math.ceil(bottom * height), x : math.ceil(right * width)])
        size = self._width or part.shape[1], self._height or part.shape[0]
        return cv2.resize(part, size, interpolation=cv2.INTER_AREA)


def frames(
    path: str | os.PathLike[str],
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    region: Sequence[float] | None = None,
) -> FrameStream:
    """Decode a video: an iterator of RGB uint8 arrays [height, width, 3] in presentation order.

    The container's rotation is applied, then the picture is cut to `region` (left, top, right, bottom as shares of it;
    default: all of it), then area interpolation to `height` x `width` pixels (default: as they are). `fps` resamples to a
    constant rate by nearest presentation time; default: every frame of the file. Memory does not grow with the length of
    the video.

    Raises DecodeError, with the reason, where the file cannot be opened or holds no frame, and where decoding stops
    early: frames yielded before that are good, `FrameStream.count` tells how many.
    """
    return FrameStream(path, height, width, fps, region)


def _resample(decoded: Iterator[av.VideoFrame], fps: float) -> Iterator[av.VideoFrame]:
    """Frame k is the one presented nearest to second k / fps after the first."""
    held, held_time, begin, k = None, 0.0, None, 0
    for frame in decoded:
        if frame.time is None:
            raise ValueError("frames carry no presentation time, which a constant frame rate needs")
        begin = frame.time if begin is None else begin
        time = frame.time - begin
        while held is not None and k / fps < (held_time + time) / 2:
            yield held
            k += 1
        held, held_time = frame, time
    while held is not None and k / fps <= held_time:
        yield held
        k += 1


class _FrameCounter(FrameStream):
    """Decodes, and makes no pictures."""

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        return _NO_PICTURE


def count_frames(path: str | os.PathLike[str], fps: float | None = None) -> int:
    """Number of frames that `frames` yields, by decoding them; those before an error where decoding stops early."""
    stream = _FrameCounter(path, None, None, fps)
    try:
        for _ in stream:
            pass
    except DecodeError:
        if not stream.count:
            raise
    return stream.count
