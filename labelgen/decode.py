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

from labelgen.config import MAX_PIXELS
from labelgen.errors import DecodeError, ReadError
from labelgen.reading import check_regular

av.logging.set_level(av.logging.PANIC)  # every failure is raised, with its reason; nothing is printed past us
VERSION = 3  # counts up with every change that may change a pixel of a frame
MAX_HOLD = 10.0  # seconds that a picture stands still at most where frames are resampled
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)
_RESIZE = Interpolation.AREA | Interpolation.ACCURATE_RND


class FrameStream(Iterator[np.ndarray]):
    """Iterator of RGB uint8 frames [height, width, 3] in presentation order, made by `frames`.

    native_height, native_width: size of the upright picture before resizing, in pixels
    fps:   frames per second of the stream as yielded (0.0 where the file does not say)
    count: frames yielded so far
    time:  presentation time in seconds of the frame that was yielded last, as the file has it; with `fps`, the point of the
           file's time line that it stands for; nan where the file tells none. It never decreases: time stamps that step back
           go on one frame later
    damage: of that frame: 0 sound, 1 the decoder calls it damaged, 2 frames are lost just before it, 3 both
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int | None,
        width: int | None,
        fps: float | None,
        max_pixels: int = MAX_PIXELS,
        region: Sequence[float] | None = None,
    ) -> None:
        self.path, self._height, self._width = os.fspath(path), height, width
        self._max_pixels, self._region = max_pixels, region
        self.native_height = self.native_width = self.count = 0
        self.fps = float(fps or 0)
        self.time, self.damage = math.nan, 0
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
        stream: av.VideoStream | None = None
        try:
            check_regular(self.path)
            # FFmpeg refuses before it makes room; it counts rows up to 63 pixels longer
            bound = {"max_pixels": str(2 * self._max_pixels + (1 << 20))}
            # text metadata that is not UTF-8 must not stop a video
            with av.open(self.path, metadata_errors="replace", options=bound) as container:
                if container.format.name == "tty":  # FFmpeg would draw the letters
                    raise DecodeError(self.path, "a text, no video")
                if not container.streams.video:
                    raise DecodeError(self.path, "no video stream")
                if container.streams.video[0].codec_context is None:
                    raise DecodeError(self.path, "the video stream is of a codec that is not known")
                stream = container.streams.video[0]
                stream.thread_count = 1  # parallelism is by video
                stream.codec_context.options = bound
                self._check_size(stream.width, stream.height)
                self.fps = float(fps or stream.average_rate or stream.guessed_rate or 0)
                decoded = self._counted(container.decode(stream))
                jumps = _Jumps()
                timed = self._timed(decoded)
                for frame, self.time in timed if fps is None else _resample(jumps.closed(timed), fps):
                    yield self._upright(frame)
                if self.count and self._last and (lack := self._lack(container, stream, self._last)):
                    raise DecodeError(self.path, f"the file ends {lack}")
                if jumps.count:
                    raise DecodeError(self.path, str(jumps))
        except ReadError as error:
            raise DecodeError(self.path, str(error).removeprefix(f"{self.path}: ")) from error
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            if isinstance(error, av.ArgumentError) and stream and not stream.width * stream.height:
                raise DecodeError(self.path, self._large("have no size, or more than twice")) from error
            where = f"after {self.count} frames" if self.count else "at opening"
            reason = getattr(error, "strerror", None) or error
            if os.path.islink(self.path) and not os.path.exists(self.path):
                reason = f"a link to {os.readlink(self.path)}, which is not there"
            raise DecodeError(self.path, f"cannot be decoded {where}: {reason}") from error
        if not self.count:
            raise DecodeError(self.path, "no frame in the video stream")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise DecodeError(self.path, self._large(f"are {width} x {height}: more than"))

    def _large(self, what: str) -> str:
        after = f"after {self.count} frames, " if self.count else ""
        return f"{after}its pictures {what} --max-pixels {self._max_pixels:,}"

    def _counted(self, decoded: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in decoded:
            self._check_size(frame.width, frame.height)
            self._read, self._last = self._read + 1, frame
            yield frame

    def _timed(self, decoded: Iterator[av.VideoFrame]) -> Iterator[tuple[av.VideoFrame, float]]:
        """Frames with their seconds, which never step back."""
        last, behind = math.nan, 0.0
        for frame in decoded:
            each = 1 / self.fps if self.fps else math.nan
            time = (0.0 if math.isnan(last) else last + each) if frame.time is None else frame.time + behind
            if time < last:
                behind += last + each - time
                time = last + each
            last = time
            yield frame, time

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
    max_pixels: int = MAX_PIXELS,
    region: Sequence[float] | None = None,
) -> FrameStream:
    """Decode a video: an iterator of RGB uint8 arrays [height, width, 3] in presentation order.

    The container's rotation is applied, then the picture is cut to `region` (left, top, right, bottom as shares of it;
    default: all of it), then area interpolation to `height` x `width` pixels (default: as they are). `fps` resamples to a
    constant rate by nearest presentation time; default: every frame of the file. A picture that would then stand still for
    longer than MAX_HOLD seconds, as where time stamps jump, stands for so long. Memory does not grow with the length of the
    video.

    Raises DecodeError, with the reason, where the file is no regular one, cannot be opened or holds no frame, where its pictures
    have more than `max_pixels` pixels, which is known before one is decoded, and where decoding stops
    early or time stamps jump: frames yielded before that are good, `FrameStream.count` tells how many.
    """
    return FrameStream(path, height, width, fps, max_pixels, region)


class _Jumps:
    """Frames with their seconds after the first one, of which no step forward is longer than MAX_HOLD; what was cut off."""

    def __init__(self) -> None:
        self.count, self.seconds, self.frame = 0, 0.0, 0

    def closed(self, timed: Iterator[tuple[av.VideoFrame, float]]) -> Iterator[tuple[av.VideoFrame, float, float]]:
        last, cut = None, 0.0
        for number, (frame, time) in enumerate(timed):
            if math.isnan(time):
                raise ValueError("frames carry no presentation time, which a constant frame rate needs")
            step = 0.0 if last is None else time - last
            cut = time if last is None else cut
            if step > MAX_HOLD:
                self.count, cut = self.count + 1, cut + step - MAX_HOLD
                if step > self.seconds:
                    self.seconds, self.frame = step, number
            last = time
            yield frame, time - cut, cut

    def __str__(self) -> str:
        often = f"{self.count} times, the longest" if self.count > 1 else "once,"
        return (
            f"time stamps jump {often} by {self.seconds:,.0f} s after frame {self.frame}: no picture is repeated for longer than "
            f"{MAX_HOLD:g} s"
        )


def _resample(timed: Iterator[tuple[av.VideoFrame, float, float]], fps: float) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frame k is the one presented nearest to second k / fps after the first, with that second on the file's time line; timed:
    frames, their seconds, and how much earlier than on the file's time line these are."""
    held, held_time, held_cut, k = None, 0.0, 0.0, 0
    for frame, time, cut in timed:
        while held is not None and k / fps < (held_time + time) / 2:
            yield held, k / fps + held_cut
            k += 1
        held, held_time, held_cut = frame, time, cut
    while held is not None and k / fps <= held_time:
        yield held, k / fps + held_cut
        k += 1


class _FrameCounter(FrameStream):
    """Decodes, and makes no pictures."""

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        return _NO_PICTURE


def count_frames(path: str | os.PathLike[str], fps: float | None = None, max_pixels: int = MAX_PIXELS) -> int:
    """Number of frames that `frames` yields, by decoding them; those before an error where decoding stops early."""
    stream = _FrameCounter(path, None, None, fps, max_pixels)
    try:
        for _ in stream:
            pass
    except DecodeError:
        if not stream.count:
            raise
    return stream.count
