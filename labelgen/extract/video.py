"""Turns one video into the files of its flow. The only place that knows the order of the steps."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from labelgen.errors import DecodeError, MachineError
from labelgen.extract.layouts import owned
from labelgen.extract.settings import Extraction
from labelgen.extract.values import Npy, quantised, write_flo, write_picture
from labelgen.files import writing
from labelgen.flow.stream import Pairs
from labelgen.manifest import Video
from labelgen.run.guard import VideoFailed, apart, here, register
from labelgen.run.jobs import Job, Made, make, on_cluster
from labelgen.run.video import Clock, decoded, open_part, part_of
from labelgen.shards.checks import escaped

_IMAGE_RATE = 1.0  # of folders of images; flow does not depend on it


@dataclass(frozen=True)
class FlowTask(Job):
    """The flow of one video. name: {video} of its files."""

    settings: Extraction
    name: str


@dataclass
class Extracted:
    """The outcome of a video whose flow has been written.

    frames, flows: how many were decoded and written; height, width: of both, pixels; fps: of the file, 0 if unknown
    outside: number of values of the flow out of bounds; bytes: of all files; cut_short: why decoding stopped early, ""
    if it did not
    """

    frames: int = 0
    flows: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    outside: int = 0
    bytes: int = 0
    cut_short: str = ""


def extract_on_cluster(task: FlowTask) -> Made:
    """`extract_video` in a separate process, see `on_cluster`."""
    return on_cluster(extract_video, task)


def extract_video(task: FlowTask) -> Made:
    """Write the flow of one video. Each of its folders appears once it is complete, and not at all if the video fails,
    which is noted. If the machine fails, nothing is noted.

    Raises ShardError if the disk is full.
    """
    return make(_extract_video, task, "videos")


def _extract_video(task: FlowTask) -> Made:
    from labelgen.compiled import instructions

    register(task)
    cv2.setNumThreads(1)
    clock, folder = Clock(), task.path.parent
    notes: dict[str, Any]
    (video,) = task.videos
    with writing(folder):
        staging = Path(tempfile.mkdtemp(prefix=f".{task.path.name}.", suffix=".tmp", dir=folder))
    try:
        write = partial(apart, video, task, _to_files) if task.isolated else partial(_to_files, video, task)
        done = write(clock, staging / "new")
        with clock("write"), writing(folder / task.name):
            notes = asdict(done) | {"cut_short": escaped(done.cut_short), "places": []}
            for place in owned(task.settings.templates, task.name):
                _remove(folder, place, staging)
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                os.rename(staging / "new" / place, folder / place)
                notes["places"].append([place, *state(folder / place)])
    except VideoFailed as failed:
        stage, reason = failed.args
        notes = {"stage": stage, "reason": escaped(reason[:10_000])}
        with writing(folder / task.name):
            for place in owned(task.settings.templates, task.name):
                _remove(folder, place, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Made(str(task.path), clock.seconds, clock.counts, instructions(), notes=notes)


def _remove(folder: Path, place: str, staging: Path) -> None:
    """Remove what an earlier run has left in a place: one that was stopped, or one of another version of the video."""
    if os.path.lexists(folder / place):
        old = staging / "old" / place
        old.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / place, old)


def state(target: Path) -> tuple[int, int]:
    """The number of files of a folder, or of bytes of a file, and the time of its last change in ns. Raises OSError."""
    status = os.stat(target)
    return _count(target) if target.is_dir() else status.st_size, status.st_mtime_ns


def _count(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(1 for _ in entries)


def _to_files(video: Video, task: FlowTask, clock: Clock, folder: Path) -> Extracted:
    compile_kernels(task.settings.flow)  # so that loading them does not count as a stall
    return here(video, task, "flow", partial(_decode_to_files, video, task, clock, folder))


def _decode_to_files(video: Video, task: FlowTask, clock: Clock, folder: Path, alive: Callable[[], None]) -> Extracted:
    """Decode a video, and write its flow, and its frames if the settings say so, into a folder, which is created.

    Raises DecodeError if not even one frame can be decoded, VideoFailed if there are too few for a flow.
    """
    settings, done = task.settings, Extracted()
    most, images = settings.max_pixels, os.path.isdir(video.path)
    part = part_of(video, most, _IMAGE_RATE, alive)
    if images and video.part is not None and not video.part.frames:
        raise DecodeError(str(video.path), "a folder of images has no times; give the part of it in frames")
    size = {"height": settings.height, "width": settings.width, "short": settings.short}
    stream = open_part(video, part, **size, max_pixels=most, alive=alive, image_fps=_IMAGE_RATE)
    pairs = Pairs(settings.flow, settings.step)
    with ExitStack() as files:
        out = _Files(task, folder, clock, files)
        for frame in decoded(stream, clock, done):
            if settings.frames:
                done.bytes += out.frame(frame, settings.begin + done.frames)
            done.frames += 1
            with clock("flow"):
                flow = pairs(frame)
            if flow is not None:
                done.bytes += out.flow(flow, settings.begin + done.flows)
                done.flows += 1
            alive()
        if not done.flows:
            found = f"{done.frames} frame{'s' * (done.frames > 1)}{': ' * bool(done.cut_short)}{done.cut_short}"
            raise VideoFailed(
                "flow", f"a flow of step {settings.step} needs {settings.step + 1} frames; the video has {found}"
            )
    (done.height, done.width), done.fps, done.outside = out.size, 0.0 if images else float(stream.fps), out.outside
    clock.counts["frames"] += done.frames
    clock.counts["flow pairs"] += done.flows
    _check_files(task, folder, done)
    return done


class _Files:
    """The files of one video. size: height and width of its flow; outside: number of its values out of bounds so far."""

    def __init__(self, task: FlowTask, folder: Path, clock: Clock, files: ExitStack) -> None:
        self._settings, self._name, self._folder, self._clock = task.settings, task.name, folder, clock
        self._target = task.path.parent
        self._flow, self._frame = task.settings.flow_template, task.settings.frame_template
        for template in task.settings.templates:
            for axis in "xy":
                with writing(self._target / task.name):
                    (folder / template.path(task.name, axis=axis)).parent.mkdir(parents=True, exist_ok=True)
        self._npy = None
        if self._flow.suffix == ".npy":
            path = self._flow.path(task.name)
            files.enter_context(writing(self._target / path))
            self._npy = files.enter_context(closing(Npy(folder / path)))
        self.size, self.outside = (0, 0), 0

    def frame(self, frame: np.ndarray, index: int) -> int:
        """Write a frame, RGB uint8 [H, W, 3]; returns the size in bytes."""
        path = self._frame.path(self._name, index)
        with self._clock("jpeg"), writing(self._target / path):
            picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
            return write_picture(self._folder / path, picture, self._settings.quality)

    def flow(self, flow: np.ndarray, index: int) -> int:
        """Write a flow, float32 [H, W, 2]; returns the size in bytes."""
        self.size = flow.shape[:2]
        path = self._flow.path(self._name, index)
        with self._clock("jpeg" if self._settings.bounded else "write"), writing(self._target / path):
            if self._npy:
                return self._npy.add(flow)
            if self._flow.suffix == ".flo":
                return write_flo(self._folder / path, flow)
            planes, outside = quantised(flow, self._settings.bound)
            self.outside += outside
            if self._flow.both:
                picture = np.dstack([*planes, np.full_like(planes[0], 128)])
                return write_picture(self._folder / path, picture, self._settings.quality)
            paths = (self._folder / self._flow.path(self._name, index, axis) for axis in "xy")
            return sum(
                write_picture(path, plane, self._settings.quality) for path, plane in zip(paths, planes, strict=True)
            )


def _check_files(task: FlowTask, folder: Path, done: Extracted) -> None:
    """Raises MachineError unless there are N - step flows with both of their axes, and N frames if they were to be written."""
    settings = task.settings
    if done.flows != done.frames - settings.step:
        raise MachineError(f"{task.name}: {done.flows} flows of {done.frames} frames; expected {settings.step} fewer")
    expected: Counter[str] = Counter()
    for template, number in zip(settings.templates, (done.flows, done.frames), strict=False):
        single = template.suffix == ".npy"
        for last in {template.path(task.name, settings.begin + number - 1, axis) for axis in "xy"}:
            if not (folder / last).is_file():
                raise MachineError(f"{last} is missing, although all files were written")
            expected[os.path.dirname(last)] += 1 if single else number
    for place in owned(settings.templates, task.name):
        if (folder / place).is_dir() and (found := _count(folder / place)) != expected[place]:
            raise MachineError(f"{place} has {found} files, although all were written; expected {expected[place]}")


def compile_kernels(backend: str) -> None:
    """Run the kernels once, so that processes started later find them in the cache."""
    from labelgen.flow import flow

    still = np.zeros((16, 16), np.uint8)
    quantised(flow(still, still, backend), 20.0)
