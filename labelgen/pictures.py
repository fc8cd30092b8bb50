"""A folder of numbered images as a video: one frame per image.

A fault affects only its image, as that of a packet does in a video file: the image is left out and counted as lost, or
marked as damaged.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Iterator

import av
import av.logging
from av.logging import Capture
from av.video.codeccontext import VideoCodecContext

from labelgen.errors import ReadError
from labelgen.media import DAMAGED, LOSS, reason
from labelgen.numbered import frame_files, image_times
from labelgen.reading import read_bytes

_CODECS = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp", b"RIFF": "webp"}  # by the first bytes
_PIXEL = 8  # largest size of a pixel in a file, bytes: four channels of 16 bits


class Pictures(Iterator[tuple[av.VideoFrame, int, float]]):
    """Frames of a folder of images in the order of their numbers, each with DAMAGED, LOSS, both or 0, and its time in
    seconds, at `rate` images per second. An image is lost if its number is missing, it cannot be decoded, or its size
    differs from that of the first.

    read: frames so far; rate: as given; each: duration of a frame in seconds; alive: called for every image
    since: seconds; no frame is needed before the one seen at that time

    Raises ValueError if the folder is not a video or no rate is given, OSError if the folder or an image in it cannot be read.
    """

    def __init__(
        self,
        folder: str,
        rate: float | None,
        max_pixels: int,
        bound: dict[str, str],
        alive: Callable[[], object],
        since: float = 0.0,
    ) -> None:
        self._files = frame_files(folder)
        if rate is None:
            raise ValueError("a folder of images has no frame rate; expected their frames per second (fps)")
        self.read, self.rate, self.each = 0, rate, 1 / rate
        self._folder, self._bound, self._alive = folder, bound, alive
        self._most = _PIXEL * max_pixels + (1 << 20)
        self._times = image_times(self._files, rate)
        self._begin = max(0, bisect.bisect_right(self._times, since - self.each) - 1)
        self._codecs: dict[str, VideoCodecContext] = {}
        self._counts = dict.fromkeys(("missing", "undecodable", "of another size", "damaged"), 0)
        self._first: dict[str, str] = {}
        self._frames = self._decode()

    def __next__(self) -> tuple[av.VideoFrame, int, float]:
        return next(self._frames)

    def faults(self) -> list[str]:
        """What was wrong with the images so far, in words."""
        return [
            f"{count:,} image{'s' * (count > 1)} {what}, the first {self._first[what]}"
            for what, count in self._counts.items()
            if count
        ]

    def _decode(self) -> Iterator[tuple[av.VideoFrame, int, float]]:
        size, before, lost = None, self._times[self._begin], 0
        if self._begin and (first := self._picture(self._files[0][1])[0]):
            size = (first.width, first.height)
        for (_, name), time in itertools.islice(zip(self._files, self._times, strict=True), self._begin, None):
            if (missing := round((time - before) / self.each) - 1) > 0:
                self._fault("missing", f"before {name}", missing)
                lost = LOSS
            before = time
            frame, why = self._picture(name)
            self._alive()
            if frame is None:
                self._fault("undecodable", f"{name} ({why})")
                lost = LOSS
                continue
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                self._fault("of another size", f"{name} ({frame.width} x {frame.height}, not {size[0]} x {size[1]})")
                lost = LOSS
                continue
            if why:
                self._fault("damaged", f"{name} ({why})")
            self.read += 1
            yield frame, lost | (DAMAGED if why else 0), time
            lost = 0

    def _fault(self, what: str, first: str, count: int = 1) -> None:
        self._first.setdefault(what, first)
        self._counts[what] += count

    def _picture(self, name: str) -> tuple[av.VideoFrame | None, str]:
        """The picture of an image, None if there is none, and what is wrong with it."""
        path = os.path.join(self._folder, name)
        try:
            data = read_bytes(path, self._most)
        except ReadError as error:
            if os.path.islink(path) and not os.path.exists(path):
                return None, "a broken link"
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, PermissionError):
                raise error.__cause__ from None  # the disk failed or the file is gone: not a fault of the image
            return None, str(error).removeprefix(f"{path}: ")
        codec = next((codec for begin, codec in _CODECS.items() if data.startswith(begin)), None)
        if codec is None:
            return None, "not a BMP, JPEG, PNG or WebP file" if data else "an empty file"
        with Capture() as logs:
            try:
                context, packet = self._context(codec), av.Packet(data)
                packet.is_keyframe = True  # else the PNG decoder adds the picture before it
                frames = context.decode(packet) or context.decode(None)
            except av.FFmpegError as error:
                self._codecs.pop(codec, None)
                return None, reason(error, logs)
        if not frames or not isinstance(frame := frames[0], av.VideoFrame):
            self._codecs.pop(codec, None)
            return None, "no picture"
        errors = any(level <= av.logging.ERROR for level, _, _ in logs)
        return frame, reason(None, logs) if errors else "marked by the decoder" if frame.is_corrupt else ""

    def _context(self, codec: str) -> VideoCodecContext:
        if codec not in self._codecs:
            context = VideoCodecContext.create(codec, "r")
            assert isinstance(context, VideoCodecContext)
            context.thread_count, context.options = 1, self._bound
            self._codecs[codec] = context
        return self._codecs[codec]
