"""Make what is missing of a study, one process per run, and write its numbers, tables and page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelgen.errors import VsslError
from labelgen.files import locked
from labelgen.progress import busy, duration, heartbeat
from trainer.errors import TrainerError
from trainer.study.file import Data, Study, read
from trainer.study.jobs import Job, Store, make
from trainer.study.page import write_page
from trainer.study.planning import plan, seconds
from trainer.study.progress import running
from trainer.study.results import collect, not_to_be_had, write_tables
from trainer.study.sources import Source, prepare

_UNLABELLED, _NOT_KNOWN = "to be labelled first", "not known before labelling"


@dataclass(frozen=True)
class Machine:
    """Where runs are made: processes at a time, or a Dask scheduler's address; device: cpu, cuda, auto, or several GPUs,
    cuda:0,cuda:2, among which runs are spread."""

    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"


def study(
    path: str | Path,
    out: Path,
    machine: Machine,
    label: Callable[[dict, Path, int], Path],
    flow: Callable,
    say: Callable[[str], None] = print,
    latex: bool = False,
) -> dict:
    """Make what is missing of the study of a file in the folder `out`, and write study.json, table.md, index.html and, where
    asked, table.tex there. Returns what study.json holds; "failures" lists what did not work.

    label: makes the shards of a data set: what the file says of it, the folder to write to, processes; returns the shards
    flow: optical flow of two luma images uint8 [H, W], float32 [H, W, 2]

    A killed study goes on where it stopped; what is there is never made again. Raises TrainerError for a file that makes
    no sense, and while another process works on the same folder.
    """
    own, store, failed = read(path), Store(Path(out).resolve()), dict[str, str]()  # workers may stand elsewhere
    store.root.mkdir(parents=True, exist_ok=True)
    other = TrainerError(f"{out}: another process works on this study; wait for it, or stop it")
    with locked(store.root, other, say):
        shutil.rmtree(store.root / "scratch", ignore_errors=True)  # of a study that was killed
        sources, unusable = _sources(own, store.root, lambda d: _shards(d, store.root, label, machine.workers, say))
        for name, reason in unusable.items():
            say(f"failed: data {name}: {reason}")
        while True:
            planned = plan(own, sources, store, machine.device, failed)
            ready = [
                job
                for job in planned.jobs.values()
                if job.id not in failed and not store.done(job) and all(map(store.has, job.needs))
            ]
            if not ready:
                break
            waiting = sum(not store.done(job) for job in planned.jobs.values()) - len(ready)
            say(f"{len(ready)} runs to make" + (f", {waiting} that wait for them" if waiting else ""))
            made = make(ready, store.root, machine.workers, machine.scheduler, machine.device, {"flow": flow})
            failed |= _told(made, ready, store, say)
        with busy("collecting the numbers"):
            content = collect(own, sources, planned, store, failed, unusable)
        write_tables(content, store.root, latex)
        write_page(content, planned, store)
    return content


def _told(
    made: Iterable[tuple[Job, str]], jobs: Sequence[Job], store: Store, say: Callable[[str], None]
) -> dict[str, str]:
    """Tell of each job as it ends, and meanwhile how far those are that run; returns id -> reason of those that failed."""
    number, failed = 0, dict[str, str]()

    def so_far(seconds: float) -> str:
        head = f"{number} of {len(jobs)} runs made in {duration(seconds)}; what they print is in {store.root / 'logs'}"
        return "\n  ".join([head, *running(jobs, store)])

    for job in jobs:
        store.marker(job).unlink(missing_ok=True)  # of a study that was killed
    with heartbeat(so_far):
        for number, (job, reason) in enumerate(made, 1):
            store.marker(job).unlink(missing_ok=True)  # of a worker that was lost
            state, why = ("failed", f": {reason}") if reason else ("done", "")
            say(f"{state} {number}/{len(jobs)}: {job.row}: {job.told}{why}")
            if reason:
                failed[job.id] = reason
    return failed


def show_plan(path: str | Path, out: Path, workers: int, device: str) -> list[str]:
    """The runs of a study, what is there and about how long the others take, as lines. No run is made."""
    own, store = read(path), Store(Path(out).resolve())
    sources, unusable = _sources(own, store.root, lambda d: _labelled(d, store.root))
    unlabelled = [name for name, reason in unusable.items() if reason == _UNLABELLED]
    lines = [f"{name}: {reason}; its runs are not in the plan" for name, reason in unusable.items()]
    planned = plan(own, sources, store, device, {})
    jobs = [*planned.jobs.values()]
    missing = [job for job in jobs if not store.done(job)]
    took = {job.id: time for job, time in seconds(missing, store, device)}
    for row in own.rows:
        lines.append(row)
        for job in jobs:
            if job.row == row:
                clips = f", {job.cost[1]:,.0f} {'videos' if job.kind == 'flow' else 'clips'}"
                state = f"about {duration(took[job.id])}" if job.id in took else "there"
                lines.append(f"  {job.kind:8} {job.told}{clips}: {state}")
        named = [*own.data, *map(own.rows[row].pretrains_on, own.data)]
        if waits := ", ".join(name for name in unlabelled if name in named):
            lines.append(f"  runs on {waits}: {_NOT_KNOWN}")
    lines += [f"not to be had: {own['row']}: {own['what']}: {own['reason']}" for own in not_to_be_had(planned.unknown)]
    several = f", {workers} at a time: {duration(sum(took.values()) / workers)}" if workers > 1 else ""
    known = f"about {duration(sum(took.values()))}{several} (classifiers on frozen features not counted)"
    if unlabelled:
        known = f"{known}, those on {', '.join(unlabelled)}: {_NOT_KNOWN}" if jobs else _NOT_KNOWN
    there = f"{len(jobs) - len(missing)} of {len(jobs)} runs are there" if jobs else "no run is there"
    return [*lines, f"{there}; the others take: {known}"]


def _sources(own: Study, root: Path, shards: Callable[[Data], Path]) -> tuple[dict[str, Source], dict[str, str]]:
    """The data sets that can be used, and why the others cannot."""
    sources, unusable = {}, {}
    for name, data in (own.data | own.variants).items():
        tuned = (m.labels for m in own.measures if m.protocol == "finetune" and name in m.on)
        few = tuple(dict.fromkeys(count for count in tuned if isinstance(count, int)))
        try:
            sources[name] = prepare(data, shards(data), root / "data", own.seeds, few)
        except VsslError as error:
            unusable[name] = str(error)
    return sources, unusable


def _shards(data: Data, root: Path, label: Callable, workers: int, say: Callable[[str], None]) -> Path:
    if data.shards:
        return data.shards
    say(f"labelling {data.name}")
    return label(data.labelling, root / "shards" / data.folder, workers)


def _labelled(data: Data, root: Path) -> Path:
    if data.shards:
        return data.shards
    folder = root / "shards" / data.folder
    if not any(folder.glob("*/report.json")):
        raise TrainerError(_UNLABELLED)
    return folder
