"""How much work a data set is: measured on the beginning of a few of its videos, and extrapolated to all."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelgen.config import Config
from labelgen.decode import frame_times
from labelgen.errors import MachineError, ShardError
from labelgen.labels import LABELS
from labelgen.manifest import Dataset, Video
from labelgen.manifest.segments import Part, seconds_of
from labelgen.processes import cores
from labelgen.run.plan import Plan, ShardTask, configuration, file_sizes, in_order
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.shard import Made, label_shard
from labelgen.shards import ShardReader
from labelgen.shards.checks import escaped

SAMPLE, SECONDS = 5, 20.0  # videos to measure, and how many seconds of each


@dataclass(frozen=True)
class Measured:
    """A video of the sample. seconds: its length; used: how many seconds of it were labelled; bytes: of its file; cost:
    core seconds; stored: bytes of its shard; memory: largest memory of its process in bytes"""

    id: str
    seconds: float
    used: float
    bytes: int
    cost: float
    stored: int
    memory: int


@dataclass(frozen=True)
class Estimate:
    """videos: still to be labelled; hours: of video; core_hours: mean, and at the rates of the fastest and slowest
    video of the sample; wall_hours: with the given workers; disk, memory: bytes of the shards and of all workers; free:
    bytes on the disk of the shards; sample: measurements; failed: the other videos of the sample, with reasons"""

    videos: int
    hours: float
    core_hours: tuple[float, float, float]
    workers: int
    wall_hours: float
    disk: int
    memory: int
    free: int
    sample: tuple[Measured, ...]
    failed: tuple[str, ...]


def estimate(
    dataset: Dataset,
    videos: Sequence[Video],
    out: Path,
    config: Config,
    workers: int,
    stall: float,
    labels: Mapping[str, str] = LABELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Estimate:
    """Label the beginning of a few videos, spread over the sizes of their files, in a temporary folder, which is removed.

    Raises ShardError if none of them can be labelled.
    """
    there = _finished_ids(Path(os.path.abspath(out)) / dataset.name)
    videos = [video for video in videos if escaped(video.id) not in there]
    if not videos:
        raise ShardError(f"{out}: all videos are labelled already; there is nothing to plan")
    sizes = file_sizes(videos)
    lengths, rows = lengths_of(videos, sizes), spread(sizes)
    count = len(rows)
    sample: dict[int, Measured] = {}
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vssl-plan-") as scratch:
        for done, row in enumerate(rows):
            progress(done, count)
            found = _measured(dataset, videos[row], int(sizes[row]), Path(scratch), config, stall, labels)
            if isinstance(found, str):
                failed.append(found)
            else:
                sample[row] = found
        progress(count, count)
    if not sample:
        raise ShardError(f"none of {count} videos could be labelled: {'; '.join(failed)}")
    measured = [*sample.values()]
    seconds = sum(one.seconds for one in measured) / float(lengths[[*sample]].sum()) * float(lengths.sum())
    used, cost = sum(one.used for one in measured), sum(one.cost for one in measured)
    costs = [one.cost / one.used for one in measured]
    at_work = max(1, min(workers, cores()))
    place = Path(os.path.abspath(out))
    while not place.exists():
        place = place.parent
    return Estimate(
        len(videos),
        seconds / 3600,
        (seconds * cost / used / 3600, seconds * min(costs) / 3600, seconds * max(costs) / 3600),
        at_work,
        seconds * cost / used / 3600 / at_work,
        round(seconds * sum(one.stored for one in measured) / used),
        at_work * max(one.memory for one in measured),
        shutil.disk_usage(place).free,
        tuple(measured),
        tuple(failed),
    )


def spread(sizes: np.ndarray) -> list[int]:
    """Rows of a few videos, spread from small to large files."""
    order = np.argsort(sizes, kind="stable")
    count = min(SAMPLE, len(order))
    return [int(order[int((place + 0.5) * len(order) / count)]) for place in range(count)]


def first_seconds(video: Video, max_pixels: int, image_fps: float | None) -> tuple[Video, float, float] | None:
    """The beginning of a video, the length of the whole video and of the beginning in seconds; None if that is unknown."""
    times = [time for time in frame_times(video.path, max_pixels, image_fps=image_fps) if not math.isnan(time)]
    if len(times) < 2:
        return None
    begin, end = 0.0, times[-1] - times[0]
    if (part := video.part) is not None:
        begin, last = part.begin, end if part.end is None else part.end
        if part.frames:
            with contextlib.suppress(ValueError):
                begin, last = seconds_of(part, times)
        end = min(end, last)
    if end <= begin:
        return None
    used = min(SECONDS, end - begin)
    return replace(video, part=Part(begin, begin + used)), end - begin, used


def _finished_ids(folder: Path) -> set[str]:
    """Ids of the videos in finished shards."""
    arrays = (ShardReader(path).arrays for path in folder.glob("[0-9]*.h5"))
    return {id for own in arrays for key in ("videos/id", "failures/id") for id in own[key]}


def lengths_of(videos: Sequence[Video], sizes: np.ndarray) -> np.ndarray:
    """A measure proportional to the lengths of the videos: the bytes of the files, shared among the parts of a file,
    float64 [videos]."""
    parts = [video.part for video in videos]
    if all(part is not None and part.end is not None for part in parts):
        return np.array([part.end - part.begin for part in parts if part and part.end is not None], np.float64)
    return np.maximum(sizes, 0).astype(np.float64)


def _measured(
    dataset: Dataset, video: Video, size: int, scratch: Path, config: Config, stall: float, labels: Mapping[str, str]
) -> Measured | str:
    """The cost of a video, or why it is unknown."""
    begun = first_seconds(video, config.max_pixels, config.image_fps or config.fps)
    if begun is None:
        return f"{video.id}: its length is unknown"
    one, seconds, used = begun

    def identity(videos: Sequence[Video], sizes: np.ndarray) -> dict[str, object]:
        return configuration(dataset, videos, sizes, "all", config, None, labels)

    plan = Plan(scratch, dataset, [one], np.array([size]), in_order(1, 1), config, identity, stall, labels)
    try:
        made, cost, memory = in_new_process(_taking, plan.task("00000.h5", False))
    except (ProcessLost, MachineError) as error:
        return f"{video.id}: {error}"
    path = scratch / "00000.h5"
    if made.fault or not path.exists():
        return f"{video.id}: {made.fault}"
    stored = path.stat().st_size
    path.unlink()
    if not made.counts["frames"]:
        return f"{video.id}: no frame can be decoded"
    return Measured(video.id, seconds, used, size, cost, stored, memory)


def _taking(task: ShardTask) -> tuple[Made, float, int]:
    """Make a shard; returns it, the processor seconds that it took, and the largest memory of this process in bytes."""
    from labelgen.run.guard import register
    from labelgen.run.video import compile_kernels

    register(task)
    compile_kernels(task.config.flow)
    begin = time.process_time()
    made = label_shard(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return made, time.process_time() - begin, peak if sys.platform == "darwin" else 1024 * peak
