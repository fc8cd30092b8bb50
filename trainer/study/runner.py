"""Runs each job of a study in a process with a device, on this machine or on a Dask cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labelgen.cluster import connected
from labelgen.errors import VsslError
from labelgen.files import write_text
from labelgen.processes import cores, ending, finished
from labelgen.reading import open_regular
from trainer.study.devices import Device, reserved
from trainer.study.jobs import Store, Work

_TAIL = 1 << 13  # bytes at the end of a log
_CHARACTERS = 160  # shown of a line that a job printed


@dataclass(frozen=True)
class Machine:
    """Where jobs run.

    Parameters
    ----------
    workers : int
        Number of processes at a time.
    scheduler : str
        Address of a Dask scheduler to use instead.
    device : str
        cpu, cuda, auto, or several GPUs that share the jobs, such as cuda:0,cuda:2.
    """

    workers: int = 1
    scheduler: str | None = None
    device: str = "auto"


def make(
    jobs: Sequence[Work], root: Path, machine: Machine, flow: Callable | None = None
) -> Iterator[tuple[Work, str]]:
    """Run all jobs, several at a time. Yields each as it ends, with "" or the reason for its failure. Raises ClusterError for a
    cluster that cannot be used."""
    if machine.scheduler is not None:
        yield from _on_cluster(jobs, root, machine.scheduler, machine.device, flow)
        return
    import joblib

    workers = min(machine.workers, 4 * cores())  # a mistyped number would start thousands
    threads = max(1, cores() // workers)
    parallel = joblib.Parallel(
        n_jobs=max(1, min(workers, len(jobs))), backend="threading", batch_size=1, return_as="generator_unordered"
    )
    yield from parallel(joblib.delayed(execute)(job, root, threads, flow) for job in jobs)


def _on_cluster(
    jobs: Sequence[Work], root: Path, scheduler: str, device: str, flow: Callable | None
) -> Iterator[tuple[Work, str]]:
    with connected(scheduler) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        threads = min(client.nthreads().values())
        # one GPU per job if workers have been started with --resources GPU=1
        gpus = client.run_on_scheduler(lambda dask_scheduler: bool(dask_scheduler.resources.get("GPU")))
        resources = {"GPU": 1} if gpus and device != "cpu" else None
        waiting = {
            client.submit(execute, job, root, threads, flow, pure=False, resources=resources): job for job in jobs
        }
        try:
            for future in as_completed(waiting, loop=client.loop):
                try:
                    yield future.result()
                except (KilledWorker, CancelledError) as error:
                    yield waiting[future], f"the Dask cluster failed ({error})"
        finally:
            client.cancel([*waiting])


def execute(job: Work, root: Path, threads: int, flow: Callable | None) -> tuple[Work, str]:
    """Run a job in a process, on a device that it does not share while there are enough. Returns the job with "" or the reason
    for its failure. Its output is in logs/ID.txt."""
    log, marker = Store(root).log(job), Store(root).marker(job)
    log.parent.mkdir(exist_ok=True)
    with reserved(job.device) as device:
        marker.write_text(f"{device} of {socket.gethostname()}\n{log.stat().st_size if log.exists() else 0}")
        try:
            return job, _in_process(replace(job, device=device.name), root, threads, flow, device)
        finally:
            marker.unlink(missing_ok=True)


def _in_process(job: Work, root: Path, threads: int, flow: Callable | None, device: Device) -> str:
    log, answer = Store(root).log(job), _answer(job, root)
    answer.unlink(missing_ok=True)
    variables = {"CUDA_VISIBLE_DEVICES": device.alone} if device.alone else {}
    with open(log, "ab") as file:
        status, _ = finished(_child, job, root, flow, threads=threads, variables=variables, stdout=file, stderr=file)
    if status == 0:
        return ""
    if answer.exists():
        return answer.read_text(encoding="utf-8")
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{ending(status)}: {lines[-1] if lines else 'it printed nothing'}; see {log}"


def _child(job: Work, root: Path, flow: Callable | None) -> None:
    """The code that `_in_process` runs in the new process."""
    try:
        job.work_and_store(Store(root), flow)
    except VsslError as error:
        write_text(_answer(job, root), str(error))
        sys.exit(1)


def _answer(job: Work, root: Path) -> Path:
    """The file into which the process of a job writes the reason for its failure."""
    return root / "logs" / f"{job.id}.error"


def running(jobs: Iterable[Work], store: Store) -> list[str]:
    """A line for each running job: its device and its last output, such as step, loss and time left."""
    lines = []
    for job in jobs:
        try:
            device, begin = store.marker(job).read_text().split("\n")
            lines.append(f"{job.row}: {job.title} ({device}): {_last_line(store.log(job), int(begin)) or 'starts'}")
        except (OSError, ValueError):  # it has just ended or is just starting
            continue
    return lines


def _last_line(log: Path, begin: int) -> str:
    """The last line of a file after its first `begin` bytes."""
    with open_regular(log) as file:
        file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL))
        text = file.read().decode(errors="replace")
    lines = map(str.strip, reversed(text.replace("\r", "\n").split("\n")))
    return next(filter(None, lines), "")[:_CHARACTERS]
