"""One video under a time limit: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TextIO

from labelgen.flow import BACKENDS
from labelgen.labels import LABELS
from labelgen.manifest import Video
from labelgen.run.plan import Task
from labelgen.run.process import ProcessLost, in_new_process

if TYPE_CHECKING:
    from labelgen.run.video import Clock, Record


class VideoLost(Exception):
    """The process that labelled a video died, or was ended because it hung."""


def register(task: Task) -> None:
    """Know the label kinds and flow backends of the process that made the task, those that it added at run time, too."""
    for registry, of_task in ((LABELS, task.labels), (BACKENDS, task.flows)):
        names = dict(of_task)  # a copy: in the process that made the task they are one
        registry.clear()
        registry.update(names)


def label_here(video: Video, task: Task, spool: BinaryIO, clock: Clock) -> Record:
    """`label_video` in this process, which is ended where no frame comes for too long; frames go to `spool`."""
    from labelgen.run.video import label_video

    with ended_if_stalled(task.stall) as alive:

        def write(encoded: bytes) -> None:
            spool.write(encoded)
            alive()

        return label_video(video, task.config, write, clock, alive)


@contextlib.contextmanager
def ended_if_stalled(seconds: float) -> Iterator[Callable[[], None]]:
    """In the block, this process is ended where the function that it yields has not been called for so many seconds."""
    armed = _arm(seconds)

    def alive() -> None:
        nonlocal armed
        if time.monotonic() - armed > 1:
            armed = _arm(seconds)

    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()


def why_lost(lost: ProcessLost, stall: float) -> str:
    """The reason for a list of failures: a process under `ended_if_stalled` died."""
    stalled = lost.status == 1  # how faulthandler ends a process
    return f"no frame for {stall:g} s" if stalled else str(lost)


def _arm(seconds: float) -> float:
    """End this process unless armed again within so many seconds: a hang in foreign code can be ended in no other way."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere())
    return time.monotonic()


@functools.cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # faulthandler needs a file that stays open


def label_in_new_process(video: Video, task: Task, spool: BinaryIO, clock: Clock) -> Record:
    """`label_here` in a process of its own, whose death is this video's failure alone.

    Raises VideoLost where it dies, and what `label_video` raises.
    """
    spool.flush()
    try:
        outcome, seconds, counts = in_new_process(_label_to_file, video, task, spool.name)
    except ProcessLost as lost:
        raise VideoLost(why_lost(lost, task.stall)) from None
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
        with open(name, "ab") as spool:
            outcome = label_here(video, task, spool, clock)
    except Exception as error:  # given back, for the caller to raise: what was done until then counts
        outcome = error
    return outcome, clock.seconds, clock.counts
