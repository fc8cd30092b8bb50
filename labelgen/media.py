"""A video file as FFmpeg reads it: opened without access to other files, its stream chosen, its packets decoded one by one.

Faults do not stop decoding: packets that cannot be decoded are left out, damaged frames and losses are marked.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import av
import av.logging
from av.container import Flags, InputContainer
from av.logging import Capture
from av.sidedata.sidedata import Type
from av.stream import Disposition

from labelgen.errors import DecodeError
from labelgen.reading import open_regular

av.logging.set_level(av.logging.WARNING)  # messages outside of a Capture go to this logger, which drops them
av.logging.set_skip_repeated(False)
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False

DAMAGED, LOSS = 1, 2  # of a frame: its picture is damaged, others are lost just before it
_BUFFER = 1 << 17  # bytes per read
_ATTACHED = Disposition.attached_pic | Disposition.timed_thumbnails
_PICTURES = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}  # codecs of covers
_AHEAD = 500  # packets of one stream; another that has had only one by then is not a film
_DEFAULT = 5_000_000  # pixels that the default stream counts for in addition, as in FFmpeg's program
_CROPPING = re.compile(r"^ {6}Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", re.MULTILINE)
_MPEG = {"mpeg1video", "mpeg2video"}  # decoders that silently drop what they cannot decode


def _unknown_type(cls: Any, value: object) -> Any:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


Type._missing_ = classmethod(_unknown_type)  # type: ignore[assignment]  # PyAV refuses all side data if one type is unknown


class _NamedFile:
    """An open file with its path, by which FFmpeg recognizes some formats."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.name, self.seek, self.tell = path, file.seek, file.tell
        self.read = file.raw.read  # type: ignore[attr-defined]  # FFmpeg does its own buffering


def _refuse(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    raise PermissionError(errno.EACCES, "not on whitelist")


@contextlib.contextmanager
def opened(path: str, options: dict[str, str]) -> Iterator[InputContainer]:
    """A video file, opened. FFmpeg gets the open file alone and can open no other, whatever this one says.

    Raises DecodeError, with FFmpeg's reason, if it is not a video, and OSError as `open_regular` does.
    """
    with open_regular(path) as file:
        with Capture() as logs:
            try:
                container = av.open(
                    _NamedFile(file, path),
                    metadata_errors="replace",  # text that is not UTF-8 must not stop a video
                    options=options | {"protocol_whitelist": "none"},
                    buffer_size=_BUFFER,
                    io_open=_refuse,
                )
            except (av.FFmpegError, PermissionError, UnicodeError) as error:
                if "not on whitelist" in f"{logs} {error}":
                    raise DecodeError(path, "a list of other files, no video; those are not opened") from error
                raise DecodeError(path, f"cannot be decoded at opening: {reason(error, logs)}") from error
        assert isinstance(container, InputContainer)
        # time stamps derived from decoding order are wrong if an AVI has B-frames
        container.flags &= ~Flags.gen_pts.value  # type: ignore[operator]
        with container:
            yield container


def reason(error: BaseException | None, logs: list[tuple[int, str, str]]) -> str:
    """FFmpeg's reason for an error: the last error line that it logged, or else the name of the error."""
    lines = [line.strip() for level, _, line in logs if level <= av.logging.ERROR and line.strip()]
    return lines[-1][:200] if lines else str(getattr(error, "strerror", None) or error)


def choose(container: InputContainer) -> tuple[av.VideoStream, str]:
    """The video stream that FFmpeg's program chooses (the default one or that of the largest pictures), but never an attached
    picture, nor a single picture beside a film or sound; and a note if there are several, else "". Raises ValueError."""
    films = [stream for stream in container.streams.video if not stream.disposition & _ATTACHED]
    if not films:
        raise ValueError("no video, only a picture" if container.streams.video else "no video stream")
    known = [stream for stream in films if stream.codec_context is not None]
    if not known:
        raise ValueError("the codec of the video stream is unknown")
    picture = bool(container.streams.audio) and all(stream.codec_context.name in _PICTURES for stream in known)
    moving = _moving(container, known) if picture or len(known) > 1 else known
    if picture and not moving:
        raise ValueError("no video, only a picture")

    def score(stream: av.VideoStream) -> int:
        return stream.width * stream.height + _DEFAULT * bool(stream.disposition & Disposition.default)

    best = max(moving or known, key=score)
    note = f"{len(moving)} video streams: number {best.index} of {best.width} x {best.height} pixels is taken"
    return best, note if len(moving) > 1 else ""


def _moving(container: InputContainer, streams: list[av.VideoStream]) -> list[av.VideoStream]:
    """The streams of more than one picture, judged by the first packets of the file, which is opened once more for this."""
    counts = dict.fromkeys((stream.index for stream in streams), 0)
    with opened(container.name, container.options) as again, contextlib.suppress(av.FFmpegError):
        for packet in again.demux([again.streams[index] for index in counts]):
            if packet.size:
                counts[packet.stream_index] += 1
            if min(counts.values()) > 1 or max(counts.values()) == _AHEAD:
                break
    return [stream for stream in streams if counts[stream.index] > 1]


def cropping(container: InputContainer, stream: av.VideoStream) -> tuple[int, int, int, int]:
    """Pixels that the container cuts off its stored pictures: left, right, top, bottom [Matroska: PixelCrop, MP4: clap]."""
    av.logging.set_level(av.logging.INFO)  # FFmpeg reports them in no other way
    try:
        text: str = container.dumps_format()  # type: ignore[attr-defined]
    finally:
        av.logging.set_level(av.logging.WARNING)
    own = re.split(r"^  Stream #0:(\d+)", text, flags=re.MULTILINE)
    found = _CROPPING.search(dict(zip(own[1::2], own[2::2], strict=True)).get(str(stream.index), ""))
    left, right, top, bottom = map(int, found.groups()) if found else (0, 0, 0, 0)
    return left, right, top, bottom


def on_samples(form: av.VideoFormat, x: tuple[int, int], y: tuple[int, int]) -> bool:
    """Whether the edges of a part, from and to, lie between colour samples, so that these stay in place."""
    across = all(16 * form.chroma_width(edge) == edge * form.chroma_width(16) for edge in x)
    return across and all(16 * form.chroma_height(edge) == edge * form.chroma_height(16) for edge in y)


class Turn(NamedTuple):
    """How a picture is brought upright: first rows and columns are exchanged, then left and right, then top and bottom."""

    exchanged: bool
    mirrored: bool
    flipped: bool

    def shortened(self, height: int, width: int, short: int) -> tuple[int, int]:
        """Height and width of a picture, stored as `height` x `width`, once it is upright and its shorter side has `short`
        pixels; the other side is rounded, halves upwards."""
        if self.exchanged:
            height, width = width, height
        least = min(height, width)
        return (2 * height * short + least) // (2 * least), (2 * width * short + least) // (2 * least)


def orientation(frame: av.VideoFrame) -> Turn | None:
    """The orientation in the frame's display matrix; None if it is none of the eight."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Turn(False, False, False)
    # the pixel at (x, y), with y pointing down, is shown at (a x + c y, b x + d y)
    a, b, u, c, d, v = struct.unpack("=6i", bytes(matrix)[:24])
    for exchanged, across, down, others in ((False, a, d, (b, c)), (True, c, b, (a, d))):
        if max(map(abs, others)) * 60 < min(abs(across), abs(down)) and not (
            u or v
        ):  # within a degree, as in FFmpeg's program
            return Turn(exchanged, across < 0, down < 0)
    return None


class Decoded(Iterator[tuple[av.VideoFrame, int, float]]):
    """Frames of a stream in presentation order, each with DAMAGED, LOSS, both or 0, and its time in seconds, nan if unknown.

    read:   frames so far; time, each: time and duration of the last one in seconds, nan and 0 if unknown
    ended:  why the container could not be read to its end, else ""
    at_end: whether the last frame is damaged, or some are lost after it
    alive:  called for every packet
    """

    def __init__(
        self, container: InputContainer, stream: av.VideoStream, rate: float, alive: Callable[[], object]
    ) -> None:
        self.read, self.ended, self.at_end = 0, "", False
        self.time, self.each, self._latest, self._shortest = math.nan, 0.0, math.nan, math.inf
        self._container, self._stream, self._rate, self._alive = container, stream, rate, alive
        self._unit = float(
            stream.time_base or math.nan
        )  # seconds; a Fraction for every frame would take longer than the rest
        self._counts, self._first, self._why = {DAMAGED: 0, LOSS: 0}, {DAMAGED: 0, LOSS: 0}, ""
        self._pending: list[tuple[float, int]] = []  # times of faulty packets whose frames are still to come
        self._signs: list[float] = []  # times of packets at which FFmpeg warned
        self._stamps, self._late = [-math.inf, -math.inf], [0, 0]  # by presentation time, by decoding time
        self._mpeg = stream.codec_context.name in _MPEG
        # these containers have no variable frame rates, so that a gap in time is a loss
        self._fixed = self._mpeg and container.format.name.startswith("mpeg")
        self._held = 0  # packets minus frames
        self._frames = self._decode()

    def __next__(self) -> tuple[av.VideoFrame, int, float]:
        return next(self._frames)

    def faults(self, broken_off: bool, of: str = "") -> list[str]:
        """What was wrong with the frames so far, in words, except with the last one of a truncated file; of: appended
        to the number of a frame."""
        if broken_off and self.at_end and sum(self._counts.values()) == 1:
            return []
        words = {DAMAGED: "damaged", LOSS: "lost"}
        found = [
            f"{count} frame{'s' * (count > 1)} {words[kind]}, from frame {self._first[kind]}{of} on"
            for kind, count in self._counts.items()
            if count
        ]
        return [f"{' and '.join(found)} ({self._why})" if self._why else " and ".join(found)] if found else []

    def _decode(self) -> Iterator[tuple[av.VideoFrame, int, float]]:
        # an empty packet repeats a picture; the decoder would take it for the end
        packets = (packet for packet in self._container.demux(self._stream) if packet.size)
        packet, left = None, True
        while left:
            frames: list[av.VideoFrame] = []
            bad = None
            with Capture() as logs:
                try:
                    packet = next(packets, None)
                except av.FFmpegError as error:  # of the container: nothing can be read after it
                    packet, self.ended = None, reason(error, logs)
                left = packet is not None
                try:
                    frames = packet.decode() if packet else self._stream.codec_context.decode(None)
                except av.EOFError:
                    pass
                except av.FFmpegError as error:
                    no_size = error.errno == errno.EINVAL and not self._stream.width * self._stream.height
                    if error.errno == errno.ENOMEM or no_size:
                        raise
                    bad = error
            self._alive()
            seconds = self._seconds_of(packet)
            if math.isnan(self.time) and not self.read and self._rate:
                self.time = seconds - 1 / self._rate  # as if a frame had come before the first packet
            self._held += (packet is not None) - len(frames)
            if self._held > 1 and self._mpeg:  # the frame of one packet is still to come, the other gave none
                self._signs.append(seconds)
                self._held = 1
            if logs or bad or (packet and packet.is_corrupt):
                self._note(packet, seconds, logs, bad)
            for frame in frames:
                found = self._faults(frame)
                self.read += 1
                yield frame, found, self.time
        after = self._mpeg and any(not at <= self.time for at in self._signs)
        if self._pending or after:
            self.at_end = True
            self._count(LOSS, len(self._pending) or 1)

    def _seconds_of(self, packet: av.Packet | None) -> float:
        stamp = None if packet is None else packet.dts if packet.pts is None else packet.pts
        return math.nan if stamp is None else stamp * self._unit

    def _note(
        self, packet: av.Packet | None, seconds: float, logs: list[tuple[int, str, str]], bad: av.FFmpegError | None
    ) -> None:
        """Remember what was said of a packet until its frame comes."""
        if packet and packet.is_corrupt or any(level <= av.logging.WARNING for level, _, _ in logs):
            self._signs.append(seconds)
        errors = any(level <= av.logging.ERROR for level, _, _ in logs)
        if bad or errors:
            self._why = self._why or reason(bad, logs)
        if bad or errors or (packet and packet.is_corrupt):
            self._pending.append((seconds, LOSS if bad else DAMAGED))

    def _seconds(self, frame: av.VideoFrame) -> float:
        """Presentation time: like FFmpeg, of the two time stamps the kind that has stepped back less often so far."""
        stamps = [math.nan if stamp is None else float(stamp) for stamp in (frame.pts, frame.dts)]
        for kind, (stamp, other) in enumerate((stamps, stamps[::-1])):
            self._late[kind] += stamp <= self._stamps[kind]
            if not math.isnan(known := other if math.isnan(stamp) else stamp):
                self._stamps[kind] = known
        first = not math.isnan(stamps[0]) and (self._late[0] <= self._late[1] or math.isnan(stamps[1]))
        return stamps[0 if first else 1] * self._unit

    def _faults(self, frame: av.VideoFrame) -> int:
        """DAMAGED and LOSS of the next frame, from its flag, the faults of packets up to its packet, and gaps in time."""
        stamp, missing = self._seconds(frame), 0
        # the highest time so far, if the last frame was merely out of order and began no new time line
        latest = self._latest if self._latest - self.time < 1 else self.time
        self._latest = max(latest, stamp)
        each, step = frame.duration * self._unit, stamp - latest
        found = DAMAGED if frame.is_corrupt else 0
        waiting = []
        for seconds, kind in self._pending:
            if math.isnan(seconds) or math.isnan(stamp):
                found |= kind
            elif step < 0 or seconds < stamp:
                found, missing = found | LOSS, missing + 1
            elif seconds <= stamp + 0.75 * each:  # the second field of a picture comes half a frame later
                found |= DAMAGED
            else:
                waiting.append((seconds, kind))
        self._pending = waiting
        nominal = self.each or (1 / self._rate if self._rate else math.inf)
        if self._shortest < math.inf:  # an AVI with repeated frames claims a shorter duration
            nominal = max(nominal, self._shortest)
        if step > 0 and self.read:
            self._shortest = min(self._shortest, step)
        least = 1.5 if self.read else 4.5  # frames; the first ones of a recording may refer to one before it
        if step > least * nominal and (self._fixed or any(not abs(at - stamp) > step for at in self._signs)):
            found, missing = found | LOSS, max(missing, round(step / nominal) - 1)
        if self._signs:
            self._signs = [at for at in self._signs if at > stamp or math.isnan(stamp)]
        self.time, self.each, self.at_end = stamp, each, bool(found & DAMAGED)
        if found & DAMAGED:
            self._count(DAMAGED, 1)
        if found & LOSS:
            self._count(LOSS, max(missing, 1))
        return found

    def _count(self, kind: int, number: int) -> None:
        self._first[kind] = self._first[kind] if self._counts[kind] else self.read
        self._counts[kind] += number
