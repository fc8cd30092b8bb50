"""Making shards: which ones are missing, which workers make them, and what failed."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelgen.config import Config
from labelgen.errors import ConfigError, MachineError, ShardError
from labelgen.files import locked, write_json, writing
from labelgen.labels import LABELS
from labelgen.manifest import Dataset, Video
from labelgen.progress import WARNING, counted, detail
from labelgen.run import report
from labelgen.run.finished import Finished
from labelgen.run.growth import Growth, grow
from labelgen.run.jobs import clean, made_of
from labelgen.run.plan import Plan, check_configuration, configuration, file_sizes, in_order
from labelgen.run.shard import label_shard, label_shard_on_cluster
from labelgen.run.workers import pool
from labelgen.shards.collection import read_collection, write_collection
from labelgen.shards.reader import warn_without_maps

STALL_SECONDS = 300.0  # a video without a frame for this long hangs, and its process is ended
_SHOWN = 5  # shards named in a message


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
    labels: Mapping[str, str] = LABELS,
    add: bool = False,
) -> dict[str, Any]:
    """Label videos into shards `out/<dataset>/00000.h5` ...; existing shards are kept, so that the same call resumes.

    Parameters
    ----------
    dataset : Dataset
        See `labelgen.manifest.load`.
    videos : sequence of Video
        All of `dataset.videos`, or some, see `labelgen.manifest.select`.
    out : Path
        The folder to write to.
    config : Config
        What is stored and labelled.
    workers : int
        Processes; at most one per core is started.
    videos_per_shard : int
        None for about 64 shards of at most 32 videos.
    stall : float
        Seconds without a frame after which a video is given up.
    progress : callable
        Called after each shard with the videos done, all videos and the frames decoded so far.
    say : callable
        Called with lines of text for the user.
    split : str
        Which part of the data set `videos` is, for the configuration.
    scheduler : str
        Address of a Dask scheduler, whose workers are used instead of processes of this machine.
    labels : mapping
        The label kinds to make, as in LABELS; without any, shards hold frames only.
    add : bool
        Add shards of new videos, and drop deleted videos, see `labelgen.run.growth`.

    Returns
    -------
    dict
        The report, which is also written to `out/<dataset>/report.json`; "failures" lists the videos that failed, and why.

    Raises
    ------
    ShardError
        If the folder holds shards of another configuration or is not writable.
    ClusterError
        If the Dask cluster cannot be used.
    MachineError
        Once all other shards are made, if some failed because of the machine and not of their videos.

    Examples
    --------
    >>> from pathlib import Path
    >>> from labelgen.config import Config
    >>> from labelgen.manifest import load
    >>> from labelgen.run import run
    >>> dataset = load("folder", "videos")
    >>> report = run(dataset, dataset.videos, Path("frames"), Config(height=48, width=64, crop=32), labels={})
    >>> report["videos"]["labelled"], report["frames"], report["failures"]
    (2, 40, [])
    """
    if workers < 1 or (videos_per_shard is not None and videos_per_shard < 1):
        raise ConfigError(f"workers is {workers}, videos-per-shard is {videos_per_shard}; expected at least 1")
    per_shard = videos_per_shard or min(32, -(-len(videos) // 64))
    sizes = file_sizes(videos)

    def of_shard(videos: Sequence[Video], sizes: np.ndarray) -> dict[str, Any]:
        return configuration(dataset, videos, sizes, split, config, None, labels)

    identity = configuration(dataset, videos, sizes, split, config, None if add else per_shard, labels)
    folder = Path(os.path.abspath(out)) / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    busy = ShardError(f"{folder}: another labelgen is writing here; wait for it, or choose another output folder")
    with locked(folder, busy, say):
        finished = Finished(folder)
        suspects = clean(folder)
        growth: Growth | None = None
        if add:
            growth = grow(folder, dataset, videos, sizes, of_shard, videos_per_shard, finished)
            told = folder, dataset, growth.videos, growth.sizes, growth.rows, config, of_shard, stall, dict(labels)
        else:
            if read_collection(folder) is not None:
                raise ShardError(
                    f"{folder}: has grown by --add; label into it with --add, or choose another output folder"
                )
            check_configuration(sorted(folder.glob("[0-9]*.h5")), finished, identity, videos)
            rows = in_order(len(videos), per_shard)
            told = folder, dataset, videos, sizes, rows, config, lambda videos, sizes: identity, stall, dict(labels)
        plan = Plan(*told)
        names = sorted(growth.shards) if growth else plan.names
        missing = plan.missing(path.name for path in folder.glob("[0-9]*.h5"))
        done = len(videos) - sum(map(plan.count, missing))
        if done:
            there = f"{len(names) - len(missing)} of {counted(len(names), 'shard is', 'shards are')} done"
            say(f"{folder}: {there} ({counted(done, 'video')})")
        progress(done, len(videos), 0)
        seconds: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        at_work = 0
        instructions: set[str] = set()
        faults: dict[str, str] = {}
        if missing:
            with pool(workers, scheduler, say) as (each, at_work):
                if scheduler is None and labels:
                    from labelgen.run.video import compile_kernels

                    compile_once(functools.partial(compile_kernels, config.flow), say)
                each_shard = functools.partial(each, label_shard if scheduler is None else label_shard_on_cluster)
                for name, made in made_of(folder, missing, plan.task, each_shard, suspects, say):
                    seconds.update(made.seconds)
                    counts.update(made.counts)
                    if made.fault:
                        faults[name] = made.fault
                        continue
                    instructions.add(made.instructions)
                    finished.summary(folder / name, plan.bytes_of(name))
                    took = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in made.seconds.items())
                    detail(f"{folder / name}: {counted(plan.count(name), 'video')}: {took}")
                    done += plan.count(name)
                    progress(done, len(videos), counts["frames"])
        if faults:
            first = "; ".join(f"{name}: {fault}" for name, fault in sorted(faults.items())[:_SHOWN])
            raise MachineError(
                f"{folder}: {len(faults)} of {len(names)} shards failed because of the machine, not of their videos "
                f"({first}{'; ...' if len(faults) > _SHOWN else ''}); nothing of them is written, finished shards are kept: once "
                "disk, network and memory work again, the same command continues. To go on without a file that is lost for good, "
                "choose another output folder"
            )
        if names:
            warn_without_maps(str(folder / names[0]))
        content = report.report(dataset, videos, (finished.summary(folder / name) for name in names), identity)
        if growth:
            write_collection(folder, dict.fromkeys(names, ()))
            content["added"] = {name: getattr(growth, name) for name in ("new", "kept", "forgotten", "changed")}
        content["this_run"] = report.this_run(at_work, time.perf_counter() - begin, seconds, counts, instructions)
        write_json(folder / "report.json", content)
    return content


def compile_once(compile_kernels: Callable[[], object], say: Callable[[str], None]) -> None:
    """Compile the kernels here: the workers load them from Numba's cache."""
    from labelgen import compiled

    with writing("the folder of Numba's compiled kernels"):
        compile_kernels()
    if compiled.uncached:
        say(f"{WARNING}{compiled.uncached}")
