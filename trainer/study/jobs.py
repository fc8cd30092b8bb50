"""The jobs of a study: their identity, their results, and how these are stored."""

from __future__ import annotations

import csv
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from labelgen.errors import ReadError, VsslError
from labelgen.files import json_sha256, write_json
from labelgen.reading import load_json, read_text, validate
from trainer.data import TEST
from trainer.errors import TrainerError
from trainer.evaluate.evaluator import Evaluator
from trainer.evaluate.features import CELLS, Compute, Features
from trainer.evaluate.results import NEIGHBOURS, check_neighbours
from trainer.settings import FREE, Settings, resolve
from trainer.study import measures
from trainer.study.devices import kind_of_device
from trainer.study.sources import Source, few_label_split
from trainer.study.spec import Measure
from trainer.training import train

# Raise the number of a kind of job if a change gives it other results for the same settings and data: another draw, another
# default that is not a setting, a corrected loss or score. Studies then compute all jobs of this kind again. Leave the numbers
# unchanged if results stay the same, as in a refactoring. A job also depends on the trainings before it.
VERSIONS = {"train": 1, "frozen": 1, "flow": 1, "finetune": 1, "pretext": 1}
_LIBRARIES = {name: metadata.version(name) for name in ("torch", "numpy")}
_RESULT = {
    **{"seconds": float, "cost": str, "clips": float},
    **{
        "device?": str,
        "scores?": {"*": float},
        "chance?": {"*": float},
        "predicted?": {"*": str},
        "stages?": {"*": str},
        "map?": {"*": [float]},
    },
    "neighbours?": NEIGHBOURS,
    **{"reason?": str, "validated?": float},
}


def identity(kind: str, **what: object) -> str:
    """Hash of everything that determines a run or a result: settings, data (see Source), the number in VERSIONS, and the
    versions of torch and NumPy."""
    return json_sha256({"kind": kind, "version": VERSIONS[kind], **_LIBRARIES, **what})


def determining(settings: Settings) -> dict:
    """The settings that affect weights, including all defaults."""
    return {name: value for name, value in asdict(resolve(settings)).items() if name not in FREE}


class Store:
    """The folder of a study: runs/ID/ for trainings, results/ID.json, logs/ID.txt."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, id: str) -> Path:
        """Folder of a training."""
        return self.root / "runs" / id

    def result(self, id: str) -> dict:
        """The stored content of a result, or the record of a training. Raises TrainerError if it is damaged."""
        path = self.run(id) / "done.json" if self.run(id).is_dir() else self.root / "results" / f"{id}.json"
        try:
            content = load_json(path)
            validate(content, _RESULT, "it")
            check_neighbours(content.get("neighbours", ()))
            if any(len(place) != 2 for place in content.get("map", {}).values()):
                raise ValueError("map has a place that is not x and y")
        except (ReadError, ValueError) as error:
            raise TrainerError(f"{path}: damaged ({error}); delete it, and run the study again") from error
        return content

    def has(self, id: str) -> bool:
        """Whether a training or a result exists and is complete."""
        return (self.run(id) / "done.json").exists() or (self.root / "results" / f"{id}.json").exists()

    def ids(self) -> list[str]:
        """The ids of all existing trainings and results."""
        runs = (path.parent.name for path in self.root.glob("runs/*/done.json"))
        return [*runs, *(path.stem for path in self.root.glob("results/*.json"))]

    def log(self, job: Work) -> Path:
        """The file with the output of a job."""
        return self.root / "logs" / f"{job.id}.txt"

    def marker(self, job: Work) -> Path:
        """A file that exists while a job runs; it holds its device and the length of its log before it started."""
        return self.root / "logs" / f"{job.id}.running"

    def done(self, job: Work) -> bool:
        """Whether all results of a job exist."""
        return all(map(self.has, job.makes))


@dataclass(frozen=True, eq=False)
class Work:
    """The work of one process. id: hash of everything that determines it; row, title: for the reader; device: one device, or
    several that share the jobs"""

    kind: ClassVar[str]
    id: str
    row: str
    title: str
    device: str

    @property
    def needs(self) -> list[str]:
        """The ids of the results that it needs."""
        return []

    @property
    def makes(self) -> tuple[str, ...]:
        """The ids of its results."""
        return (self.id,)

    def work_and_store(self, store: Store, flow: Callable | None) -> None:
        """Run it in this process, and store its results; flow: see `study`. Raises VsslError."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Job(Work):
    """The work of one process on a data set and a network.

    cost: name shared by jobs of equal cost per clip, and clips: number of clips, for the estimate
    source: the data set that it reads; networks: by split, the id of the training whose network is used, None for random weights
    start: run or file whose backbone is used instead of random weights, "" for none
    """

    cost: str
    clips: float
    source: Source
    networks: dict[str, str | None]
    start: str

    def network(self, store: Store, split: str) -> Path | str | None:
        """The run or file of the network to test on a split, None for random weights."""
        id = self.networks[split]
        return store.run(id) / "run" if id else self.start or None

    @property
    def needs(self) -> list[str]:
        """The ids of the trainings that it needs."""
        return list(dict.fromkeys(id for id in self.networks.values() if id))

    @property
    def compute(self) -> Compute:
        return Compute(workers=0, device=self.device)

    def work(self, store: Store, flow: Callable | None) -> dict[str, dict]:
        """Run it in this process. Returns the content to store by id. flow: see `study`. Raises VsslError."""
        raise NotImplementedError

    def work_and_store(self, store: Store, flow: Callable | None) -> None:
        begin = time.perf_counter()
        made = self.work(store, flow)
        took = round((time.perf_counter() - begin) / max(1, len(made)), 2)
        about = {"seconds": took, "cost": self.cost, "device": kind_of_device(self.device)}
        for id, content in made.items():
            path = store.run(id) / "done.json" if self.kind == "train" else store.root / "results" / f"{id}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, about | {"clips": self.clips / len(made)} | content)


@dataclass(frozen=True, eq=False)
class Training(Job):
    """A pretraining; videos: the number of videos that it sees, and that of the training part."""

    kind = "train"
    settings: Settings
    videos: tuple[int, int]

    def work(self, store: Store, flow: Callable | None) -> dict[str, dict]:
        run = store.run(self.id) / "run"
        _train_or_resume(run, self.settings, self, self.source.overlay, self.start or None)
        rows = csv.DictReader(read_text(run / "log.csv").splitlines())
        return {self.id: {"seconds": round(sum(float(row["total_ms"]) for row in rows) / 1000, 2)}}


@dataclass(frozen=True)
class Request:
    """A number to measure on features; id: of the result; validates: whether to cross-validate in the training part only, and
    give the accuracy of the best stage."""

    id: str
    target: str
    measure: Measure
    seed: int
    validates: bool = False


@dataclass(frozen=True, eq=False)
class Measuring(Job):
    """All measures on the same features of videos."""

    requests: tuple[Request, ...]

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(request.id for request in self.requests)

    def features(self, store: Store, split: str, flow: Callable | None, folder: Path) -> Features:
        """The features of all videos, by the network to test on this split; folder: a temporary folder."""
        raise NotImplementedError

    def disturbed(self, store: Store, split: str, folder: Path, videos: np.ndarray, time: str) -> Features:
        """The features of some videos (int64 rows), with the frames of their clips disturbed."""
        raise NotImplementedError

    def work(self, store: Store, flow: Callable | None) -> dict[str, dict]:
        requests = [request for request in self.requests if not store.has(request.id)]
        made: dict[str, dict] = {}
        (store.root / "scratch").mkdir(exist_ok=True)
        for network in dict.fromkeys(self.networks.values()):
            splits = [split for split, tested in self.networks.items() if tested == network]
            with tempfile.TemporaryDirectory(dir=store.root / "scratch") as folder:  # features are deleted afterwards
                features = self.features(store, splits[0], flow, Path(folder))
                parts = [self.source.opened(split).part == TEST for split in splits]
                tested = np.flatnonzero(np.any(parts, axis=0))
                times = dict.fromkeys(request.measure.time for request in requests if request.measure.time)
                others = {time: self.disturbed(store, splits[0], Path(folder), tested, time) for time in times}
                scoring = measures.Scoring(features, self.source, self.compute, tested, others)
                for request, split in itertools.product(requests, splits):
                    content, measure = made.setdefault(request.id, {"scores": {}}), request.measure
                    try:
                        few = few_label_split(split, measure.labels, request.seed)
                        if request.validates:
                            content["validated"] = max(scoring.validated(few, request.target, measure).values())
                            continue
                        found, stage = scoring.scores(few, request.target, measure)
                    except VsslError as error:  # the other numbers may still be measured
                        content["reason"] = str(error)
                        continue
                    content["scores"] |= found.right
                    content["predicted"] = content.get("predicted", {}) | found.predicted
                    if stage:
                        content["stages"] = content.get("stages", {}) | {split: stage}
                    if found.neighbours and measure.headline and "neighbours" not in content:  # of the first split
                        content["neighbours"] = found.neighbours
                        content["map"] = scoring.places(
                            few, request.target, replace(measure, stage=stage or measure.stage)
                        )
        return made


@dataclass(frozen=True, eq=False)
class Frozen(Measuring):
    """Measures on the features of a backbone; settings: those of the network, used for random weights."""

    kind = "frozen"
    settings: Settings

    def features(self, store: Store, split: str, flow: Callable | None, folder: Path) -> Features:
        return self._features(store, split, folder)

    def disturbed(self, store: Store, split: str, folder: Path, videos: np.ndarray, time: str) -> Features:
        return self._features(store, split, folder, videos=videos, time=time)

    def _features(self, store: Store, split: str, folder: Path, **which: Any) -> Features:
        run, opened = self.network(store, split), self.source.opened(split)
        of_cells = any(request.measure.pooling == CELLS for request in self.requests)
        return measures.backbone_features(run, self.settings, opened, folder, self.compute, **which, of_cells=of_cells)


@dataclass(frozen=True, eq=False)
class Histograms(Measuring):
    """Measures on histograms; the stage of each requested measure is the name of a kind of histogram."""

    kind = "flow"  # the flow takes most of the time

    def features(self, store: Store, split: str, flow: Callable | None, folder: Path) -> Features:
        assert flow is not None
        kinds = dict.fromkeys(request.measure.stage for request in self.requests)
        return measures.histogram_features(self.source.opened(split), kinds, flow)


@dataclass(frozen=True, eq=False)
class Finetuning(Job):
    """A finetuning for each split; settings: by split; times: by the id of the result, what is done to the frames of tested
    clips, "" for nothing."""

    kind = "finetune"
    target: str
    settings: dict[str, Settings]
    times: dict[str, str]

    @property
    def makes(self) -> tuple[str, ...]:
        return tuple(self.times)

    def work(self, store: Store, flow: Callable | None) -> dict[str, dict]:
        made: dict[str, dict] = {id: {"scores": {}, "predicted": {}} for id in self.times}
        folder = store.root / "finetuned" / self.id
        for split, settings in self.settings.items():
            run = folder / split.replace("/", "_")
            _train_or_resume(run, settings, self, self.source.overlays[self.target], self.network(store, split))
            opened = self.source.opened(str(settings.split), self.target)
            for id, shown in self.times.items():
                times = (shown,) if shown else ()
                found = Evaluator(opened, run, compute=self.compute).scores("recognition", times=times)
                made[id]["scores"] |= found.right
                made[id]["predicted"] |= found.predicted
        shutil.rmtree(folder)  # only the scores are needed
        return made


@dataclass(frozen=True, eq=False)
class Pretext(Job):
    """A test of the row's pretext task; draws: number of draws of each sample."""

    kind = "pretext"
    draws: int

    def work(self, store: Store, flow: Callable | None) -> dict[str, dict]:
        made: dict[str, dict[str, float]] = {"scores": {}, "chance": {}}
        for split, id in self.networks.items():
            try:
                evaluator = Evaluator(self.source.opened(split), store.run(str(id)) / "run", compute=self.compute)
                found = evaluator.scores("pretext", draws=self.draws)
            except VsslError as error:  # a method without an accuracy
                return {self.id: {"scores": {}, "reason": str(error)}}
            made["scores"] |= found.right
            made["chance"] |= found.chance or {}
        return {self.id: made}


def _train_or_resume(run: Path, settings: Settings, job: Job, overlay: Path, initial: Path | str | None) -> None:
    """Train a run, or resume it from its last checkpoint. On a CPU, the training process also decodes the frames."""
    workers = 0 if job.device == "cpu" else settings.workers
    if any((run / "checkpoints").glob("[0-9]*")):
        train(Settings(device=job.device, workers=workers), job.source.folder, resume=run, overlay=overlay)
        return
    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, device=job.device, workers=workers)
    train(settings, job.source.folder, run=run, initial=initial, overlay=overlay)
