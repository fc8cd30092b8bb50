"""Compute the missing parts of a study, and write its numbers, tables and page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from labelgen.errors import VsslError
from labelgen.files import locked
from labelgen.progress import busy, counted, detail, duration, heartbeat
from trainer.errors import TrainerError
from trainer.study.estimate import seconds
from trainer.study.file import read
from trainer.study.jobs import Store, Work
from trainer.study.page import write_page
from trainer.study.pictures import Draw
from trainer.study.planning import Plan, plan
from trainer.study.reports import write_reports
from trainer.study.results import collect, unavailable
from trainer.study.runner import Machine, make, running
from trainer.study.sources import Source, prepare
from trainer.study.spec import ALL, Data, Study
from trainer.study.tables import write_tables

_UNLABELLED, _UNKNOWN = "to be labelled first", "not known before labelling"
Label = Callable[[dict, Path, int], Path]
Say = Callable[[str], None]


def study(
    path: str | Path,
    out: Path,
    machine: Machine,
    label: Label,
    flow: Callable,
    say: Say = print,
    latex: bool = False,
    draw: Draw | None = None,
) -> dict:
    """Compute the missing parts of a study. An interrupted study resumes with the same call; nothing is computed twice.

    Parameters
    ----------
    path : str or Path
        The file of the study, see docs/studies.md.
    out : Path
        The folder into which study.json, table.md, CSV files and index.html are written.
    machine : Machine
        Processes and devices.
    label : callable
        Labels a data set: its entry in the file, the folder to write to, number of processes -> folder of the shards.
    flow : callable
        Optical flow of two luma images uint8 [H, W], float32 [H, W, 2], such as `labelgen.flow.flow`.
    say : callable
        Called with lines of text for the user.
    latex : bool
        Also write table.tex.
    draw : callable
        Makes films of labels for the page; None: no films.

    Returns
    -------
    dict
        The content of study.json; "failures" lists what failed.

    Raises
    ------
    TrainerError
        For an invalid file, and if another process works in the same folder.

    Examples
    --------
    >>> from pathlib import Path
    >>> from labelgen.flow import flow
    >>> from trainer.study.runner import Machine
    >>> from trainer.study.study import study
    >>> content = study("study.yaml", Path("study"), Machine(device="cpu"), label=None, flow=flow, say=lambda line: None)
    >>> list(content["rows"]), content["failures"]
    (['pace', 'random weights'], [])
    """
    spec, store, failed = (
        read(path),
        Store(Path(out).resolve()),
        dict[str, str](),
    )  # workers may have another working directory
    store.root.mkdir(parents=True, exist_ok=True)
    other = TrainerError(f"{out}: another process works on this study; wait for it or stop it")
    with locked(store.root, other, say):
        shutil.rmtree(store.root / "scratch", ignore_errors=True)  # left by a killed study
        sources, unusable = _sources(spec, store.root, lambda d: _shards(d, store.root, label, machine.workers, say))
        for name, reason in unusable.items():
            say(f"failed: data {name}: {reason}")
        planned = plan(spec, sources, store, machine.device, failed)
        for _ in ("trainings", "their networks, if they are compared by classes"):
            if planned.undecided:
                make_missing([*planned.deciding.values()], store, machine, flow, failed, say)
                planned = plan(spec, sources, store, machine.device, failed)  # the last plan has the best settings
        for line in _unused(planned, store, unusable):
            say(line)
        jobs = planned.jobs.values()
        make_missing([job for job in jobs if not job.needs], store, machine, flow, failed, say)
        make_missing([job for job in jobs if all(map(store.has, job.needs))], store, machine, flow, failed, say)
        with busy("collecting the numbers"):
            content = collect(spec, sources, planned, store, failed, unusable)
        write_tables(content, store.root, latex)
        with busy("drawing the pages of the runs"):
            write_reports(content, planned, store, say)
        with busy("drawing the page"):
            write_page(content, planned, store, sources, draw)
    return content


def make_missing(
    jobs: Sequence[Work], store: Store, machine: Machine, flow: Callable | None, failed: dict[str, str], say: Say
) -> None:
    """Run the missing jobs, and report each as it ends and the progress in between. The reasons for failures are added to
    `failed`."""
    missing, number = [job for job in jobs if job.id not in failed and not store.done(job)], 0
    if not missing:
        return
    say(f"{counted(len(missing), 'run')} to make")

    def so_far(seconds: float) -> str:
        made = f"{number} of {counted(len(missing), 'run')} made in {duration(seconds)}"
        head = f"{made}; their output is in {store.root / 'logs'}"
        return "\n  ".join([head, *running(missing, store)])

    for job in missing:
        store.marker(job).unlink(missing_ok=True)  # left by a killed study
    with heartbeat(so_far):
        for number, (job, reason) in enumerate(make(missing, store.root, machine, flow), 1):
            store.marker(job).unlink(missing_ok=True)  # left by a lost worker
            state, why = ("failed", f": {reason}") if reason else ("done", "")
            say(f"{state} {number}/{len(missing)}: {job.row}: {job.title}{why}")
            detail(f"  its output: {store.log(job)}")
            if reason:
                failed[job.id] = reason


def _unused(planned: Plan, store: Store, unusable: dict[str, str]) -> list[str]:
    """Lines about files in the folder that the study no longer uses; none if that is not known yet."""
    if unusable or planned.undecided:
        return []
    unused = {*store.ids()} - {id for job in planned.jobs.values() for id in job.makes}
    what = [counted(len(unused), "run or result", "runs and results")] * bool(unused)
    what += ["copies of shards (data/*/*.h5)"] * any(store.root.glob("data/*/*.h5"))
    end = "of other settings or an earlier version of vssl are not used; delete them if you need the disk space"
    return [f"{store.root}: {words} {end}" for words in what]


def show_plan(path: str | Path, out: Path, workers: int, device: str) -> list[str]:
    """The jobs of a study. No job is run.

    Parameters
    ----------
    path : str or Path
        The file of the study.
    out : Path
        Its folder.
    workers : int
        Number of processes at a time.
    device : str
        See `Machine`.

    Returns
    -------
    list of str
        Lines with the jobs, which of them are done, and about how long the others take.

    Examples
    --------
    >>> from pathlib import Path
    >>> from trainer.study.study import show_plan
    >>> lines = show_plan("study.yaml", Path("planned"), workers=1, device="cpu")
    >>> lines[0], lines[-1]  # doctest: +ELLIPSIS
    ('pace', '0 of 3 runs are done; the others take: about ...')
    """
    spec, store = read(path), Store(Path(out).resolve())
    sources, unusable = _sources(spec, store.root, lambda d: _labelled(d, store.root))
    unlabelled = [name for name, reason in unusable.items() if reason == _UNLABELLED]
    lines = [f"{name}: {reason}; its runs are not in the plan" for name, reason in unusable.items()]
    planned = plan(spec, sources, store, device, {})
    jobs = [*planned.jobs.values()]
    missing = [job for job in jobs if not store.done(job)]
    took = {job.id: time for job, time in seconds(missing, store, device)}
    for row in spec.rows:
        lines.append(row)
        for job in (job for job in jobs if job.row == row):
            clips = f", {job.clips:,.0f} {'videos' if job.kind == 'flow' else 'clips'}"
            state = f"about {duration(took[job.id])}" if job.id in took else "done"
            lines.append(f"  {job.kind:8} {job.title}{clips}: {state}")
        named = [*spec.data, *map(spec.rows[row].pretrains_on, spec.data)]
        if waits := ", ".join(name for name in unlabelled if name in named):
            lines.append(f"  runs on {waits}: {_UNKNOWN}")
    lines += [f"unavailable: {one['row']}: {one['what']}: {one['reason']}" for one in unavailable(planned.unknown)]
    lines += _unused(planned, store, unusable)
    several = f", {workers} at a time: {duration(sum(took.values()) / workers)}" if workers > 1 else ""
    known = f"about {duration(sum(took.values()))}{several} (classifiers on frozen features not counted)"
    if unlabelled:
        known = f"{known}, those on {', '.join(unlabelled)}: {_UNKNOWN}" if jobs else _UNKNOWN
    done = (
        f"{len(jobs) - len(missing)} of {counted(len(jobs), 'run is', 'runs are')} done" if jobs else "no run is done"
    )
    return [*lines, f"{done}; the others take: {known}"]


def _sources(spec: Study, root: Path, shards: Callable[[Data], Path]) -> tuple[dict[str, Source], dict[str, str]]:
    """The usable data sets, and the reasons why the others are unusable."""
    sources, unusable = {}, {}
    for name, data in (spec.data | spec.variants).items():
        labels = dict.fromkeys(measure.labels for measure in spec.measures if name in measure.tested_on)
        few = tuple(count for count in labels if count != ALL)
        try:
            sources[name] = prepare(data, shards(data), root / "data", spec.seeds, few)
        except VsslError as error:
            unusable[name] = str(error)
    return sources, unusable


def _shards(data: Data, root: Path, label: Label, workers: int, say: Say) -> Path:
    if data.shards:
        return data.shards
    say(f"labelling {data.name}")
    return label(data.labelling or {}, root / "shards" / data.folder, workers)


def _labelled(data: Data, root: Path) -> Path:
    if data.shards:
        return data.shards
    folder = root / "shards" / data.folder
    if not any(folder.glob("*/report.json")):
        raise TrainerError(_UNLABELLED)
    return folder
