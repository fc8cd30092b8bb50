"""One shard: its videos are processed one after the other, joined and written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from labelgen import shards
from labelgen.config import Config
from labelgen.labels import kinds
from labelgen.labels.patterns import crop_grid
from labelgen.manifest import Video
from labelgen.run.guard import VideoFailed, label_here, label_in_new_process, register
from labelgen.run.jobs import Made, make, on_cluster
from labelgen.run.plan import ShardTask
from labelgen.shards.checks import escaped
from labelgen.shards.schema import sizes

if TYPE_CHECKING:
    from labelgen.run.video import Record


def label_shard_on_cluster(task: ShardTask) -> Made:
    """`label_shard` in a separate process, see `on_cluster`."""
    return on_cluster(label_shard, task)


def label_shard(task: ShardTask) -> Made:
    """Make one shard; videos that fail are recorded in it. If the machine fails, nothing is recorded.

    Raises ShardError if the shard cannot be written.
    """
    return make(_label_shard, task, "shards")


def _label_shard(task: ShardTask) -> Made:
    import cv2

    from labelgen.compiled import instructions
    from labelgen.run.video import Clock, compile_kernels

    register(task)
    cv2.setNumThreads(1)
    compile_kernels(task.config.flow)  # so that loading them does not count as a stall
    clock, records, failures = Clock(), [], []
    label = label_in_new_process if task.isolated else label_here
    with _spool(task.path) as spool:
        for video in task.videos:
            begin = spool.tell()
            stage, reason = "decode", ""
            try:
                record = label(video, task, spool, clock)
                records.append(record)
                if record.cut_short:
                    reason = f"kept {len(record.jpeg_sizes)} frames: {record.cut_short}"
            except VideoFailed as failed:
                stage, reason = failed.args
                spool.seek(begin)
                spool.truncate()
            if reason:
                path = relative_path(video, task.root)
                failures.append({"id": video.id, "path": path, "stage": stage, "reason": reason[:10_000]})
        with clock("write"):
            arrays = shard_arrays(records, failures, task.root, task.config, len(task.splits))
            grid = crop_grid(task.config.height, task.config.width, task.config.crop)
            shards.write(task.path, arrays, spool, task.identity, grid, task.splits)
    return Made(str(task.path), clock.seconds, clock.counts, instructions())


@contextlib.contextmanager
def _spool(path: Path) -> Iterator[BinaryIO]:
    """A file beside the shard for its frames, which exists while the shard is being made."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".jpeg.tmp", dir=path.parent)
    try:
        os.close(handle)
        with open(name, "wb+") as spool:
            yield spool
    finally:
        Path(name).unlink(missing_ok=True)


def relative_path(video: Video, root: Path) -> str:
    """Path of a video below the data set's root; bytes that are not UTF-8 are written as escapes, as are control characters."""
    return escaped(os.fsencode(os.path.relpath(video.path, root)).decode("utf-8", "backslashreplace"))


def shard_arrays(
    records: Sequence[Record], failures: Sequence[dict[str, str]], root: Path, config: Config, splits: int
) -> dict[str, Any]:
    """Join the records of a shard's videos into the data sets of its schema, see docs/shards.md."""
    n_frames = np.array([len(record.jpeg_sizes) for record in records], np.int64)
    videos = [record.video for record in records]
    arrays: dict[str, Any] = {
        "frames/offset": np.cumsum([0, *(size for record in records for size in record.jpeg_sizes)], dtype=np.int64),
        "frames/time": np.concatenate([[], *(record.time for record in records)]),
        "frames/damage": np.frombuffer(b"".join(record.damage for record in records), np.uint8),
        "videos/id": [escaped(video.id) for video in videos],
        "videos/path": [relative_path(video, root) for video in videos],
        "videos/label": [escaped(video.label) for video in videos],
        "videos/group": [escaped(video.group) for video in videos],
        "videos/split": np.array([video.split for video in videos]).reshape(len(videos), splits),
        "videos/first_frame": np.cumsum(n_frames) - n_frames,
        "videos/n_frames": n_frames,
        "videos/fps": [record.fps for record in records],
        "videos/width": [record.native_width for record in records],
        "videos/height": [record.native_height for record in records],
        "clips/video": np.repeat(np.arange(len(records)), [len(record.start) for record in records]),
        "clips/start": [start for record in records for start in record.start],
        **{
            f"failures/{name}": [escaped(fail[name]) for fail in failures] for name in ("id", "path", "stage", "reason")
        },
    }
    crops = len(crop_grid(config.height, config.width, config.crop))
    length = sizes(arrays, vars(config), crops, splits)
    for kind in kinds():
        for field in kind.fields:
            if field.axes[0] == "clips":
                rows = [values for record in records for values in record.labels.get(field.name, ())]
            else:
                rows = [record.labels.get(field.name, field.missing) for record in records]
            arrays[field.name] = np.empty(field.shape(length), field.dtype)
            for at, values in enumerate(rows):
                arrays[field.name][at] = values
    return arrays
