"""Flow on disk: the optical flow of videos as files that other programs read."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labelgen.errors import ConfigError, MachineError, ShardError
from labelgen.extract import layouts
from labelgen.extract.journal import Journal
from labelgen.extract.settings import Extraction as Extraction
from labelgen.extract.video import FlowTask, compile_kernels, extract_on_cluster, extract_video
from labelgen.files import json_sha256, locked, write_json, write_text
from labelgen.manifest import Dataset, Video, Videos
from labelgen.progress import counted, detail
from labelgen.run import STALL_SECONDS, compile_once
from labelgen.run.jobs import clean, made_of
from labelgen.run.plan import file_sizes
from labelgen.run.report import this_run
from labelgen.run.workers import pool
from labelgen.shards.checks import escaped
from labelgen.texts import csv_cells, path_text

_SHOWN = 5  # videos named in a message
_EVERY = 10.0  # seconds of work that a kill can lose


def dataset_of(file: Path) -> Dataset:
    """A data set of one video file."""
    file = Path(os.path.abspath(file))
    id = path_text(file.name)
    videos = Videos(file.parent, {} if id == file.name else {id: file.name}, [id], [""], [""], [()])
    return Dataset(os.path.splitext(id)[0], file.parent, videos, (), (), (), ())


def extract(
    dataset: Dataset,
    videos: Sequence[Video],
    out: Path,
    settings: Extraction,
    workers: int = 1,
    stall: float = STALL_SECONDS,
    progress: Callable[[int, int, int], None] = lambda done, total, frames: None,
    say: Callable[[str], None] = lambda text: None,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Write the flow of `videos` of `dataset` into the folder `out`. Finished videos are kept; a video whose file has
    changed is extracted again.

    workers, stall, progress, say, scheduler: as for `labelgen.run.run`; progress is called after each video

    Returns the report, which is also written to `out/report.json`; `out/videos.csv` lists what was written for each
    video. Raises ShardError if the folder holds flow of other settings or files that this command has not made, or is
    not writable; ConfigError for names that the file system cannot hold; ClusterError and MachineError as
    `labelgen.run.run` does.
    """
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1")
    folder = Path(os.path.abspath(out))
    size_of = dict(zip((video.id for video in videos), file_sizes(videos).tolist(), strict=True))
    identity = settings.configuration(dataset.name)
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    busy = ShardError(f"{folder}: another command is writing flow here; wait for it, or name another output folder")
    with locked(folder, busy, say):
        journal = Journal(folder, identity)
        suspects = set() if journal.fresh else clean(folder)
        _plan_names(folder, journal, list(size_of), settings)
        row_of = {_key(video): row for row, video in enumerate(size_of)}
        missing = [key for key, row in row_of.items() if not journal.settled(videos[row].id, size_of[videos[row].id])]
        missing.sort(
            key=lambda key: (-size_of[videos[row_of[key]].id], key)
        )  # longest first: nothing waits for a long last one
        done = len(videos) - len(missing)
        changed = sum(videos[row_of[key]].id in journal.entries for key in missing)
        if done or changed:
            again = f"; {changed} have changed, or files are missing: they are extracted again" * bool(changed)
            say(f"{folder}: {done} of {counted(len(videos), 'video is', 'videos are')} done{again}")
        progress(done, len(videos), 0)

        def task(key: str, isolated: bool) -> FlowTask:
            video = videos[row_of[key]]
            return FlowTask(
                folder / key, [video], dataset.root, settings, journal.names[video.id],
                stall=stall, sizes={video.id: size_of[video.id]}, isolated=isolated,
            )  # fmt: skip

        seconds: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        instructions: set[str] = set()
        faults: dict[str, str] = {}
        at_work, written = 0, time.monotonic()
        try:
            journal.write()
            if missing:
                with pool(workers, scheduler, say, "videos") as (each, at_work):
                    if scheduler is None:
                        compile_once(functools.partial(compile_kernels, settings.flow), say)
                    make = functools.partial(each, extract_video if scheduler is None else extract_on_cluster)
                    for key, made in made_of(folder, missing, task, make, suspects, say):
                        seconds.update(made.seconds)
                        counts.update(made.counts)
                        id = videos[row_of[key]].id
                        if made.fault:
                            faults[id] = made.fault
                            continue
                        instructions.add(made.instructions)
                        journal.add(id, size_of[id], made.notes)
                        detail(f"{id}: {', '.join(f'{stage} {spent:.1f} s' for stage, spent in made.seconds.items())}")
                        if time.monotonic() > written + _EVERY:
                            journal.write()
                            written = time.monotonic()
                        done += 1
                        progress(done, len(videos), counts["frames"])
        finally:
            journal.write()
        if faults:
            first = "; ".join(fault for _, fault in sorted(faults.items())[:_SHOWN])
            raise MachineError(
                f"{folder}: {len(faults)} of {len(videos)} videos failed because of the machine "
                f"({first}{'; ...' if len(faults) > _SHOWN else ''}); none of their files is kept, finished videos are: once "
                "disk, network and memory work again, the same command continues"
            )
        entries = [journal.entries[video.id] for video in videos]
        content = _report(dataset, videos, entries, identity)
        content["this_run"] = this_run(at_work, time.perf_counter() - begin, seconds, counts, instructions)
        _write_tables(folder, dataset, videos, entries, settings)
        write_json(folder / layouts.REPORT, content)
    return content


def _key(id: str) -> str:
    """The name of a video's job."""
    return hashlib.sha256(id.encode()).hexdigest()[:32]


def _plan_names(folder: Path, journal: Journal, ids: Sequence[str], settings: Extraction) -> None:
    """Name new videos in the journal. Raises ShardError if files of others are in their places."""
    known = {id: journal.names[id] for id in ids if id in journal.names}
    gone = {id: name for id, name in journal.names.items() if id not in known}
    chosen = layouts.names([*ids, *gone], settings.templates, known | gone, spaces=not settings.lists)
    for id in ids:
        if id not in known:
            for place in layouts.owned(settings.templates, chosen[id]):
                if os.path.lexists(folder / place):
                    raise ShardError(
                        f"{folder / place}: exists, but was not made by this command; move it, or choose another output folder"
                    )
            journal.plan(id, chosen[id])


def _share(outside: int, values: int) -> float | None:
    return round(outside / values, 6) if values else None


def _values(entry: Mapping[str, Any]) -> int:
    return 2 * entry["flows"] * entry["height"] * entry["width"]


def _report(
    dataset: Dataset, videos: Sequence[Video], entries: Sequence[Mapping[str, Any]], identity: dict[str, Any]
) -> dict[str, Any]:
    """The content of report.json."""
    good = [entry for entry in entries if "places" in entry]
    failures = [
        {
            "id": escaped(entry["id"]),
            "stage": entry.get("stage", "decode"),
            "reason": f"kept {entry['frames']} frames: {entry['cut_short']}" if "places" in entry else entry["reason"],
            "kept": "places" in entry,
        }
        for entry in entries
        if entry.get("cut_short", True)
    ]
    bounded = identity["bound"] is not None
    return {
        "dataset": dataset.name,
        "config": identity,
        "config_hash": json_sha256(identity),
        "videos": {
            "asked": len(videos),
            "extracted": len(good),
            "cut_short": sum(failure["kept"] for failure in failures),
            "failed": len(entries) - len(good),
        },
        **{name: sum(entry[name] for entry in good) for name in ("frames", "flows", "bytes")},
        "clipped": _share(sum(entry["outside"] for entry in good), sum(map(_values, good))) if bounded else None,
        "failures": failures,
    }


def _write_tables(
    folder: Path, dataset: Dataset, videos: Sequence[Video], entries: Sequence[Mapping[str, Any]], settings: Extraction
) -> None:
    """The table of the videos, and the lists that the layout's programs read."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "label", "folder", "frames", "flows", "height", "width", "fps", "clipped", "fault"))
    number = {name: at for at, name in enumerate(dataset.classes)}
    flow_lines, frame_lines = [], []
    for video, entry in zip(videos, entries, strict=True):
        row: list[Any] = [escaped(video.id), escaped(video.label)]
        if "places" in entry:
            row += [
                entry["name"],
                *(entry[name] for name in ("frames", "flows", "height", "width")),
                f"{entry['fps']:.6g}",
            ]
            row += [f"{_share(entry['outside'], _values(entry)):g}" if settings.bounded else "", entry["cut_short"]]
            label = number.get(video.label, -1)  # like MMAction2 itself if the class is unknown
            flow_lines.append(f"{entry['name']} {entry['flows']} {label}\n")
            frame_lines.append(f"{entry['name']} {entry['frames']} {label}\n")
        else:
            row += [""] * 7 + [entry["reason"]]
        table.writerow(csv_cells(row))
    write_text(folder / layouts.TABLE, text.getvalue())
    if settings.lists:
        write_text(folder / layouts.FLOW_LIST, "".join(flow_lines))
        if settings.frames:
            write_text(folder / layouts.FRAME_LIST, "".join(frame_lines))
        if dataset.classes:
            write_text(folder / layouts.CLASSES, "".join(f"{escaped(name)}\n" for name in dataset.classes))
