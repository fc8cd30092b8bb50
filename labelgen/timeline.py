"""The time line of a video: the times of its frames, what is irregular about them, and frames at a constant rate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

import av
from av.container import InputContainer

from labelgen.media import DAMAGED, LOSS, Decoded

_INDEXED = ("mov,mp4", "matroska")  # containers whose index locates key frames
_NEAR, _EARLIER = 10.0, 2.0  # seconds not worth a seek, and seconds decoded before a part
MAX_HOLD = 10.0  # the longest time a picture is repeated when frames are resampled, seconds
_FASTEST = 1000.0  # frames per second; a larger value is the unit of a header's time stamps, not a rate
_T = TypeVar("_T")  # a frame


class Times:
    """Times of frames in seconds, which never step back, and what is irregular about them.

    rates: frames per second in the header, best first
    rate:  frames per second, 0 if neither header nor time stamps give any
    last:  time of the last frame so far
    """

    def __init__(self, *rates: Fraction | None) -> None:
        self._rates = [float(rate) for rate in rates if rate]
        self.rate = next((rate for rate in self._rates if rate <= _FASTEST), 0.0)
        self._steps = {"jump": 0, "step back": 0}
        self._longest = {"jump": (0.0, 0), "step back": (0.0, 0)}  # seconds, number of the frame before
        self._shortest, self._total, self._number, self._most = math.inf, 0.0, 0, 0.0
        self._wrong, self.last = False, math.nan

    def of(self, decoded: Decoded) -> Iterator[tuple[av.VideoFrame, int, float]]:
        """Frames with their damage and their times in seconds."""
        behind, before, step, none = 0.0, 0.0, 0.0, False
        for number, (frame, damage, time) in enumerate(decoded):
            each = decoded.each or (1 / self.rate if self.rate else 0.0)
            none = none or not number and math.isnan(time) and not self.rate
            if none:
                time = math.nan
            elif math.isnan(time):
                time = self.last + (step or each) if number else 0.0  # the last frames of an AVI have no time stamps
            elif time + behind < self.last:
                self._odd("step back", self.last - time - behind, number)
                before, behind = behind, self.last + each - time
                time = self.last + each
            else:
                late = 0 < behind - before < 1 and time + behind > self.last + 1.5 * each
                if late and time + before >= self.last:
                    behind = before  # a frame was merely out of order, no new time line began
                time += behind
                step = time - self.last
                self._step(step, number)
            self.last = time
            yield frame, damage, time
        plausible = [rate for rate in self._rates if rate <= _FASTEST and self._fits(rate, 2.5)]
        self._wrong = bool(self._rates) and (self._rates[0] > _FASTEST or not plausible)
        measured = self._number / self._total if self._total else 0.0
        # the rate of an AVI counts repeated frames, some rates count fields
        self.rate = next((rate for rate in plausible if self._fits(rate, 1.3)), measured)

    def _fits(self, rate: float, factor: float) -> bool:
        return not self._total or self._shortest / factor <= 1 / rate <= factor * self._most

    def _step(self, step: float, number: int) -> None:
        if step > MAX_HOLD:
            self._odd("jump", step, number)
        elif step > 0:
            self._number, self._total = self._number + 1, self._total + step
            self._shortest, self._most = min(self._shortest, step), max(self._most, step)

    def _odd(self, what: str, seconds: float, number: int) -> None:
        self._steps[what] += 1
        self._longest[what] = max(self._longest[what], (seconds, number), key=lambda odd: odd[0])

    def faults(self, fps: float | None) -> list[str]:
        """What was irregular about the times so far, in words."""
        found = []
        for what, count in self._steps.items():
            if count:
                often = f"{count} times, the longest" if count > 1 else "once,"
                seconds, number = self._longest[what]
                by = f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"
                found.append(f"time stamps {what} {often} by {by} s after frame {number}")
        if found and fps is not None and self._steps["jump"]:
            found[0] += f": no picture is repeated for longer than {MAX_HOLD:g} s"
        if fps is None and self._wrong:
            stamps = f"{self.rate:.5g}" if self.rate else "none"
            found.append(f"its header says {self._rates[0]:,.0f} frames per second, its time stamps {stamps}")
        return found


def _clamped(timed: Iterable[tuple[_T, int, float]], origin: float) -> Iterator[tuple[_T, int, float, float]]:
    """Frames with their damage, their times in seconds after `origin` (nan: the first frame) with gaps cut to MAX_HOLD,
    and the difference from the times of the file."""
    last, cut = math.nan, 0.0
    for frame, damage, time in timed:
        if math.isnan(time):
            raise ValueError("frames have no presentation times, which a constant frame rate needs")
        if math.isnan(last):
            cut = time if math.isnan(origin) else origin
        else:
            cut += max(0.0, time - last - MAX_HOLD)
        last = time
        yield frame, damage, time - cut, cut


def resample(
    timed: Iterable[tuple[_T, int, float]], fps: float, origin: float = math.nan
) -> Iterator[tuple[_T, int, float]]:
    """Yield as frame k the one presented nearest to k / fps seconds after the first, with that time on the file's time
    line. A loss is marked at the next frame yielded, damage at each repetition. origin: time of the file's first frame,
    if these begin with a later one."""
    held: _T | None = None
    found, lost, held_time, held_cut, k = 0, 0, 0.0, 0.0, 0
    for frame, damage, time, cut in _clamped(timed, origin):
        if held is None:
            k = math.ceil(time * fps)
        while held is not None and k / fps < (held_time + time) / 2:
            yield held, found | lost, k / fps + held_cut
            lost = 0
            k += 1
        lost |= damage & LOSS
        held, found, held_time, held_cut = frame, damage & DAMAGED, time, cut
    while held is not None and k / fps <= held_time:
        yield held, found | lost, k / fps + held_cut
        lost = 0
        k += 1


def seek_point(
    container: InputContainer, stream: av.VideoStream, since: float, alive: Callable[[], object]
) -> tuple[float, int] | None:
    """Time of a file's first frame, and a time stamp two seconds before `since` (in seconds after that frame), to seek
    to; None if the file has no index or seeking would save nothing. Leaves the container at an arbitrary position."""
    if since < _NEAR or not container.format.name.startswith(_INDEXED) or not stream.time_base:
        return None

    def first() -> float:
        times = Times(stream.average_rate, stream.guessed_rate)
        for _, _, time in times.of(Decoded(container, stream, times.rate, alive)):
            return time
        return math.nan

    with contextlib.suppress(av.FFmpegError):
        if not math.isnan(origin := first()):
            stamp = int((origin + since - _EARLIER) / stream.time_base)
            container.seek(stamp, stream=stream)
            if first() <= origin + since - _EARLIER:
                return origin, stamp
    return None
