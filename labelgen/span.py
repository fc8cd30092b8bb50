"""A part of a video, by the times at which its frames are seen."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterator

import numpy as np

from labelgen.decode import FrameStream
from labelgen.errors import DecodeError
from labelgen.times import frame_bounds

_TICK = 1e-6  # seconds: times that differ by less are equal


class Span(Iterator[np.ndarray]):
    """The frames of a stream that are seen between two seconds after its first frame, with the attributes of the stream.

    begin, end: seconds; None as end: to the end of the video. The first frame may begin earlier if it is still seen at `begin`.
    time: of the frame that was yielded last, in seconds after the first one of the file; damage: see FrameStream

    Raises DecodeError as the stream does, and for a stream without presentation times or without a frame in that part.
    """

    def __init__(self, stream: FrameStream, begin: float, end: float | None) -> None:
        self._stream, self._begin, self._end = stream, begin, math.inf if end is None else end
        self.time, self.damage = math.nan, 0
        self._frames = self._part()

    def __next__(self) -> np.ndarray:
        frame, self.time, self.damage = next(self._frames)
        return frame

    def close(self) -> None:
        """Close the file; iteration ends."""
        self._frames.close()
        self._stream.close()

    @property
    def fps(self) -> float:
        return self._stream.fps

    @property
    def native_width(self) -> int:
        return self._stream.native_width

    @property
    def native_height(self) -> int:
        return self._stream.native_height

    def _part(self) -> Generator[tuple[np.ndarray, float, int], None, None]:
        times, found = array("d"), False
        before = None  # the last frame that begins before the part
        for frame in self._stream:
            times.append(self._stream.time)
            at = self._stream.time - times[0]
            if math.isnan(at):
                raise DecodeError(self._stream.path, "the file tells no times, so that no part can be taken")
            if at >= self._end - _TICK:
                break
            shown = frame, at, self._stream.damage
            if at < self._begin - _TICK:
                before = shown
                continue
            if before is not None and at > self._begin + _TICK:
                yield before
            before, found = None, True
            yield shown
        bounds = frame_bounds(times, self._stream.fps)
        after = (
            -2 if len(times) and times[-1] - times[0] >= self._end - _TICK else -1
        )  # the frame behind the part is seen, too
        if before is not None and bounds[after] > self._begin + _TICK:
            found = True
            yield before
        if not found:
            ends = f"it has {len(times)} and ends at {bounds[-1]:.1f} s"
            raise DecodeError(self._stream.path, f"no frame from second {self._begin:g} on, {ends}")
