"""One video under a time limit: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from labelgen.errors import DecodeError, MachineError, WriteError
from labelgen.files import writing
from labelgen.flow import BACKENDS
from labelgen.labels import LABELS
from labelgen.manifest import Video
from labelgen.run.faults import machine_fault, unreadable
from labelgen.run.plan import Task
from labelgen.run.process import ProcessLost, end_unless_called, in_new_process

if TYPE_CHECKING:
    from labelgen.run.video import Clock, Record


class VideoFailed(Exception):
    """A video cannot be labelled, for a fault of its own: stage, "decode", "label" or "process", and reason."""


def register(task: Task) -> None:
    """Know the label kinds and flow backends of the process that made the task, those that it added at run time, too."""
    for registry, of_task in ((LABELS, task.labels), (BACKENDS, task.flows)):
        names = dict(of_task)  # a copy: in the process that made the task they are one
        registry.clear()
        registry.update(names)


def label_here(video: Video, task: Task, spool: BinaryIO, clock: Clock) -> Record:
    """`label_video` in this process, which is ended if nothing is done for too long; frames go to `spool`.

    Raises VideoFailed for what is the video's fault, MachineError for what is not, WriteError if the disk is full.
    """
    from labelgen.run.video import label_video

    def write(encoded: bytes) -> None:
        with writing(task.path):
            spool.write(encoded)
        alive()

    try:
        with ended_if_stalled(task.stall) as alive:
            record = label_video(video, task.config, write, clock, alive)
    except (WriteError, MachineError):
        raise
    except Exception as error:  # whatever one video does, the others are labelled
        if why := machine_fault(error, video, task):
            raise MachineError(f"{video.id}: {why}") from error
        if isinstance(error, DecodeError):
            raise VideoFailed("decode", error.reason) from error
        raise VideoFailed("label", f"{type(error).__name__}: {error}") from error
    if record.cut_short and (why := unreadable(video, task)):  # which FFmpeg takes for the end of the file
        raise MachineError(f"{video.id}: {why}")
    return record


@contextlib.contextmanager
def ended_if_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """In the block, this process is ended if the function that it yields has not been called for so many seconds."""
    slack = min(1, seconds / 4)  # a call within it sets no new alarm, which takes as long as a small frame
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
    """The reason for a list of failures: a process under `ended_if_stalled` died."""
    return f"no frame for {stall:g} s" if lost.stalled else str(lost)


def label_in_new_process(video: Video, task: Task, spool: BinaryIO, clock: Clock) -> Record:
    """`label_here` in a process of its own, whose death is this video's failure alone, unless it is the machine's fault.

    Raises what `label_here` raises.
    """
    with writing(task.path):
        spool.flush()
    try:
        outcome, seconds, counts = in_new_process(_label_to_file, video, task, spool.name)
    except ProcessLost as lost:
        if lost.of_machine:
            raise MachineError(f"{video.id}: {lost}; check memory") from None
        raise VideoFailed("process", why_lost(lost, task.stall)) from None
    finally:
        spool.seek(0, os.SEEK_END)
    clock.seconds.update(seconds)
    clock.counts.update(counts)
    if isinstance(outcome, Exception):
        raise outcome
    record: Record = outcome
    return record


def _label_to_file(video: Video, task: Task, name: str) -> tuple[Record | Exception, Counter[str], Counter[str]]:
    from labelgen.run.video import Clock, compile_kernels

    register(task)
    compile_kernels(task.config.flow)
    clock = Clock()
    outcome: Record | Exception
    try:
        with writing(task.path), open(name, "ab") as spool:
            outcome = label_here(video, task, spool, clock)
    except (
        VideoFailed,
        MachineError,
        WriteError,
    ) as error:  # given back, for the caller to raise: what was done counts
        outcome = error
    return outcome, clock.seconds, clock.counts
