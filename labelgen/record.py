"""One video to one record: its frames as JPEG and all of its labels. The only place that knows the order of the steps."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from labelgen import decode, sampling
from labelgen.appearance import appearance_statistics
from labelgen.boundaries import motion_boundaries
from labelgen.config import Config
from labelgen.curriculum import curriculum_score
from labelgen.errors import DecodeError
from labelgen.flow import flow, tvl1
from labelgen.manifest import Video
from labelgen.motion import motion_statistics
from labelgen.patterns import centre_crop, crop_grid
from labelgen.sampling import CLIP_LENGTH
from labelgen.shards import NO_ROW

MAX_FLOW = 20  # pixels per frame: components beyond are clipped


@dataclass
class Record:
    """What one shard stores of one video, without the JPEG bytes themselves.

    jpeg_sizes: bytes of each frame; start int32 [clips]; motion, valid uint8 [clips, crops, 2, 14]; appearance uint8
    [clips, crops, 2, 13]; score float32 [clips]; pace (start, label, wrapped) and order (start, permutation) rows, None
    where the video is too short; cut_short: why decoding stopped early, "" where it did not.
    """

    video: Video
    fps: float
    native_width: int
    native_height: int
    jpeg_sizes: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    motion: list[np.ndarray] = field(default_factory=list)
    valid: list[np.ndarray] = field(default_factory=list)
    appearance: list[np.ndarray] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    pace: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    order: tuple[np.ndarray, np.ndarray] | None = None
    cut_short: str = ""


class Clock:
    """Seconds spent per stage, and how much was done in them."""

    def __init__(self):
        self.seconds: Counter = Counter()
        self.counts: Counter = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - begin


def label_video(video: Video, config: Config, write: Callable[[bytes], object], clock: Clock) -> Record:
    """Decode and label one video; every frame's JPEG goes to `write` as soon as it is made.

    A file that breaks off is kept up to there, see `Record.cut_short`. Memory does not grow with the video's length.

    Raises DecodeError where not even one frame can be decoded.
    """
    stream = decode.frames(video.path, config.height, config.width, config.fps)
    starts = _planned_starts(video, config)
    start = next(starts, None)
    window: dict[int, np.ndarray] = {}  # the frames that the current clip, or a later one that overlaps it, needs
    flows: dict[int, np.ndarray] = {}
    record = Record(video, 0, 0, 0)
    for t in count():
        try:
            with clock("decode"):
                frame = next(stream, None)
        except DecodeError as error:
            if not t:
                raise
            record.cut_short = error.reason
            break
        if frame is None:
            break
        with clock("jpeg"):
            quality = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality]
            encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
        write(encoded)
        record.jpeg_sizes.append(len(encoded))
        window[t] = frame
        while start is not None and t == start + CLIP_LENGTH - 1:
            _label_clip(record, start, window, flows, config, clock)
            start = next(starts, None)
        for old in [key for key in window if start is None or key < start]:
            del window[old]
            flows.pop(old, None)
    clock.counts["frames"] += len(record.jpeg_sizes)
    record.fps, record.native_width, record.native_height = stream.fps, stream.native_width, stream.native_height

    n_frames = len(record.jpeg_sizes)
    rng = sampling.generator(config.seed, "pace", video.id)
    record.pace = sampling.pace_rows(n_frames, config.fractions, config.rows, rng, config.allow_wrap)
    rng = sampling.generator(config.seed, "order", video.id)
    record.order = sampling.order_rows(n_frames, config.order_clips, config.rows, rng)
    return record


def _planned_starts(video: Video, config: Config) -> Iterator[int]:
    if config.clips is None:
        return count(0, CLIP_LENGTH)
    rng = sampling.generator(config.seed, "clips", video.id)
    return iter(sampling.clip_starts(decode.count_frames(video.path, config.fps), config.clips, rng).tolist())


def _label_clip(record: Record, start: int, window: dict, flows: dict, config: Config, clock: Clock) -> None:
    clip = [window[t] for t in range(start, start + CLIP_LENGTH)]
    with clock("flow"):
        luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
        for i, t in enumerate(range(start, start + CLIP_LENGTH - 1)):
            if t not in flows:
                flows[t] = np.clip(flow(luma[i], luma[i + 1], backend=config.flow), -MAX_FLOW, MAX_FLOW)
                clock.counts["flow pairs"] += 1
    with clock("labels"):
        # Filled one by one: twice the memory for np.stack has malloc return it to the system and fault it in again, 3 ms.
        boundaries = np.empty((CLIP_LENGTH - 1, 4, config.height, config.width), np.float32)
        for i in range(CLIP_LENGTH - 1):
            boundaries[i] = motion_boundaries(flows[start + i])
        corners = crop_grid(config.height, config.width, config.crop)
        motion, valid = motion_statistics(boundaries, corners, config.crop)
        y, x = corners[centre_crop(config.height, config.width, config.crop)]
        record.start.append(start)
        record.motion.append(motion)
        record.valid.append(valid)
        record.appearance.append(appearance_statistics(np.stack(clip), corners, config.crop))
        record.score.append(curriculum_score(boundaries.sum(0)[:, y : y + config.crop, x : x + config.crop]))
        clock.counts["clips"] += 1


def compile_kernels() -> None:
    """Run every Numba kernel once, so that processes started later find it in the cache."""
    side = 16
    corners = crop_grid(side, side, side)
    tvl1(np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8))
    boundaries = motion_boundaries(np.zeros((side, side, 2), np.float32))
    motion_statistics(boundaries[None], corners, side)
    appearance_statistics(np.zeros((1, side, side, 3), np.uint8), corners, side)


def relative_path(video: Video, root: Path) -> str:
    """Path of a video below the data set's root; bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(os.path.relpath(video.path, root)).decode("utf-8", "backslashreplace")


def shard_arrays(records: list[Record], failures: list[dict], root: Path, config: Config) -> dict:
    """Join the records of a shard's videos into the data sets of its schema, see docs/shards.md."""
    crops = len(crop_grid(config.height, config.width, config.crop))
    n_frames = np.array([len(record.jpeg_sizes) for record in records], np.int64)
    first = np.concatenate([[0], np.cumsum(n_frames)])[:-1]
    sizes = [size for record in records for size in record.jpeg_sizes]
    no_pace = np.full(config.rows, -1), np.full(config.rows, NO_ROW), np.zeros(config.rows)
    no_order = np.full((config.rows, config.order_clips), -1), np.full(config.rows, NO_ROW)
    pace = [record.pace or no_pace for record in records]
    order = [record.order or no_order for record in records]
    videos = [record.video for record in records]
    n_splits = len(videos[0].split) if videos else 0

    def stacked(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.concatenate(
            [np.zeros((0, *shape), np.uint8)] + [np.stack(getattr(r, name)) for r in records if r.start]
        )

    return {
        "frames/offset": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        "videos/id": [video.id for video in videos],
        "videos/path": [relative_path(video, root) for video in videos],
        "videos/label": [video.label for video in videos],
        "videos/group": [video.group for video in videos],
        "videos/split": np.array([video.split for video in videos]).reshape(len(videos), n_splits),
        "videos/first_frame": first,
        "videos/n_frames": n_frames,
        "videos/fps": [record.fps for record in records],
        "videos/width": [record.native_width for record in records],
        "videos/height": [record.native_height for record in records],
        "clips/video": np.repeat(np.arange(len(records)), [len(record.start) for record in records]),
        "clips/start": [start for record in records for start in record.start],
        "statistics/motion": stacked("motion", (crops, 2, 14)),
        "statistics/appearance": stacked("appearance", (crops, 2, 13)),
        "statistics/valid": stacked("valid", (crops, 2, 14)),
        "curriculum/score": [score for record in records for score in record.score],
        "pace/start": np.array([row[0] for row in pace]).reshape(-1, config.rows),
        "pace/pace": np.array([row[1] for row in pace]).reshape(-1, config.rows),
        "pace/wrapped": np.array([row[2] for row in pace]).reshape(-1, config.rows),
        "order/start": np.array([row[0] for row in order]).reshape(-1, config.rows, config.order_clips),
        "order/permutation": np.array([row[1] for row in order]).reshape(-1, config.rows),
    } | {f"failures/{name}": [failure[name] for failure in failures] for name in ("id", "path", "stage", "reason")}
