"""Jobs that turn some videos into shards or flow on disk, and workers that do them, even if some of these die."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from labelgen.errors import ClusterError, MachineError, ShardError, WriteError
from labelgen.files import writing
from labelgen.flow import BACKENDS
from labelgen.labels import LABELS
from labelgen.manifest import Video
from labelgen.processes import keep_memory
from labelgen.progress import WARNING
from labelgen.run.process import ProcessLost, in_new_process
from labelgen.run.workers import WorkerLost

_LEFT = re.compile(r"\.(.+?)\.[a-z0-9_]{8}(\.\w+)?\.tmp")  # the name of a job whose temporary file is left
_ROOM = 1 << 20  # free bytes below which a disk counts as full


@dataclass(frozen=True)
class Job:
    """Something to be made from some videos, by one worker.

    path:     of the result; its name is that of the job. While it is being made, a file or folder `.NAME.xxxxxxxx.tmp`
              exists beside it
    root:     folder of the videos
    stall:    seconds without a sign of life after which a video is abandoned
    sizes:    bytes of the videos' files by id, see `plan.file_sizes`
    isolated: each video in a separate process, because one of them has killed its worker before
    labels, flows: the registered label kinds and flow backends, so that workers know those added here, too
    """

    path: Path
    videos: Sequence[Video]
    root: Path
    stall: float = field(kw_only=True)
    sizes: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    isolated: bool = field(default=False, kw_only=True)
    labels: Mapping[str, str] = field(default_factory=lambda: dict(LABELS), kw_only=True)
    flows: Mapping[str, str] = field(default_factory=lambda: dict(BACKENDS), kw_only=True)


class Made(NamedTuple):
    """The outcome of a job: seconds per stage, counts, the processor of its kernels, see `compiled.instructions`, and
    notes; or, if it was not made, the fault of the machine."""

    path: str
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    instructions: str = ""
    fault: str = ""
    notes: Mapping[str, Any] = {}


_Job = TypeVar("_Job", bound=Job)


def not_made(job: Job, why: str) -> Made:
    """The outcome of a job that failed because of the machine."""
    return Made(str(job.path), fault=why)


def check(folder: Path) -> str:
    """What to check if a process that writes into a folder dies: the disk if it is full, else memory."""
    with contextlib.suppress(OSError):
        if (free := shutil.disk_usage(folder).free) < _ROOM:
            return f"the disk of {folder} has {free:,} bytes left: make room"
    return "check memory"


def make(function: Callable[[_Job], Made], job: _Job, finished: str) -> Made:
    """`function(job)`, or the outcome if the machine fails. finished: what the run keeps then, for messages.

    Raises ShardError if the result cannot be written.
    """
    keep_memory()
    try:
        with writing(job.path):
            return function(job)
    except MachineError as error:
        return not_made(job, str(error))
    except MemoryError:
        return not_made(job, "not enough memory")
    except WriteError as error:
        raise ShardError(f"{error}; finished {finished} are kept: make room and run the same command again") from error


def on_cluster(function: Callable[[_Job], Made], job: _Job) -> Made:
    """`function(job)` in a separate process, so that a video cannot kill the Dask worker and its other threads.

    Raises ClusterError if this machine does not see the videos and the results.
    """
    for place in (job.root, job.path.parent / ".lock"):
        if not place.exists():
            raise ClusterError(
                f"{place} is not on {socket.gethostname()}; all Dask workers need the folders of the videos and "
                "of the results under the same paths"
            )
    made: Made
    try:
        try:
            made = in_new_process(function, job)
        except ProcessLost:
            made = in_new_process(function, replace(job, isolated=True))
    except ProcessLost as lost:
        return not_made(job, f"{lost} even with each video in a separate process; {check(job.path.parent)}")
    except MachineError as error:
        return not_made(job, str(error))
    return made


def made_of(
    folder: Path,
    missing: Iterable[str],
    job: Callable[[str, bool], Job],
    each: Callable[[Iterable[Job]], Iterator[Made]],
    suspects: set[str],
    say: Callable[[str], None],
) -> Iterator[tuple[str, Made]]:
    """Do the missing jobs of a folder, even if workers die; yields the name of each job with its outcome.

    missing: names of the jobs, in the order in which they are begun; job: (name, isolated) -> Job
    each: yields the results of jobs as they come; suspects: names of jobs that have killed a process before
    """
    waiting = dict.fromkeys(missing)  # keeps their order
    try:
        while waiting:
            jobs = (job(name, name in suspects) for name in list(waiting))
            try:
                for made in each(jobs):
                    name = os.path.basename(made.path)
                    del waiting[name]
                    yield name, made
            except WorkerLost:
                lost = clean(folder)
                if lost <= suspects:  # they failed even alone
                    raise ShardError(
                        f"{folder}: the worker was killed at {', '.join(sorted(lost)) or 'its start'}; {check(folder)}"
                    ) from None
                suspects |= lost
                say(f"{WARNING}a worker was lost; {', '.join(sorted(lost))}: trying each video in a separate process")
    finally:
        clean(folder)


def clean(folder: Path) -> set[str]:
    """Remove what killed processes left behind; returns the names of the jobs that they were doing."""
    left = {path: found[1] for path in folder.glob(".*.tmp") if (found := _LEFT.fullmatch(path.name))}
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return set(left.values())
