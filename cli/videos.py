"""Video files as a source of features: the one place where decoding and networks meet.

Frames are decoded, sized and compressed as in shards, into a scratch file per video that lives as long as its part.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from labelgen import decode
from labelgen.config import MAX_PIXELS
from labelgen.errors import DecodeError
from labelgen.files import writing
from labelgen.manifest import Video
from labelgen.run import STALL_SECONDS
from labelgen.run.guard import ended_if_stalled, why_lost
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.workers import WorkerLost, pool
from labelgen.shards import encode_frame
from labelgen.texts import path_text
from labelgen.times import frame_bounds

if TYPE_CHECKING:
    from trainer.embeddings.extract import Piece

PART_VIDEOS, PART_BYTES = 16, 1 << 28  # of a part, at most
_TICK = 1e-6  # seconds: times that differ by less are one


@dataclass(frozen=True)
class StoredFrames:
    """Frames of one video as JPEG in a file, read as from a shard.

    offset: int64 [frames + 1]; bounds: float64 [frames + 1], see labelgen.times; width, height: of the file; cut_short: why
    decoding stopped early, "" where not
    """

    path: str
    offset: np.ndarray
    bounds: np.ndarray
    size: tuple[int, int]
    width: int
    height: int
    cut_short: str

    @property
    def arrays(self) -> dict:
        return {"videos/n_frames": [len(self.offset) - 1], "videos/first_frame": [0]}

    def frames(self, indices: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """Decoded frames, RGB uint8 [len(indices), height, width, 3]; out: where to write them."""
        out = np.empty((len(indices), *self.size, 3), np.uint8) if out is None else out
        with open(self.path, "rb") as file:
            for target, frame in zip(out, indices, strict=True):
                start, stop = self.offset[frame : frame + 2].tolist()
                jpeg = np.frombuffer(os.pread(file.fileno(), stop - start, start), np.uint8)
                target[...] = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
        return out


class VideoFiles:
    """Video files as a trainer.embeddings.extract.Source.

    config: height, width, region, crop, fps and jpeg_quality of the frames, as in the shards that the network was trained on
    seconds: from, to (None: to the end): the part of each video that is used, by the frames that are seen then
    """

    def __init__(
        self,
        folder: Path,
        videos: Sequence[Video],
        config: dict,
        workers: int,
        say: Callable[[str], None],
        seconds: tuple[float, float | None] = (0.0, None),
    ):
        self.config = {"fps": None, "jpeg_quality": 90, "region": None, "max_pixels": MAX_PIXELS} | config
        self.about = {"kind": "videos", "folder": path_text(folder.resolve())}
        self.parts: list[list[Video]] = []
        self.count, self._workers, self._say, self._seconds = len(videos), workers, say, seconds
        room = 0
        for video in videos:
            size = video.path.stat().st_size if os.path.exists(video.path) else 0
            if not self.parts or len(self.parts[-1]) == PART_VIDEOS or size > room:
                self.parts.append([])
                room = PART_BYTES
            self.parts[-1].append(video)
            room -= size

    def stamp(self, part: list[Video]) -> object:
        """Ids, paths, labels, splits, sizes and times of a part's files."""
        seen = [video.path.stat() if os.path.exists(video.path) else None for video in part]
        return [
            (video.id, str(video.path), video.label, video.split, own and (own.st_size, own.st_mtime_ns))
            for video, own in zip(part, seen, strict=True)
        ]

    def size(self, part: list[Video]) -> int:
        return len(part)

    @contextmanager
    def open(self, part: list[Video], scratch: Path) -> Iterator[Piece]:
        """Decode a part's videos into a folder of its own below `scratch`."""
        from trainer.embeddings.extract import Piece, Readers, split_part

        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=scratch.absolute()) as folder:
            store = functools.partial(_store, folder=folder, config=self.config, seconds=self._seconds)
            outcomes = self._outcomes(store, list(enumerate(part)))
            readers: list[StoredFrames] = []
            fields, failures = [], []
            for number, video in enumerate(part):
                outcome = outcomes[number]
                known = {"id": video.id, "path": path_text(video.path)}
                if isinstance(outcome, str):
                    failures.append(known | {"reason": outcome, "kept": False})
                    continue
                readers.append(outcome)
                seen = {"width": outcome.width, "height": outcome.height}
                fields.append(known | {"label": video.label, "split": split_part(video.split)} | seen)
                if outcome.cut_short:
                    reason = f"kept the first {len(outcome.offset) - 1} frames: {outcome.cut_short}"
                    failures.append(known | {"reason": reason, "kept": True})
            videos = np.stack([np.arange(len(readers)), np.zeros(len(readers), np.int64)], 1)
            bounds = [reader.bounds for reader in readers]
            yield Piece(Readers(readers, self.config), videos, fields, failures, bounds)

    def _outcomes(self, store: Callable, items: list) -> dict[int, StoredFrames | str]:
        """Frames, or the reason why there are none, of every item, whatever happens to the processes."""
        done: dict[int, StoredFrames | str] = {}
        if len(items) > 1:
            try:
                with pool(self._workers, None, lambda text: None) as (each, _):
                    done.update(each(store, lambda item: item, items))
            except WorkerLost:
                self._say("a video has ended the process that decoded it; trying those of its part one by one")
        for item in items:
            if item[0] not in done:
                try:
                    done.update([in_new_process(store, item)])
                except ProcessLost as lost:
                    done[item[0]] = why_lost(lost, STALL_SECONDS)
        return done


def _store(item: tuple[int, Video], folder: str, config: dict, seconds: tuple) -> tuple[int, StoredFrames | str]:
    """Decode one video into a file; its number, and the frames or the reason why there are none."""
    number, video = item
    cv2.setNumThreads(1)
    begin, end = seconds[0], math.inf if seconds[1] is None else seconds[1]
    settings = {name: config[name] for name in ("height", "width", "fps", "max_pixels", "region")}
    stream = decode.frames(video.path, **settings)
    path, offset, time, cut_short = os.path.join(folder, f"{number}.jpegs"), [0], array("d"), ""
    before: np.ndarray | None = None  # the last frame that begins before the part, and may last into it
    first = 0  # frame that is kept
    try:
        with writing(path), open(path, "wb") as file, ended_if_stalled(STALL_SECONDS) as alive:

            def keep(frame: np.ndarray) -> None:
                offset.append(offset[-1] + file.write(encode_frame(frame, config["jpeg_quality"])))

            for frame in stream:
                alive()
                time.append(stream.time)
                at = stream.time - time[0]
                if math.isnan(at) and seconds != (0, None):
                    return number, "the file tells no times, so that no part can be taken"
                if at >= end - _TICK:
                    break
                if at < begin - _TICK:
                    before, first = frame, len(time) - 1
                    continue
                if before is not None:
                    if at > begin + _TICK:
                        keep(before)
                    else:
                        first += 1
                    before = None
                keep(frame)
            bounds = frame_bounds(time, stream.fps)
            if before is not None and bounds[first + 1] > begin + _TICK:
                keep(before)
    except DecodeError as error:
        if len(offset) == 1:
            return number, error.reason
        cut_short, bounds = error.reason, frame_bounds(time, stream.fps)
    stream.close()
    if (count := len(offset) - 1) == 0:
        return number, f"no frame from second {begin:g} on, it has {len(time)} and ends at {bounds[-1]:.1f} s"
    size, native = (config["height"], config["width"]), (stream.native_width, stream.native_height)
    own = bounds[first : first + count + 1]
    return number, StoredFrames(path, np.array(offset), own, size, *native, cut_short)
