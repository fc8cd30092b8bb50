"""A part of a video, chosen by time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterator

import numpy as np

from labelgen.decode import TICK, FrameStream
from labelgen.errors import DecodeError
from labelgen.media import DAMAGED
from labelgen.times import frame_bounds


class Span(Iterator[np.ndarray]):
    """The frames of a stream that are seen between two times after the first frame of its file, with the attributes of
    the stream.

    begin, end: seconds; an infinite end means the end of the video. The first frame may begin earlier, if it is still
    seen at `begin`.
    time: of the last frame yielded, in seconds after the first frame of the file; damage: see FrameStream

    Raises DecodeError as the stream does, except for faults outside of the part; if the stream has no presentation
    times or no frame in the part; and, after the last frame, if frames of the part are damaged or lost.
    """

    def __init__(self, stream: FrameStream, begin: float, end: float) -> None:
        self._stream, self._begin, self._end = stream, begin, end
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
        times, found, faults = array("d"), False, list[str]()
        before = None  # last frame that begins before the part
        reason = ""
        try:
            for frame in self._stream:
                at = self._stream.time - self._stream.origin
                if math.isnan(at):
                    raise DecodeError(self._stream.path, "the file has no time stamps, so that no part can be selected")
                times.append(at)
                if at >= self._end - TICK:
                    break
                shown = frame, at, self._stream.damage
                if at < self._begin - TICK:
                    before = shown
                    continue
                for one in filter(None, (before if at > self._begin + TICK else None, shown)):
                    faults += [f"{one[1]:.2f} s"] * bool(
                        one[2] if found else one[2] & DAMAGED
                    )  # frames lost before the part are not a fault
                    found = True
                    yield one
                before = None
        except DecodeError as error:
            reason = error.reason
            if not times:
                raise
        bounds = times[0] + frame_bounds(times, self._stream.fps) if times else np.zeros(1)
        passed = bool(times) and times[-1] >= self._end - TICK  # the frame after the part was read, too
        if before is not None and bounds[-2 if passed else -1] > self._begin + TICK:
            found = True
            yield before
        if not found:
            after = f"; {reason}" if reason else ""
            why = f"no frame from second {self._begin:g} on, the video ends at {bounds[-1]:.1f} s{after}"
            raise DecodeError(self._stream.path, why)
        if reason and (self._begin, self._end) == (0, math.inf):
            raise DecodeError(self._stream.path, reason)
        if self._stream.broken and bounds[-1] < self._end - TICK:
            raise DecodeError(self._stream.path, self._stream.broken)
        if faults:
            many = f"{len(faults)} frames of the part are" if len(faults) > 1 else "1 frame of the part is"
            raise DecodeError(self._stream.path, f"{many} damaged or preceded by lost ones, the first at {faults[0]}")
