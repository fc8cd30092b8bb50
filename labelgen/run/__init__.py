"""Making shards: which are missing, who makes them, and what failed."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelgen.config import Config
from labelgen.errors import ConfigError, ShardError
from labelgen.files import locked, write_json
from labelgen.manifest import Dataset, Video
from labelgen.run import plan, report
from labelgen.run.plan import Task
from labelgen.run.shard import label_shard, label_shard_on_cluster
from labelgen.run.workers import WorkerLost, pool

STALL_SECONDS = 300.0  # a video that yields no frame for so long hangs, and its process is ended


def run(
    dataset: Dataset,
    videos: tuple[Video, ...],
    out: Path,
    config: Config,
    workers: int = 1,
    videos_per_shard: int | None = None,
    stall: float = STALL_SECONDS,
    progress: Callable[[int, int, int], None] = lambda done, total, frames: None,
    say: Callable[[str], None] = lambda text: None,
    split: str = "all",
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Label `videos` of `dataset` into shards `out/<dataset>/00000.h5` ...; shards that are there are kept.

    workers: processes; at most one per core is started
    videos_per_shard: None makes about 64 shards of at most 32 videos
    progress: called with videos done, videos in all and frames decoded so far, after each shard
    split: name of the part of the data set that `videos` is, for the configuration
    scheduler: address of a Dask scheduler, whose workers are used in place of processes of this machine

    Returns the report that is also written to `out/<dataset>/report.json`.
    Raises ShardError where the folder holds shards of another configuration, or cannot be written, ClusterError where
    the Dask cluster cannot be used.
    """
    if workers < 1 or (videos_per_shard is not None and videos_per_shard < 1):
        raise ConfigError(f"workers is {workers}, videos-per-shard is {videos_per_shard}; expected at least 1")
    per_shard = videos_per_shard or min(32, -(-len(videos) // 64))
    identity = plan.configuration(dataset, videos, split, config, per_shard)
    folder = Path(os.path.abspath(out)) / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    tasks = plan.tasks(dataset, videos, folder, config, identity, stall)
    busy = ShardError(f"{folder}: another labelgen is writing here; wait for it, or name another output folder")
    with locked(folder, busy, say):
        plan.check_configuration(folder, identity, {video.id for video in videos})
        suspects = _clean(folder)
        missing = [task for task in tasks if not task.path.exists()]
        done = len(videos) - sum(len(task.videos) for task in missing)
        if done:
            say(f"{folder}: {len(tasks) - len(missing)} of {len(tasks)} shards are there ({done} videos)")
        progress(done, len(videos), 0)
        seconds: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        at_work = 0
        if missing:
            with pool(workers, scheduler, say) as (each, at_work):
                if scheduler is None:
                    from labelgen.run.video import compile_kernels

                    compile_kernels(config.flow)  # here once: the workers load them from Numba's cache
                make = functools.partial(each, label_shard if scheduler is None else label_shard_on_cluster)
                for task, shard_seconds, shard_counts in _make_all(missing, make, folder, suspects, say):
                    seconds.update(shard_seconds)
                    counts.update(shard_counts)
                    done += len(task.videos)
                    progress(done, len(videos), counts["frames"])
        content = report.report(dataset, videos, [task.path for task in tasks], identity)
        content["this_run"] = report.this_run(at_work, time.perf_counter() - begin, seconds, counts)
        write_json(folder / "report.json", content)
    return content


def _make_all(
    tasks: list[Task],
    make: Callable[[list[Task]], Iterator[tuple[str, Counter[str], Counter[str]]]],
    folder: Path,
    suspects: set[str],
    say: Callable[[str], None],
) -> Iterator[tuple[Task, Counter[str], Counter[str]]]:
    """Make all shards, whatever happens to the workers; yields each task with its seconds and counts.

    make: takes tasks and yields the results of `label_shard` as they come
    suspects: names of shards whose making has ended a process before.
    """
    try:
        while tasks:
            waiting = {str(task.path): replace(task, isolated=task.path.name in suspects) for task in tasks}
            try:
                for path, seconds, counts in make(list(waiting.values())):
                    yield waiting.pop(path), seconds, counts
            except WorkerLost:
                lost = _clean(folder)
                if lost <= suspects:  # not even alone could they be finished
                    raise ShardError(
                        f"{folder}: the worker was killed at {', '.join(sorted(lost)) or 'its start'}; check memory"
                    ) from None
                suspects |= lost
                say(f"a worker was lost; {', '.join(sorted(lost))}: trying each video in a process of its own")
            tasks = list(waiting.values())
    finally:
        _clean(folder)


def _clean(folder: Path) -> set[str]:
    """Remove what killed processes left behind; returns the names of the shards they were at."""
    left = list(folder.glob(".*.tmp"))
    for path in left:
        path.unlink(missing_ok=True)
    return {path.name[1:].split(".h5")[0] + ".h5" for path in left}
