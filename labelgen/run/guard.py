"""One video under a time limit, in this process or in a separate one."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar

from labelgen.errors import DecodeError, MachineError, WriteError
from labelgen.files import writing
from labelgen.flow import BACKENDS
from labelgen.labels import LABELS
from labelgen.manifest import Video
from labelgen.run.faults import machine_fault, unreadable
from labelgen.run.jobs import Job
from labelgen.run.plan import ShardTask
from labelgen.run.process import ProcessLost, end_unless_called, in_new_process

if TYPE_CHECKING:
    from labelgen.run.video import Clock, Record


class VideoFailed(Exception):
    """A video failed through its own fault. stage: "decode", "label", "flow" or "process"; reason: in words."""


def register(job: Job) -> None:
    """Register the label kinds and flow backends of the process that made the job, including those added at run time."""
    for registry, of_job in ((LABELS, job.labels), (BACKENDS, job.flows)):
        names = dict(of_job)  # a copy: in the process that made the job it is the same dict
        registry.clear()
        registry.update(names)


class _Done(Protocol):
    """The outcome of a video. cut_short: why decoding stopped early, "" if it did not."""

    cut_short: str


_Made = TypeVar("_Made", bound=_Done)


def here(video: Video, job: Job, stage: str, work: Callable[[Callable[[], None]], _Made]) -> _Made:
    """`work(alive)` on a video in this process, which is ended if `alive` is not called within the time limit.

    Raises VideoFailed for faults of the video, at this stage unless it cannot be decoded, MachineError for other
    faults, WriteError if the disk is full.
    """
    try:
        with ended_if_stalled(job.stall) as alive:
            done = work(alive)
    except (WriteError, MachineError, VideoFailed):
        raise
    except Exception as error:  # no video may stop the others
        if why := machine_fault(error, video, job):
            raise MachineError(f"{video.id}: {why}") from error
        if isinstance(error, DecodeError):
            raise VideoFailed("decode", error.reason) from error
        raise VideoFailed(stage, f"{type(error).__name__}: {error}") from error
    if done.cut_short and (why := unreadable(video, job)):  # FFmpeg takes that for the end of the file
        raise MachineError(f"{video.id}: {why}")
    return done


def apart(video: Video, job: Job, function: Callable[..., _Made], clock: Clock, *arguments: Any) -> _Made:
    """`function(video, job, clock, *arguments)` in a separate process. If that dies, only this video fails, unless the
    machine is at fault; its time counts in `clock`. Raises those errors of `here` that the function raises."""
    try:
        outcome, seconds, counts = in_new_process(_outcome, function, video, job, arguments)
    except ProcessLost as lost:
        if lost.of_machine:
            raise MachineError(f"{video.id}: {lost}; check memory") from None
        raise VideoFailed("process", why_lost(lost, job.stall)) from None
    clock.seconds.update(seconds)
    clock.counts.update(counts)
    if isinstance(outcome, Exception):
        raise outcome
    done: _Made = outcome
    return done


def _outcome(
    function: Callable[..., _Made], video: Video, job: Job, arguments: Sequence[Any]
) -> tuple[_Made | Exception, Counter[str], Counter[str]]:
    from labelgen.run.video import Clock

    register(job)
    clock = Clock()
    outcome: _Made | Exception
    try:
        with writing(job.path):
            outcome = function(video, job, clock, *arguments)
    except (VideoFailed, MachineError, WriteError) as error:  # returned and raised there, so that the work done counts
        outcome = error
    return outcome, clock.seconds, clock.counts


def label_here(video: Video, task: ShardTask, spool: BinaryIO, clock: Clock) -> Record:
    """`label_video` in this process, see `here`; frames go to `spool`."""
    from labelgen.run.video import label_video

    def work(alive: Callable[[], None]) -> Record:
        def write(encoded: bytes) -> None:
            with writing(task.path):
                spool.write(encoded)
            alive()

        return label_video(video, task.config, write, clock, alive)

    return here(video, task, "label", work)


def label_in_new_process(video: Video, task: ShardTask, spool: BinaryIO, clock: Clock) -> Record:
    """`label_here` in a separate process, see `apart`."""
    with writing(task.path):
        spool.flush()
    try:
        return apart(video, task, _label_to_file, clock, spool.name)
    finally:
        spool.seek(0, os.SEEK_END)


def _label_to_file(video: Video, task: ShardTask, clock: Clock, name: str) -> Record:
    from labelgen.run.video import compile_kernels

    compile_kernels(task.config.flow)
    with open(name, "ab") as spool:
        return label_here(video, task, spool, clock)


@contextlib.contextmanager
def ended_if_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """Within the block, this process is ended if the yielded function is not called for this many seconds."""
    slack = min(1, seconds / 4)  # calls within it set no new alarm, which costs as much as a small frame
    armed = time.monotonic()
    end_unless_called(seconds + slack)

    def alive() -> None:
        nonlocal armed
        if (now := time.monotonic()) - armed > slack:
            armed = now
            end_unless_called(seconds + slack)

    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()


def why_lost(lost: ProcessLost, stall: float) -> str:
    """The reason, for a list of failures, why a process under `ended_if_stalled` died."""
    return f"no frame for {stall:g} s" if lost.stalled else str(lost)
