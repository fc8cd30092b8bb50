"""Which shards are missing, who makes them, and what failed."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import hashlib
import inspect
import json
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from labelgen import shards
from labelgen.config import Config
from labelgen.errors import ClusterError, ConfigError, DecodeError, ShardError
from labelgen.manifest import Dataset, Video
from labelgen.workers import ProcessLost, WorkerLost, apart, pool

STALL_SECONDS = 300  # a video that yields no frame for so long hangs, and its process is ended


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    path: Path
    videos: tuple[Video, ...]
    root: Path
    splits: tuple[str, ...]
    config: Config
    identity: dict  # the whole configuration, as it is stored in the shard
    stall: float
    isolated: bool = False  # each video in a process of its own, because one of them has ended its worker before


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
) -> dict:
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
    identity = _identity(dataset, videos, split, config, per_shard)
    folder = Path(os.path.abspath(out)) / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    batches = [videos[at : at + per_shard] for at in range(0, len(videos), per_shard)]
    paths = [folder / f"{index:05d}.h5" for index in range(len(batches))]
    common = (dataset.root, dataset.splits, config, identity, stall)
    tasks = [Task(path, batch, *common) for path, batch in zip(paths, batches, strict=True)]
    with _locked(folder):
        _check_configuration(folder, identity, {video.id for video in videos})
        suspects = _clean(folder)
        tasks = [task for task in tasks if not task.path.exists()]
        done = len(videos) - sum(len(task.videos) for task in tasks)
        if done:
            say(f"{folder}: {len(paths) - len(tasks)} of {len(paths)} shards are there ({done} videos)")
        progress(done, len(videos), 0)
        counts, seconds, at_work = Counter(), Counter(), 0
        if tasks:
            with pool(workers, scheduler, say) as (each, at_work):
                if scheduler is None:
                    from labelgen.record import compile_kernels

                    compile_kernels()  # here once: the workers load them from Numba's cache
                make = functools.partial(each, label_shard if scheduler is None else label_shard_apart)
                for task, shard_seconds, shard_counts in _make_all(tasks, make, folder, suspects, say):
                    seconds.update(shard_seconds)
                    counts.update(shard_counts)
                    done += len(task.videos)
                    progress(done, len(videos), counts["frames"])
        report = _report(dataset, videos, paths, identity)
        report["this_run"] = _this_run(at_work, time.perf_counter() - begin, seconds, counts)
        _write_json(folder / "report.json", report)
    return report


def _make_all(tasks: list[Task], make: Callable, folder: Path, suspects: set[str], say: Callable):
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


def _identity(dataset: Dataset, videos: tuple[Video, ...], split: str, config: Config, per_shard: int) -> dict:
    """The whole configuration: settings, flow parameters, and a digest of which videos there are."""
    from labelgen.flow import BACKENDS

    digest = hashlib.sha256()
    for video in videos:
        size = os.stat(video.path).st_size if video.path.exists() else "none"
        digest.update(f"{video.id}\0{size}\0{video.label}\0{video.group}\0{video.split}\n".encode())
    parameters = inspect.signature(BACKENDS[config.flow]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {
        "dataset": dataset.name,
        "split": split,
        "videos": f"{len(videos)} {digest.hexdigest()[:16]}",
        "videos_per_shard": per_shard,
        **asdict(config),
        "paces": list(config.paces),
        "flow": {"backend": config.flow, **defaults},
    }


def _check_configuration(folder: Path, identity: dict, videos: set[str]) -> None:
    """Raises ShardError where a shard of another configuration is in the folder."""
    expected = shards.config_hash(identity)
    for path in sorted(folder.glob("[0-9]*.h5")):
        found = shards.ShardReader(path)
        if found.config_hash != expected:
            here, there = _flat(identity), _flat(found.config)
            keys = [key for key in sorted(here | there) if here.get(key) != there.get(key)]
            keys = [
                key for key in keys if key in here and key in there
            ] or keys  # backends have parameters of their own
            differing = [f"{key}: {there.get(key)} there, {here.get(key)} now" for key in keys if key != "videos"]
            if "videos" in keys:
                differing.append(_other_videos(folder, found.config["videos"], identity["videos"], videos))
            raise ShardError(
                f"{path} was made with configuration {found.config_hash}, this run's is {expected} ({'; '.join(differing)}); "
                "name another folder with --out, or delete this one"
            )


def _other_videos(folder: Path, there: str, here: str, videos: set[str]) -> str:
    """In words, how the videos differ from those of the shards: counts, and the first one that is gone or new."""
    paths = sorted(folder.glob("[0-9]*.h5"))
    arrays = [shards.ShardReader(path).arrays for path in paths]
    stored = {video for array in arrays for key in ("videos/id", "failures/id") for video in array[key]}
    count = int(there.split()[0])
    text = f"videos: {count} there, {here.split()[0]} now, whose paths, sizes or labels are not the same"
    if gone := stored - videos:
        text += f"; gone is {min(gone)}"
    if len(stored) == count and (new := videos - stored):
        text += f"; new is {min(new)}"
    return text


def _flat(config: dict) -> dict[str, str]:
    flow = {f"flow {key}": value for key, value in config["flow"].items()}
    return {key: json.dumps(value) for key, value in (config | flow).items() if key != "flow"}


def _clean(folder: Path) -> set[str]:
    """Remove what killed processes left behind; returns the names of the shards they were at."""
    left = list(folder.glob(".*.tmp"))
    for path in left:
        path.unlink(missing_ok=True)
    return {path.name[1:].split(".h5")[0] + ".h5" for path in left}


@contextlib.contextmanager
def _locked(folder: Path):
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"{folder}: another labelgen is writing here; wait for it, or name another folder with --out"
            ) from None
        yield


def label_shard_apart(task: Task) -> tuple[str, Counter, Counter]:
    """`label_shard` in a process of its own, which a video may end without harm to the Dask worker and its other threads.

    Raises ClusterError where this machine does not see the videos and the shards.
    """
    for place in (task.root, task.path.parent / ".lock"):
        if not place.exists():
            raise ClusterError(
                f"{place} is not there on {socket.gethostname()}; all Dask workers need the folders of the videos and "
                "of the shards under the same paths"
            )
    try:
        return apart(label_shard, task)
    except ProcessLost:
        pass
    try:
        return apart(label_shard, replace(task, isolated=True))
    except ProcessLost as lost:
        raise ShardError(f"{task.path}: {lost} even with each video apart; check memory") from None


def label_shard(task: Task) -> tuple[str, Counter, Counter]:
    """Make one shard; returns its path, the seconds per stage and the counts. Videos that fail are recorded in it.

    Raises ShardError where the shard cannot be written.
    """
    try:
        return _label_shard(task)
    except OSError as error:
        raise ShardError(
            f"{task.path}: cannot be written: {error.strerror or error}; finished shards are kept: make room and run the "
            "same command again"
        ) from error


def _label_shard(task: Task) -> tuple[str, Counter, Counter]:
    import cv2

    from labelgen.patterns import crop_grid
    from labelgen.record import Clock, compile_kernels, relative_path, shard_arrays

    cv2.setNumThreads(1)
    compile_kernels()  # loading them is not to count as a video's stall
    clock, records, failures = Clock(), [], []
    label = _label_apart if task.isolated else _label_here
    with _spool(task.path) as spool:
        for video in task.videos:
            begin = spool.tell()
            stage, reason = "", ""
            try:
                record = label(video, task, spool, clock)
                records.append(record)
                if record.cut_short:
                    stage, reason = "decode", f"kept the first {len(record.jpeg_sizes)} frames: {record.cut_short}"
            except (ShardError, OSError):
                raise  # the disk, not the video
            except DecodeError as error:
                stage, reason = "decode", error.reason
            except _VideoLost as error:
                stage, reason = "process", str(error)
            except Exception as error:
                stage, reason = "label", f"{type(error).__name__}: {error}"
            if reason:
                failures.append(
                    {"id": video.id, "path": relative_path(video, task.root), "stage": stage, "reason": reason}
                )
                if not records or records[-1].video is not video:
                    spool.seek(begin)
                    spool.truncate()
        with clock("write"):
            grid = crop_grid(task.config.height, task.config.width, task.config.crop)
            arrays = shard_arrays(records, failures, task.root, task.config)
            shards.write(task.path, arrays, spool, task.identity, grid, task.splits)
    return str(task.path), clock.seconds, clock.counts


@contextlib.contextmanager
def _spool(path: Path):
    """A file beside the shard for its frames; while it is there, the shard is being made."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".jpeg.tmp", dir=path.parent)
    try:
        os.close(handle)
        with open(name, "wb+") as spool:
            yield spool
    finally:
        Path(name).unlink(missing_ok=True)


class _VideoLost(Exception):
    pass


def _label_here(video: Video, task: Task, spool, clock):
    from labelgen.record import label_video

    armed = 0.0

    def write(encoded: bytes) -> None:
        nonlocal armed
        spool.write(encoded)
        if time.monotonic() - armed > 1:
            armed = _arm(task.stall)

    armed = _arm(task.stall)
    try:
        return label_video(video, task.config, write, clock)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _arm(seconds: float) -> float:
    """End this process unless armed again within so many seconds: a hang in foreign code can be ended in no other way."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=_null())
    return time.monotonic()


def _null(_open=[]):  # noqa: B006 - faulthandler needs a file that stays open
    if not _open:
        _open.append(open(os.devnull, "w"))  # noqa: SIM115
    return _open[0]


def _label_apart(video: Video, task: Task, spool, clock):
    """`_label_here` in a process of its own, whose death is this video's failure alone."""
    spool.flush()
    try:
        outcome, seconds, counts = apart(_label_to_file, video, task, spool.name)
    except ProcessLost as lost:
        stalled = lost.status == 1  # how faulthandler ends a process
        raise _VideoLost(f"no frame for {task.stall:g} s" if stalled else str(lost)) from None
    finally:
        spool.seek(0, os.SEEK_END)
    clock.seconds.update(seconds)
    clock.counts.update(counts)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _label_to_file(video: Video, task: Task, name: str) -> tuple:
    from labelgen.record import Clock, compile_kernels

    compile_kernels()
    clock = Clock()
    try:
        with open(name, "ab") as spool:
            outcome = _label_here(video, task, spool, clock)
    except Exception as error:
        outcome = error
    return outcome, clock.seconds, clock.counts


def _report(dataset: Dataset, videos: tuple[Video, ...], paths: list[Path], identity: dict) -> dict:
    """What the shards hold, read back from them."""
    totals, failures = Counter(), []
    for path in paths:
        arrays = shards.ShardReader(path).arrays
        kept = set(arrays["videos/id"])
        totals["labelled"] += len(kept)
        totals["frames"] += len(arrays["frames/offset"]) - 1
        totals["bytes"] += path.stat().st_size
        totals["clips"] += len(arrays["clips/video"])
        totals["clips_without_motion"] += int(np.isnan(arrays["curriculum/score"]).sum())
        totals["without_clip"] += len(kept) - len(np.unique(arrays["clips/video"]))
        totals["too_short_for_pace"] += int((arrays["pace/pace"][:, 0] == shards.NO_ROW).sum())
        totals["too_short_for_order"] += int((arrays["order/permutation"][:, 0] == shards.NO_ROW).sum())
        for video, name, stage, reason in zip(
            *(arrays[f"failures/{key}"] for key in ("id", "path", "stage", "reason")), strict=True
        ):
            failure = {"id": video, "path": name, "stage": stage, "reason": reason}
            failures.append(failure | {"kept": video in kept, "shard": path.name})
    return {
        "dataset": dataset.name,
        "config": identity,
        "config_hash": shards.config_hash(identity),
        "shards": len(paths),
        "videos": {
            "asked": len(videos),
            "labelled": totals.pop("labelled"),
            "cut_short": sum(failure["kept"] for failure in failures),
            "failed": sum(not failure["kept"] for failure in failures),
            "listed_but_missing": len(dataset.missing),
            "in_no_official_list": len(dataset.unlisted),
        },
        **totals,
        "failures": failures,
    }


def _this_run(workers: int, elapsed: float, seconds: Counter, counts: Counter) -> dict:
    return {
        "workers": workers,
        "seconds": round(elapsed, 3),
        "seconds_per_stage": {stage: round(value, 3) for stage, value in seconds.items()},
        **{name: counts[name] for name in ("frames", "flow pairs", "clips")},
        "frames_per_second": round(counts["frames"] / elapsed, 1),
        "flow_pairs_per_second": round(counts["flow pairs"] / elapsed, 1),
    }


def _write_json(path: Path, value: dict) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
