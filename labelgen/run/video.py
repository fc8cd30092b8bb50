"""Turns one video into one record: its frames as JPEG and all of its labels. The only place that knows the order of the
steps."""

from __future__ import annotations

import math
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import numpy as np

from labelgen import decode
from labelgen.config import Config
from labelgen.errors import DecodeError
from labelgen.flow import find, flow, luma
from labelgen.labels import kinds
from labelgen.labels.clip import Clip, clipped_flow
from labelgen.labels.sampling import clip_starts, generator
from labelgen.manifest import Video
from labelgen.manifest.segments import seconds_of
from labelgen.media import DAMAGED
from labelgen.numbered import stamp_of
from labelgen.shards import encode_frame
from labelgen.span import Span


@dataclass
class Record:
    """What a shard stores for one video, except the bytes of the JPEGs.

    jpeg_sizes: bytes of each frame; time, damage: of each frame, see `FrameStream`; start: first frame of each labelled clip
    labels:     by name of the data set: for kinds per clip, a list with the array of each clip; for kinds per video,
                its array, unless the video is too short
    cut_short:  why decoding stopped early, "" if it did not
    """

    video: Video
    fps: float = 0
    native_width: int = 0
    native_height: int = 0
    jpeg_sizes: array[int] = field(default_factory=lambda: array("l"))
    time: array[float] = field(default_factory=lambda: array("d"))
    damage: bytearray = field(default_factory=bytearray)
    start: list[int] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    cut_short: str = ""


class Clock:
    """Seconds spent in each stage, and counts of what was done."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin  # type: ignore[assignment]


def label_video(
    video: Video,
    config: Config,
    write: Callable[[bytes], object],
    clock: Clock,
    alive: Callable[[], object] = lambda: None,
) -> Record:
    """Decode and label one video; `write` gets the JPEG of each frame as soon as it is encoded.

    A truncated file is kept up to its break, see `Record.cut_short`. Memory does not grow with the length of the video.
    alive: called for every packet of the file, every flow and every clip, which distinguishes a long video from one that hangs

    Raises DecodeError if not even one frame can be decoded.
    """
    record = Record(video)
    rate = config.image_fps or config.fps
    part = part_of(video, config.max_pixels, rate, alive)
    of_clips = any(kind.of_clip is not None for kind in kinds())
    planned: list[int] | None = None if of_clips else []  # starts of the clips; None: all clips without overlap
    drawing = of_clips and config.clips is not None
    if drawing:  # needs the number of frames: taken from the packets, and checked by decoding
        with clock("decode"):
            n_frames = decode.expected_frames(
                _frame_times(video, config.max_pixels, rate, alive), config.fps, *(part or ())
            )
        planned = _drawn(video, config, n_frames)
    _label_clips(record, part, planned, config, write, clock, alive)
    clock.counts["frames"] += len(record.jpeg_sizes)
    damage = np.frombuffer(record.damage, np.uint8)
    if drawing and planned != (drawn := _drawn(video, config, len(damage), damage)):
        again = Record(video)
        _label_clips(again, part, drawn, config, None, clock, alive)
        record.start, record.labels = again.start, again.labels
    for kind in kinds():
        if kind.of_video is not None:
            rng = generator(config.seed, kind.name, video.id)
            rows = kind.of_video(len(damage), config, rng, damage)
            if rows is not None:
                record.labels |= {one.name: rows[one.name] for one in kind.fields}
    return record


def _drawn(video: Video, config: Config, n_frames: int, damage: np.ndarray | None = None) -> list[int]:
    rng = generator(config.seed, "clips", video.id)
    starts: list[int] = clip_starts(n_frames, config.clips, config.clip_length, rng, damage).tolist()
    return starts


_times_of: dict[tuple[object, ...], list[float]] = {}  # of the last file, as the parts of a file follow one another


def _frame_times(video: Video, max_pixels: int, image_fps: float | None, alive: Callable[[], object]) -> list[float]:
    if video.part is None:
        return decode.frame_times(video.path, max_pixels, alive, image_fps)
    key = video.file, stamp_of(video.file), max_pixels, image_fps
    if key not in _times_of:
        _times_of.clear()
        _times_of[key] = decode.frame_times(video.path, max_pixels, alive, image_fps)
    return _times_of[key]


def part_of(
    video: Video, max_pixels: int, image_fps: float | None, alive: Callable[[], object]
) -> tuple[float, float] | None:
    """Begin and end of a video that is a part of a file, in seconds after the file's first frame; None if it is the
    whole file. image_fps: of folders of images. Raises DecodeError for a part that the file does not have."""
    part = video.part
    if part is None:
        return None
    if not part.frames:
        return part.begin, math.inf if part.end is None else part.end
    try:
        return seconds_of(part, _frame_times(video, max_pixels, image_fps, alive))
    except ValueError as error:
        raise DecodeError(os.fspath(video.file), str(error)) from error


def open_part(video: Video, part: tuple[float, float] | None, **options: Any) -> decode.FrameStream | Span:
    """The frames of a video, or of the part of its file between two times, see `part_of`. options: of `decode.frames`."""
    if part is None:
        return decode.frames(video.path, **options)
    return Span(decode.frames(video.path, since=part[0], **options), *part)


class Outcome(Protocol):
    """What is known of a video that is being decoded. cut_short: why decoding stopped early, "" if it did not."""

    cut_short: str


def decoded(stream: Iterator[np.ndarray], clock: Clock, outcome: Outcome) -> Iterator[np.ndarray]:
    """The frames of a stream, whose decoding goes on the clock. If it stops early, `outcome.cut_short` says why.

    Raises DecodeError if not even one frame can be decoded.
    """
    for t in count():
        try:
            with clock("decode"):
                frame = next(stream, None)
        except DecodeError as error:
            if not t:
                raise
            outcome.cut_short = error.reason
            return
        if frame is None:
            return
        yield frame


def _label_clips(
    record: Record,
    part: tuple[float, float] | None,
    starts: list[int] | None,
    config: Config,
    write: Callable[[bytes], object] | None,
    clock: Clock,
    alive: Callable[[], object],
) -> None:
    """Decode a video, or the part of its file between two times, into its record, and label the clips that start at
    these frames, or all undamaged clips without overlap. Without `write` only the clips are recorded."""
    stream = open_part(
        record.video,
        part,
        height=config.height,
        width=config.width,
        fps=config.fps,
        max_pixels=config.max_pixels,
        region=config.region,
        alive=alive,
        image_fps=config.image_fps,
    )
    left = None if starts is None else iter(starts)
    start = 0 if left is None else next(left, None)
    window: dict[int, np.ndarray] = {}  # frames of the current clip and of later ones that overlap it
    flows: dict[int, np.ndarray] = {}
    for t, frame in enumerate(decoded(stream, clock, record)):
        if write is not None:
            with clock("jpeg"):
                encoded = encode_frame(frame, config.jpeg_quality)
            write(encoded)
            record.jpeg_sizes.append(len(encoded))
            record.time.append(stream.time)
            record.damage.append(stream.damage)
        elif start is None:
            stream.close()
            break
        if left is None and stream.damage and start is not None:
            start = max(start, t + 1 if stream.damage & DAMAGED else t)
        window[t] = frame
        while start is not None and t == start + config.clip_length - 1:
            _label_clip(record, start, window, flows, config, clock, alive)
            start = start + config.clip_length if left is None else next(left, None)
        for old in [key for key in window if start is None or key < start]:
            del window[old]
            flows.pop(old, None)
    record.fps, record.native_width, record.native_height = stream.fps, stream.native_width, stream.native_height


def _label_clip(
    record: Record,
    start: int,
    window: dict[int, np.ndarray],
    flows: dict[int, np.ndarray],
    config: Config,
    clock: Clock,
    alive: Callable[[], object],
) -> None:
    frames = [window[t] for t in range(start, start + config.clip_length)]
    pairs = range(start, start + config.clip_length - 1)
    with clock("flow"):
        backend, images = find(config.flow), dict[int, Any]()
        for i, t in enumerate(pairs):
            if t not in flows:
                for at in (i, i + 1):
                    if at not in images:
                        images[at] = backend.prepare(luma(frames[at]))
                flows[t] = clipped_flow(images[i], images[i + 1], backend)
                clock.counts["flow pairs"] += 1
                alive()
    with clock("labels"):
        clip = Clip.of(frames, [flows[t] for t in pairs])
        record.start.append(start)
        for kind in kinds():
            if kind.of_clip is not None:
                values = kind.of_clip(clip, config)
                for one in kind.fields:
                    record.labels.setdefault(one.name, []).append(values[one.name])
        clock.counts["clips"] += 1
        alive()


def compile_kernels(backend: str) -> None:
    """Run every Numba kernel once, so that processes started later find it in the cache; only needed for label kinds of
    clips."""
    of_clips = [kind.of_clip for kind in kinds() if kind.of_clip is not None]
    if not of_clips:
        return
    config = Config(height=16, width=16, crop=16, clip_length=8)
    still = np.zeros((16, 16), np.uint8)
    flow(still, still, backend)
    clip = Clip.of([np.zeros((16, 16, 3), np.uint8)] * 8, [np.zeros((16, 16, 2), np.float32)] * 7)
    for label in of_clips:
        label(clip, config)
