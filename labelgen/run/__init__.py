"""Making shards: which are missing, who makes them, and what failed."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelgen.config import Config
from labelgen.errors import ConfigError, MachineError, ShardError
from labelgen.files import locked, write_json, writing
from labelgen.manifest import Dataset, Video
from labelgen.run import plan, report
from labelgen.run.finished import Finished
from labelgen.run.plan import Task
from labelgen.run.shard import Made, check, label_shard, label_shard_on_cluster
from labelgen.run.workers import WorkerLost, pool
from labelgen.shards.reader import warn_without_maps

STALL_SECONDS = 300.0  # a video that yields no frame for so long hangs, and its process is ended
_TOLD = 5  # shards that a message names


def run(
    dataset: Dataset,
    videos: Sequence[Video],
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
    the Dask cluster cannot be used, MachineError where shards could not be made for reasons that are not their videos'; all
    others are made before.
    """
    if workers < 1 or (videos_per_shard is not None and videos_per_shard < 1):
        raise ConfigError(f"workers is {workers}, videos-per-shard is {videos_per_shard}; expected at least 1")
    per_shard = videos_per_shard or min(32, -(-len(videos) // 64))
    sizes = plan.file_sizes(videos)
    identity = plan.configuration(dataset, videos, sizes, split, config, per_shard)
    folder = Path(os.path.abspath(out)) / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    total = -(-len(videos) // per_shard)

    def in_shard(index: int) -> int:
        return min(per_shard, len(videos) - index * per_shard)

    def task(index: int) -> Task:
        at = slice(index * per_shard, (index + 1) * per_shard)
        batch = videos[at]
        bytes_ = dict(zip((video.id for video in batch), sizes[at].tolist(), strict=True))
        return Task(
            folder / plan.shard_name(index), batch, dataset.root, dataset.splits, config, identity, stall, bytes_
        )

    busy = ShardError(f"{folder}: another labelgen is writing here; wait for it, or name another output folder")
    with locked(folder, busy, say):
        finished = Finished(folder)
        there = sorted(folder.glob("[0-9]*.h5"))
        plan.check_configuration(there, finished, identity, videos)
        suspects = _clean(folder)
        names = {path.name for path in there}
        missing = [index for index in range(total) if plan.shard_name(index) not in names]
        done = len(videos) - sum(map(in_shard, missing))
        if done:
            say(f"{folder}: {total - len(missing)} of {total} shards are there ({done} videos)")
        progress(done, len(videos), 0)
        seconds: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        at_work = 0
        instructions: set[str] = set()
        faults: dict[str, str] = {}
        if missing:
            with pool(workers, scheduler, say) as (each, at_work):
                if scheduler is None:
                    from labelgen import compiled
                    from labelgen.run.video import compile_kernels

                    with writing("the folder of Numba's compiled kernels"):
                        compile_kernels(config.flow)  # here once: the workers load them from Numba's cache
                    if compiled.uncached:
                        say(compiled.uncached)
                make = functools.partial(each, label_shard if scheduler is None else label_shard_on_cluster)
                order = plan.largest_first(missing, sizes, per_shard)
                for index, made in _make_all(order, task, make, folder, suspects, say):
                    seconds.update(made.seconds)
                    counts.update(made.counts)
                    if made.fault:
                        faults[plan.shard_name(index)] = made.fault
                        continue
                    instructions.add(made.instructions)
                    finished.summary(folder / plan.shard_name(index))
                    done += in_shard(index)
                    progress(done, len(videos), counts["frames"])
        if faults:
            told = "; ".join(f"{name}: {fault}" for name, fault in sorted(faults.items())[:_TOLD])
            raise MachineError(
                f"{folder}: {len(faults)} of {total} shards could not be made, which is not the fault of their videos ({told}"
                f"{'; ...' if len(faults) > _TOLD else ''}); nothing of them is written, finished shards are kept: once disk, "
                "network and memory are well the same command goes on. Without a file that is gone or unreadable for good, name "
                "another output folder"
            )
        warn_without_maps(str(folder / plan.shard_name(0)))
        summaries = (finished.summary(folder / plan.shard_name(index)) for index in range(total))
        content = report.report(dataset, videos, summaries, identity)
        content["this_run"] = report.this_run(at_work, time.perf_counter() - begin, seconds, counts, instructions)
        write_json(folder / "report.json", content)
    return content


def _make_all(
    order: list[int],
    task: Callable[[int], Task],
    make: Callable[[Callable[[int], Task], list[int]], Iterator[Made]],
    folder: Path,
    suspects: set[str],
    say: Callable[[str], None],
) -> Iterator[tuple[int, Made]]:
    """Make all shards of these numbers, whatever happens to the workers; yields each number with what `label_shard` returns.

    make: takes the tasks' function and numbers, and yields the results of `label_shard` as they come
    suspects: names of shards whose making has ended a process before.
    """
    waiting = {plan.shard_name(index): index for index in order}

    def careful(index: int) -> Task:
        return replace(task(index), isolated=plan.shard_name(index) in suspects)

    try:
        while waiting:
            try:
                for made in make(careful, list(waiting.values())):
                    yield waiting.pop(os.path.basename(made.path)), made
            except WorkerLost:
                lost = _clean(folder)
                if lost <= suspects:  # not even alone could they be finished
                    raise ShardError(
                        f"{folder}: the worker was killed at {', '.join(sorted(lost)) or 'its start'}; {check(folder)}"
                    ) from None
                suspects |= lost
                say(f"a worker was lost; {', '.join(sorted(lost))}: trying each video in a process of its own")
    finally:
        _clean(folder)


def _clean(folder: Path) -> set[str]:
    """Remove what killed processes left behind; returns the names of the shards they were at."""
    left = list(folder.glob(".*.tmp"))
    for path in left:
        path.unlink(missing_ok=True)
    return {path.name[1:].split(".h5")[0] + ".h5" for path in left}
