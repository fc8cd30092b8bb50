"""Video files as a source of features: the one place where decoding and networks meet.

Frames are decoded, sized and compressed as in shards, into a scratch file per video that lives as long as its part.
"""

from __future__ import annotations

import functools
import os
import tempfile
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
from labelgen.manifest import Video
from labelgen.run import STALL_SECONDS
from labelgen.run.guard import ended_if_stalled, why_lost
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.workers import WorkerLost, pool
from labelgen.shards import encode_frame

if TYPE_CHECKING:
    from trainer.embeddings.extract import Piece

PART_VIDEOS, PART_BYTES = 16, 1 << 28  # of a part, at most


@dataclass(frozen=True)
class StoredFrames:
    """Frames of one video as JPEG in a file, read as from a shard.

    offset: int64 [frames + 1]; fps, width, height: of the file; cut_short: why decoding stopped early, "" where not
    """

    path: str
    offset: np.ndarray
    size: tuple[int, int]
    fps: float
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
    seconds: from, to (None: to the end): the part of each video that is used
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
        self.about = {"kind": "videos", "folder": str(folder.resolve())}
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
                known = {"id": video.id, "path": _text(video.path)}
                if isinstance(outcome, str):
                    failures.append(known | {"reason": outcome, "kept": False})
                    continue
                readers.append(outcome)
                seen = {"fps": outcome.fps, "width": outcome.width, "height": outcome.height}
                fields.append(known | {"label": video.label, "split": split_part(video.split)} | seen)
                if outcome.cut_short:
                    reason = f"kept the first {len(outcome.offset) - 1} frames: {outcome.cut_short}"
                    failures.append(known | {"reason": reason, "kept": True})
            videos = np.stack([np.arange(len(readers)), np.zeros(len(readers), np.int64)], 1)
            yield Piece(Readers(readers, self.config), videos, fields, failures)

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


def _text(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _store(item: tuple[int, Video], folder: str, config: dict, seconds: tuple) -> tuple[int, StoredFrames | str]:
    """Decode one video into a file; its number, and the frames or the reason why there are none."""
    number, video = item
    cv2.setNumThreads(1)
    begin, end = seconds
    settings = {name: config[name] for name in ("height", "width", "fps", "max_pixels", "region")}
    stream = decode.frames(video.path, **settings)
    path, offset, cut_short = os.path.join(folder, f"{number}.jpegs"), [0], ""
    try:
        with open(path, "wb") as file, ended_if_stalled(STALL_SECONDS) as alive:
            for frame in stream:
                alive()
                if not stream.fps and seconds != (0, None):
                    return number, "the file does not tell its frame rate, so that no part can be taken"
                at = stream.count - 1
                if end is not None and at >= end * stream.fps:
                    break
                if at >= int(begin * stream.fps):
                    offset.append(offset[-1] + file.write(encode_frame(frame, config["jpeg_quality"])))
    except DecodeError as error:
        if len(offset) == 1:
            return number, error.reason
        cut_short = error.reason
    stream.close()
    if len(offset) == 1:
        return number, f"no frame from second {begin:g} on, it has {stream.count}"
    size, native = (config["height"], config["width"]), (stream.native_width, stream.native_height)
    return number, StoredFrames(path, np.array(offset), size, stream.fps, *native, cut_short)
