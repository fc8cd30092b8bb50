"""The runs of a study: what identifies each, which are still to be made, and one process for each of them."""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from labelgen.cluster import connected
from labelgen.errors import ReadError, VsslError
from labelgen.files import write_json, write_text
from labelgen.processes import cores, ending, finished
from labelgen.reading import fit, load_json, read_text
from trainer.errors import TrainerError
from trainer.settings import Settings, resolve
from trainer.study.devices import Device, given, kind_of_device
from trainer.study.sources import Source

_PACKAGE = Path(__file__).parents[1]
_TRAINING = (
    *("training", "data", "methods", "backbones"),
    *("network.py", "augment.py", "settings.py", "options.py", "distributed.py", "memory.py", "inputs.py"),
)
_MEASURING = (*_TRAINING, "checkpoint.py", "evaluate", "histograms.py", "study/measures.py", "study/sources.py")
_RESULT = {"seconds": float | int, "cost": str, "clips": float | int, "device?": str, "scores?": dict, "reason?": str}
_FREE = (
    "compile",
    "workers",
    "device",
    "checkpoint_minutes",
    "log_every",
    "keep_every",
)  # settings that change no weight


@dataclass(frozen=True)
class Job:
    """One process.

    id: hash of all that determines what it makes; makes: ids of the results, none for training; how: what it is called
    with, paths and all, and the "device", or several among which runs are spread; needs: ids of the trainings before it; row,
    told: for the reader; cost: name of like jobs and the number of clips, for the estimate; videos: that a training sees, and
    that the training part has
    """

    kind: str
    id: str
    makes: tuple[str, ...]
    how: dict = field(hash=False, compare=False)
    needs: tuple[str, ...]
    row: str
    told: str
    cost: tuple[str, float]
    videos: tuple[int, int] = (0, 0)


def identity(**what) -> str:
    """Hash of everything that determines a run or a result."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def determining(settings: Settings) -> dict:
    """The settings that change weights, with all defaults."""
    return {name: value for name, value in asdict(resolve(settings)).items() if name not in _FREE}


@functools.cache
def code(kind: str) -> list[str]:
    """Versions of vssl and torch, and a hash of the source, without comments and docstrings, that training or measuring
    runs: a change there makes new runs."""
    digest = hashlib.sha256()
    for name in _TRAINING if kind == "train" else _MEASURING:
        path = _PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(_bare(file).encode())
    return [*(metadata.version(name) for name in ("torch", "numpy")), digest.hexdigest()[:16]]


def _bare(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node) is not None:
                node.body.pop(0)
    return ast.dump(tree)


class Store:
    """The folder of a study: runs/ID/ of trainings, results/ID.json, logs/ID.txt."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, id: str) -> Path:
        """Folder of a training."""
        return self.root / "runs" / id

    def result(self, id: str) -> dict:
        """What was stored of a result or, of a training, of how it was made."""
        path = self.run(id) / "done.json" if self.run(id).is_dir() else self.root / "results" / f"{id}.json"
        try:
            content = load_json(path)
            fit(content, _RESULT, "it")
        except (ReadError, ValueError) as error:
            raise TrainerError(f"{path}: damaged ({error}); delete it, and it is made again") from error
        return content

    def has(self, id: str) -> bool:
        """Whether a training or a result is there and whole."""
        return (self.run(id) / "done.json").exists() or (self.root / "results" / f"{id}.json").exists()

    def finetuned(self, job: Job, split: str) -> Path:
        """Folder of a finetuning, while it is made."""
        return self.root / "finetuned" / job.id / split.replace("/", "_")

    def log(self, job: Job) -> Path:
        """What a job prints."""
        return self.root / "logs" / f"{job.id}.txt"

    def marker(self, job: Job) -> Path:
        """Is there while a job is made: on what, and how long its log was before."""
        return self.root / "logs" / f"{job.id}.running"

    def done(self, job: Job) -> bool:
        """Whether all that a job makes is there."""
        return all(map(self.has, job.makes or (job.id,)))


def execute(job: Job, root: Path, threads: int, functions: dict[str, Callable]) -> tuple[Job, str]:
    """Make a job in a process of its own, on a device that it has alone while there are enough; "" or why it failed. What it
    prints is in logs/ID.txt."""
    log, marker = Store(root).log(job), Store(root).marker(job)
    log.parent.mkdir(exist_ok=True)
    with given(job.how["device"]) as device:
        marker.write_text(f"{device} of {socket.gethostname()}\n{log.stat().st_size if log.exists() else 0}")
        try:
            return job, _in_process(job, root, threads, functions, device)
        finally:
            marker.unlink(missing_ok=True)


def _in_process(job: Job, root: Path, threads: int, functions: dict[str, Callable], device: Device) -> str:
    log, answer = Store(root).log(job), root / "logs" / f"{job.id}.error"
    answer.unlink(missing_ok=True)
    job = replace(job, how=job.how | {"device": device.name})
    own = {"CUDA_VISIBLE_DEVICES": device.alone} if device.alone else {}
    with open(log, "ab") as file:
        status, _ = finished(_child, job, root, functions, threads=threads, variables=own, stdout=file, stderr=file)
    if status == 0:
        return ""
    if answer.exists():
        return answer.read_text(encoding="utf-8")
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{ending(status)}: {lines[-1] if lines else 'it said nothing'}; see {log}"


def _child(job: Job, root: Path, functions: dict[str, Callable]) -> None:
    """The other side of `execute`."""
    try:
        work(job, root, functions)
    except VsslError as error:
        write_text(root / "logs" / f"{job.id}.error", str(error))
        sys.exit(1)


def work(job: Job, root: Path, functions: dict[str, Callable]) -> None:
    """Make a job here, and store what it makes. Raises VsslError."""
    begin = time.perf_counter()
    made = _WORK[job.kind](job, Store(root), functions)
    seconds = (time.perf_counter() - begin) / max(1, len(made))
    told = {"cost": job.cost[0], "clips": job.cost[1] / len(made), "device": kind_of_device(job.how["device"])}
    for id, content in made.items():
        path = Store(root).run(id) / "done.json" if job.kind == "train" else root / "results" / f"{id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"seconds": round(seconds, 2)} | told | content)


def _train(job: Job, store: Store, functions: dict) -> dict[str, dict]:
    how = job.how
    run = train_or_resume(
        store.run(job.id) / "run",
        on_device(how["settings"], how["device"]),
        how["source"],
        initial=how["start"] or None,
    )
    seconds = _logged_seconds(run)
    return {job.id: {"seconds": round(seconds, 2)}}


def _logged_seconds(run: Path) -> float:
    rows = csv.DictReader(read_text(run / "log.csv").splitlines())
    return sum(float(row["total_ms"]) for row in rows) / 1000


def on_device(settings: dict, device: str) -> Settings:
    """Settings of a run for its process there: beside a CPU that trains pixels are decoded by that process."""
    own = Settings(**settings)
    return replace(own, device=device, workers=0 if device == "cpu" else own.workers)


def train_or_resume(
    run: Path, own: Settings, source: Source, target: str | None = None, initial: str | None = None
) -> Path:
    """Train a run, from where it stopped."""
    from trainer.training import train

    overlay = source.overlay if target is None else source.overlays[target]

    if any((run / "checkpoints").glob("[0-9]*")):
        return train(Settings(device=own.device, workers=own.workers), source.folder, resume=run, overlay=overlay)
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    return train(own, source.folder, run=run, initial=initial, overlay=overlay)


def _frozen(job: Job, store: Store, functions: dict) -> dict[str, dict]:
    from trainer.study import measures

    how, made = job.how, dict[str, dict]()
    source, compute = how["source"], measures.Compute(workers=0, device=how["device"])
    requests = [own for own in how["requests"] if not store.has(own[0])]
    for run in dict.fromkeys(how["run"].values()):
        splits = [split for split, own in how["run"].items() if own == run]
        shards = source.opened(splits[0])
        with _scratch(store) as folder:
            if job.kind == "flow":
                found = measures.flow_features(shards, functions["flow"])
            else:
                place = store.run(run) / "run" if run else how["start"] or None
                found = measures.backbone_features(place, how["settings"], shards, Path(folder), compute)
            for id, target, measure, seed in requests:
                own = made.setdefault(id, {"scores": {}})
                try:
                    own["scores"] |= measures.scores(found, source, splits, target, measure, seed, how["device"])
                except VsslError as error:  # this number cannot be had, the others can
                    own["reason"] = str(error)
    return made


def _finetune(job: Job, store: Store, functions: dict) -> dict[str, dict]:
    from trainer.study import measures

    how, scores = job.how, dict[str, float]()
    for split, settings in how["settings"].items():
        own_run = how["run"][split]
        initial = str(store.run(own_run) / "run") if own_run else how["start"] or None
        run = train_or_resume(
            store.finetuned(job, split), on_device(settings, how["device"]), how["source"], how["target"], initial
        )
        opened = how["source"].opened(settings["split"], how["target"])
        scores |= measures.finetuned_scores(run, opened, measures.Compute(workers=0, device=how["device"]))
    shutil.rmtree(store.root / "finetuned" / job.id)  # only its scores are used
    return {job.makes[0]: {"scores": scores}}


def _pretext(job: Job, store: Store, functions: dict) -> dict[str, dict]:
    from trainer.study import measures

    how, made = job.how, {"scores": dict[str, float](), "chance": dict[str, float]()}
    for split, run in how["run"].items():
        try:
            place, compute = store.run(run) / "run", measures.Compute(workers=0, device=how["device"])
            found = measures.pretext_scores(place, how["source"].opened(split), how["draws"], compute)
        except VsslError as error:  # a method without an accuracy
            return {job.makes[0]: {"scores": {}, "reason": str(error)}}
        for key, scores in zip(made, found, strict=True):
            made[key] |= scores or {}
    return {job.makes[0]: made}


def _scratch(store: Store) -> tempfile.TemporaryDirectory:
    """Folder for features, which are not kept."""
    (store.root / "scratch").mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=store.root / "scratch")


_WORK = {"train": _train, "frozen": _frozen, "flow": _frozen, "finetune": _finetune, "pretext": _pretext}


def make(
    jobs: Sequence[Job], root: Path, workers: int, scheduler: str | None, device: str, functions: dict
) -> Iterator[tuple[Job, str]]:
    """Make all jobs, several at a time; each with "" or why it failed, as they end. Raises ClusterError for a cluster that
    cannot be used."""
    if scheduler is None:
        import joblib

        workers = min(workers, 4 * cores())  # a slip of the pen would start thousands
        threads = max(1, cores() // workers)
        parallel = joblib.Parallel(
            n_jobs=max(1, min(workers, len(jobs))), backend="threading", batch_size=1, return_as="generator_unordered"
        )
        yield from parallel(joblib.delayed(execute)(job, root, threads, functions) for job in jobs)
        return
    yield from _on_cluster(jobs, root, scheduler, device, functions)


def _on_cluster(jobs, root: Path, scheduler: str, device: str, functions: dict) -> Iterator[tuple[Job, str]]:
    with connected(scheduler) as client:
        from distributed import CancelledError, KilledWorker, as_completed

        workers = client.nthreads()
        threads = min(workers.values())
        # one GPU per run where workers have been started with --resources GPU=1
        gpus = client.run_on_scheduler(lambda dask_scheduler: bool(dask_scheduler.resources.get("GPU")))
        resources = {"GPU": 1} if gpus and device != "cpu" else None
        waiting = {
            client.submit(execute, job, root, threads, functions, pure=False, resources=resources): job for job in jobs
        }
        try:
            for future in as_completed(waiting, loop=client.loop):
                try:
                    yield future.result()
                except (KilledWorker, CancelledError) as error:
                    yield waiting[future], f"the Dask cluster failed ({error})"
        finally:
            client.cancel([*waiting])
