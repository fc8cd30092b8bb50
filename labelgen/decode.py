"""One video file to upright RGB frames, streamed."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

import av
import av.filter
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter

from labelgen.config import MAX_PIXELS
from labelgen.errors import DecodeError, ReadError
from labelgen.media import DAMAGED, LOSS, Decoded, Turn, choose, cropping, on_samples, opened, orientation, reason

VERSION = 3  # counts up with every change that may change a pixel of a frame
MAX_HOLD = 10.0  # seconds that a picture stands still at most where frames are resampled
_FASTEST = 1000.0  # frames per second: more is no rate, but the unit of a header's time stamps
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)
_RESIZE = Interpolation.AREA | Interpolation.ACCURATE_RND
_T = TypeVar("_T")  # a frame


class FrameStream(Iterator[np.ndarray]):
    """Iterator of RGB uint8 frames [height, width, 3] in presentation order, made by `frames`.

    native_height, native_width: size of the upright picture before resizing, in pixels
    fps:    frames per second of the stream as yielded: after the last one as the time stamps say where the file says none
            or a wrong one; 0.0 where nothing says any
    count:  frames yielded so far
    time:   presentation time in seconds of the frame that was yielded last, as the file has it; with `fps`, the point of the
            file's time line that it stands for; nan in all frames of a file that tells none. It never decreases: where time
            stamps step back, they go on one frame after the last
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
        alive: Callable[[], object] = lambda: None,
        short: int | None = None,
    ) -> None:
        self.path, self._height, self._width, self._short = os.fspath(path), height, width, short
        self._max_pixels, self._region, self._alive = max_pixels, region, alive
        self.native_height = self.native_width = self.count = 0
        self.fps = float(fps or 0)
        self.time, self.damage = math.nan, 0
        self._cut = (0, 0, 0, 0)  # by the container: left, right, top, bottom
        self._turns: dict[int, Turn | None] = {}
        self._upside = ""
        self._reformatter = VideoReformatter()  # kept: a new one per frame costs more than the decoding
        self._cropper = _Cropper()
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
        bound = _bound(self._max_pixels)
        try:
            with opened(self.path, bound) as container:
                if container.format.name == "tty":  # FFmpeg would draw the letters
                    raise DecodeError(self.path, "a text, no video")
                stream, several = choose(container)
                stream.thread_count = 1  # parallelism is by video
                stream.codec_context.options = bound
                self._check_size(stream.width, stream.height)
                self._cut = cropping(container, stream)
                times = _Times(stream.average_rate, stream.guessed_rate)
                self.fps = self.fps or times.rate
                decoded = Decoded(container, stream, times.rate, self._alive)
                timed = times.of(decoded)
                for frame, self.damage, self.time in timed if fps is None else _resample(timed, fps):
                    yield self._upright(frame)
                self.fps = float(fps or times.rate)
                lack = self._lack(container, stream, decoded, times.last) if decoded.read else ""
                notes: list[str] = [
                    f"cannot be decoded after {self.count} frames: {decoded.ended}" if decoded.ended else "",
                    f"the file ends {lack}" if lack else "",
                    *decoded.faults(bool(lack), "" if fps is None else " of the file"),
                    *times.faults(fps),
                    self._upside,
                    several,
                ]
        except ReadError as error:
            raise DecodeError(self.path, str(error).removeprefix(f"{self.path}: ")) from error
        except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
            if isinstance(error, av.ArgumentError) and stream and not stream.width * stream.height:
                raise DecodeError(self.path, self._large("have no size, or more than twice")) from error
            if isinstance(error, ValueError) and not isinstance(error, av.FFmpegError):
                raise DecodeError(self.path, str(error)) from error
            where = f"after {self.count} frames" if self.count else "at opening"
            why = reason(error, [])
            if os.path.islink(self.path) and not os.path.exists(self.path):
                why = f"a link to {os.readlink(self.path)}, which is not there"
            raise DecodeError(self.path, f"cannot be decoded {where}: {why}") from error
        if not self.count:
            raise DecodeError(self.path, "; ".join(["no frame in the video stream", *filter(None, notes)]))
        if any(notes):
            raise DecodeError(self.path, "; ".join(filter(None, notes)))

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise DecodeError(self.path, self._large(f"are {width} x {height}: more than"))

    def _large(self, what: str) -> str:
        after = f"after {self.count} frames, " if self.count else ""
        return f"{after}its pictures {what} --max-pixels {self._max_pixels:,}"

    def _lack(self, container: InputContainer, stream: av.VideoStream, decoded: Decoded, last: float) -> str:
        """Where the file breaks off, which FFmpeg takes for its end; "" where it is whole or does not tell its length.
        last: seconds of the last frame"""
        promised, read = stream.frames, decoded.read
        time = 0.0 if math.isnan(last) else last
        each = float(1 / (stream.average_rate or 1000))
        average = time / max(1, read - 1)  # longer than one frame where most of an AVI's frames are repeated ones
        end = time + max(decoded.each, each, average)
        if promised:
            # Frames alone do not tell: an AVI may count repeated ones, an MP4 those before the start of its edit list.
            # The duration of a broken AVI is no promise, FFmpeg derives it from the size of the file.
            duration = promised if container.format.name == "avi" else stream.duration or 0
            if promised - read > max(2, 0.02 * promised) and end < 0.98 * duration * (stream.time_base or 0):
                return f"after {read} of {promised} frames"
        else:
            seconds = 0.0
            if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # of Matroska
                seconds = sum(float(part) * unit for part, unit in zip(tag.groups(), (3600, 60, 1), strict=True))
            elif stream.duration is None and len(container.streams) == 1:  # where a stream has one, it may be a guess
                seconds = (container.duration or 0) / av.time_base
            if end < seconds - max(0.5, 0.05 * seconds):
                return f"after {end:.1f} of {seconds:.1f} s"
        return f"within frame {read}" if decoded.at_end else ""

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        self._check_size(frame.width, frame.height)
        # asked for once per angle: PyAV's side data keep a frame in memory until the garbage collector comes
        angle = frame.rotation
        if angle not in self._turns:
            self._turns[angle] = orientation(frame)
        if (turn := self._turns[angle]) is None:
            turn = Turn(False, False, False)
            self._upside = "its display matrix is none of the eight orientations: frames as stored"
        left, right, top, bottom = self._part(frame, turn)
        if (right - left, bottom - top) != (frame.width, frame.height):
            if not on_samples(frame.format, (left, right), (top, bottom)):
                frame = self._reformatter.reformat(frame, format="rgb24", interpolation=_RESIZE, threads=1)
            frame = self._cropper(frame, left, top, right - left, bottom - top)
        if self._short and self._height is None:  # the first picture: all have its size
            self._height, self._width = turn.shortened(bottom - top, right - left, self._short)
            self._check_size(self._width, self._height)
        height, width = self._height, self._width
        if turn.exchanged:
            height, width = width, height
        rgb = self._reformatter.reformat(
            frame, width or frame.width, height or frame.height, "rgb24", interpolation=_RESIZE, threads=1
        ).to_ndarray()
        if not any(turn):
            return rgb
        rgb = rgb.transpose(1, 0, 2) if turn.exchanged else rgb
        return np.ascontiguousarray(rgb[:: -1 if turn.flipped else 1, :: -1 if turn.mirrored else 1])

    def _part(self, frame: av.VideoFrame, turn: Turn) -> tuple[int, int, int, int]:
        """Left, right, top and bottom of what is used of a picture as it is stored; notes the size of the upright one."""
        left, right, top, bottom = self._cut
        x, y = (left, frame.width - right), (top, frame.height - bottom)  # from, to
        across, down = (y, x) if turn.exchanged else (x, y)  # of the upright picture
        self.native_width, self.native_height = across[1] - across[0], down[1] - down[0]
        if self._region:
            edges = self._region
            across = _share(*across, edges[0], edges[2], turn.mirrored)
            down = _share(*down, edges[1], edges[3], turn.flipped)
            x, y = (down, across) if turn.exchanged else (across, down)
        return *x, *y


def _share(begin: int, end: int, low: float, high: float, backwards: bool) -> tuple[int, int]:
    """The part of a side from `begin` to `end` between two shares of its length, counted from its end if backwards."""
    near, far = math.floor(low * (end - begin)), math.ceil(high * (end - begin))
    return (end - far, end - near) if backwards else (begin + near, begin + far)


def _bound(max_pixels: int) -> dict[str, str]:
    """FFmpeg refuses larger pictures before it makes room; it counts rows up to 63 pixels longer."""
    return {"max_pixels": str(2 * max_pixels + (1 << 20))}


class _Cropper:
    """Parts of pictures as they are stored, so that they are resized as whole ones are."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._graph = av.filter.Graph()

    def __call__(self, frame: av.VideoFrame, x: int, y: int, width: int, height: int) -> av.VideoFrame:
        key = (frame.width, frame.height, frame.format.name, x, y, width, height)
        if key != self._key:
            self._key, self._graph = key, av.filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            crop = self._graph.add("crop", f"{width}:{height}:{x}:{y}:exact=1")
            self._graph.link_nodes(source, crop, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        part = self._graph.pull()
        assert isinstance(part, av.VideoFrame)
        return part


def frames(
    path: str | os.PathLike[str],
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
    region: Sequence[float] | None = None,
    alive: Callable[[], object] = lambda: None,
    short: int | None = None,
) -> FrameStream:
    """Decode a video: an iterator of RGB uint8 arrays [height, width, 3] in presentation order.

    The container's cropping and orientation are applied, then the picture is cut to `region` (left, top, right, bottom as shares
    of it; default: all of it), then area interpolation to `height` x `width` pixels, or to a shorter side of `short` (default: as
    they are). `fps` resamples to a constant rate by nearest presentation time; default: every frame of the file. A picture that
    would then stand still for longer than MAX_HOLD seconds, as where time stamps jump, stands for so long. Memory does not grow
    with the length of the video. alive: called for every packet, so that a long file is told from one that hangs.

    Raises DecodeError, with the reason, where the file is no regular one, cannot be opened or holds no frame, and where its
    pictures have more than `max_pixels` pixels, which is known before one is decoded. After the last frame it raises
    DecodeError where anything was wrong: where decoding stops early, frames are damaged or lost, time stamps jump or step back.
    Frames yielded before that are good but for their `FrameStream.damage`, `FrameStream.count` tells how many.
    """
    return FrameStream(path, height, width, fps, max_pixels, region, alive, short=short)


class _Times:
    """Seconds of frames, which never step back, and what is odd about them.

    rates: frames per second as the header has them, best first
    rate:  frames per second, 0 where neither header nor time stamps tell
    last:  seconds of the last frame so far
    """

    def __init__(self, *rates: Fraction | None) -> None:
        self._told = [float(rate) for rate in rates if rate]
        self.rate = next((rate for rate in self._told if rate <= _FASTEST), 0.0)
        self._steps = {"jump": 0, "step back": 0}
        self._longest = {"jump": (0.0, 0), "step back": (0.0, 0)}  # seconds, after which frame
        self._shortest, self._total, self._number, self._most = math.inf, 0.0, 0, 0.0
        self._wrong, self.last = False, math.nan

    def of(self, decoded: Decoded) -> Iterator[tuple[av.VideoFrame, int, float]]:
        """Frames with their damage and their seconds."""
        behind, before, step, none = 0.0, 0.0, 0.0, False
        for number, (frame, damage, time) in enumerate(decoded):
            each = decoded.each or (1 / self.rate if self.rate else 0.0)
            none = none or not number and math.isnan(time) and not self.rate
            if none:
                time = math.nan
            elif math.isnan(time):
                time = self.last + (step or each) if number else 0.0  # the last of an AVI have no stamps
            elif time + behind < self.last:
                self._odd("step back", self.last - time - behind, number)
                before, behind = behind, self.last + each - time
                time = self.last + each
            else:
                late = 0 < behind - before < 1 and time + behind > self.last + 1.5 * each
                if late and time + before >= self.last:
                    behind = before  # a frame was out of order, and no new time line began
                time += behind
                step = time - self.last
                self._step(step, number)
            self.last = time
            yield frame, damage, time
        plausible = [rate for rate in self._told if rate <= _FASTEST and self._fits(rate, 2.5)]
        self._wrong = bool(self._told) and (self._told[0] > _FASTEST or not plausible)
        measured = self._number / self._total if self._total else 0.0
        # an AVI's rate counts frames that are repeated, some rates count fields
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
        """In words, what was odd about the times so far."""
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
            found.append(f"its header tells {self._told[0]:,.0f} frames per second, its time stamps {stamps}")
        return found


def _closed(timed: Iterable[tuple[_T, int, float]]) -> Iterator[tuple[_T, int, float, float]]:
    """Frames with their damage, their seconds after the first one without what is longer than MAX_HOLD, and how much less these
    are than those of the file."""
    last, cut = math.nan, 0.0
    for frame, damage, time in timed:
        if math.isnan(time):
            raise ValueError("frames carry no presentation time, which a constant frame rate needs")
        cut = time if math.isnan(last) else cut + max(0.0, time - last - MAX_HOLD)
        last = time
        yield frame, damage, time - cut, cut


def _resample(timed: Iterable[tuple[_T, int, float]], fps: float) -> Iterator[tuple[_T, int, float]]:
    """Frame k is the one presented nearest to second k / fps after the first, with that second on the file's time line. A loss is
    marked at the next frame that is shown, damage whenever the frame is."""
    held: _T | None = None
    found, lost, held_time, held_cut, k = 0, 0, 0.0, 0.0, 0
    for frame, damage, time, cut in _closed(timed):
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


def expected_frames(
    path: str | os.PathLike[str],
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
    alive: Callable[[], object] = lambda: None,
) -> int:
    """About how many frames `frames` yields, by the file's packets, without decoding them: in nearly every sound file just so
    many. 0 where it cannot be read; arguments as of `frames`."""
    times: list[float] = []
    wrong = DecodeError, av.FFmpegError, OSError, ValueError
    with contextlib.suppress(*wrong), opened(os.fspath(path), _bound(max_pixels)) as container:
        stream, _ = choose(container)
        for packet in container.demux(stream):
            alive()
            if packet.size and not packet.is_discard:
                times.append(float(packet.pts * packet.time_base) if packet.pts is not None else math.nan)
    if fps is None:
        return len(times)
    with contextlib.suppress(ValueError):
        return sum(1 for _ in _resample(((time, 0, time) for time in sorted(times)), fps))
    return 0


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
