"""Plans a study: the jobs for its file and data sets, and the result behind each number."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from labelgen.reading import read_text
from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate.features import CELLS
from trainer.evaluate.splits import words
from trainer.settings import Settings, over, resolve
from trainer.study.jobs import (
    Finetuning,
    Frozen,
    Histograms,
    Job,
    Measuring,
    Pretext,
    Request,
    Store,
    Training,
    determining,
    identity,
)
from trainer.study.sources import Source, few_label_split
from trainer.study.spec import ALL, HISTOGRAMS, SUPERVISED, VIEWS, Measure, Row, Study, unlabelled
from trainer.training.streams import epoch_of, training_clips


@dataclass(frozen=True)
class Column:
    """What the numbers of a column share: the data set of pretraining, the data set of the test, the target (its classes; the
    first one for a measure that needs no classes), and the measure."""

    pretrained_on: str
    tested_on: str
    target: str
    measure: Measure

    @property
    def tested(self) -> str:
        """The tested data set and target, in words."""
        return f"{self.tested_on} {self.target}".rstrip()


Key = tuple[str, Column, int]  # row, column, seed


@dataclass(frozen=True)
class Plan:
    """jobs: all jobs by id, done or not; numbers: id of the result of each number; unknown: why a number does not exist

    runs: id of the training by (row, data set, split, seed)
    tried: ids of the trainings to choose from by (row, data set), one for each candidate of the row; worth: the quality of each,
    once it is known, of which the highest is used; deciding: the jobs that are needed for this choice
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    numbers: dict[Key, str] = field(default_factory=dict)
    unknown: dict[Key, str] = field(default_factory=dict)
    runs: dict[tuple[str, str, str, int], str] = field(default_factory=dict)
    tried: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    worth: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    deciding: dict[str, Job] = field(default_factory=dict)

    @property
    def undecided(self) -> bool:
        """Whether some settings have not been chosen yet."""
        return self.tried.keys() != self.worth.keys()


def columns(study: Study, sources: dict[str, Source]) -> list[Column]:
    """All columns; those with the same pretraining and test are adjacent."""
    found = []
    for measure in study.measures:
        for tested in (name for name in measure.tested_on if name in sources):
            named = measure.pretrained_on
            before: Sequence[str] = [tested] if named == "itself" else [*study.data] if named == ALL else named
            targets = [
                name for name in sources[tested].overlays if name in (measure.targets or sources[tested].overlays)
            ]
            for target in targets[:1] if unlabelled(measure.protocol) else targets:
                found += [Column(name, tested, target, measure) for name in before if name in sources]
    places = list(dict.fromkeys((c.tested_on, c.target, c.pretrained_on) for c in found))
    return sorted(dict.fromkeys(found), key=lambda c: places.index((c.tested_on, c.target, c.pretrained_on)))


def plan(study: Study, sources: dict[str, Source], store: Store, device: str, failed: dict[str, str]) -> Plan:
    """All jobs of a study. If settings have not been chosen yet, the first ones are used.

    failed: reasons by id of the jobs that have just failed
    """
    planner = _Planner(study, sources, store, device, failed)
    for column in columns(study, sources):
        for row in study.rows.values():
            measured = row.kind != "method" or row.name in (column.measure.rows or study.rows)
            for seed in study.seeds if measured else ():
                try:
                    if id := planner.number(row, column, seed):
                        planner.plan.numbers[row.name, column, seed] = id
                except TrainerError as error:
                    planner.plan.unknown[row.name, column, seed] = str(error)
    return planner.plan


class _Planner:
    def __init__(self, study: Study, sources: dict[str, Source], store: Store, device: str, failed: dict[str, str]):
        self.study, self.sources, self.store, self.device, self.failed = study, sources, store, device, failed
        self.plan = Plan()
        self.trainings: dict[tuple, str] = {}

    def number(self, row: Row, column: Column, seed: int) -> str | None:
        """Add the jobs of a number to the plan, and return the id of its result; None if the row has no such number. Raises
        TrainerError if it cannot be computed."""
        make = {"finetune": self._finetuned, "pretext": self._pretext}.get(column.measure.protocol, self._frozen)
        return make(row, column, seed)

    def _networks(self, row: Row, column: Column, seed: int) -> dict[str, str | None]:
        """The ids of the trainings whose networks are tested, by split; None for random weights."""
        tested = self.sources[column.tested_on]
        if row.kind != "method":
            return dict.fromkeys(tested.splits)
        before = self._source(row, column.pretrained_on)
        same = column.tested_on == column.pretrained_on
        return {split: self._trained(row, before, split if same else before.splits[0], seed) for split in tested.splits}

    def _source(self, row: Row, name: str) -> Source:
        """A data set, labelled as the row requires."""
        name = row.pretrains_on(name)
        if name not in self.sources:
            raise TrainerError(f"{name} is unavailable; expected a data set that the study labels without failure")
        return self.sources[name]

    def _trained(self, row: Row, source: Source, split: str, seed: int) -> str:
        """The id of a pretraining with the chosen settings."""
        split, key, index = source.pretraining(split), (row.name, source.data.name), 0
        if len(row.candidates) > 1:
            first, candidates = source.pretraining(source.splits[0]), range(len(row.candidates))
            self.plan.tried[key] = tried = [
                self._training(row, source, first, self.study.seeds[0], candidate) for candidate in candidates
            ]
            if worth := self._worth(row, source, tried):
                self.plan.worth[key] = worth
                index = int(np.argmax(worth))
        id = self.plan.runs[(*key, split, seed)] = self._training(row, source, split, seed, index)
        return id

    def _worth(self, row: Row, source: Source, tried: list[str]) -> list[float]:
        """The quality of each training, -inf if it failed; empty while results for it are missing."""
        self.plan.deciding.update((id, self.plan.jobs[id]) for id in tried)
        if not all(self.store.has(id) or id in self.failed for id in tried):
            return []
        if self.study.choose is None:
            return [-held_out_loss(self.store, *each) for each in zip(tried, row.candidates, strict=True)]
        jobs = [self._validation(row, source, id) if self.store.has(id) else None for id in tried]
        if any(job and not self.store.done(job) and job.id not in self.failed for job in jobs):
            return []
        made = [[self.store.result(id) for id in job.makes if self.store.has(id)] if job else [] for job in jobs]
        return [float(np.mean([result.get("validated", -math.inf) for result in of] or -math.inf)) for of in made]

    def _validation(self, row: Row, source: Source, network: str) -> Job:
        """The job that validates a training's network in the training part of the first split, for each target."""
        base = self.sources[next(name for name in self.study.data if row.pretrains_on(name) == source.data.name)]
        seed, split, measure = self.study.seeds[0], base.splits[0], self.study.choose
        assert measure is not None
        of = {"network": network, "data": base.identity[split], "validates": measure.determining}
        targets = [target for target in base.overlays if target in (measure.targets or base.overlays)]
        requests = tuple(
            Request(identity("frozen", labels=base.labels[target], **of), target, measure, seed, True)
            for target in targets
        )
        about = self._about(row, base, f"choose by {measure.title}: {self.plan.jobs[network].title}", {split: network})
        about |= {"cost": f"features {_size(row, base)}", "clips": len(base.opened(split).videos) * VIEWS}
        job = Frozen(id=identity("frozen", **of), settings=row.candidates[0], requests=requests, **about)
        self.plan.deciding[job.id] = self.plan.jobs[self._add(job)]
        return job

    def _training(self, row: Row, source: Source, split: str, seed: int, index: int) -> str:
        key = row.name, source.data.name, split, seed, index
        if key not in self.trainings:
            settings = replace(row.candidates[index], seed=seed, split=split)
            epochs, clips, videos = _epochs(source, settings, row.clips)
            settings = replace(settings, epochs=epochs)
            begin = {"start": row.weights} if row.weights else {}
            id = identity("train", settings=determining(settings), data=source.identity[split], **begin)
            title = f"pretrain on {source.data.name}{f', split {split}' if len(source.splits) > 1 else ''}, seed {seed}"
            tried = (f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.tried[index].items())
            cost = f"{resolve(settings).method} {_size(row, source)}"
            about = self._about(row, source, ", ".join([title, *tried]), {})
            job = Training(id=id, cost=cost, clips=clips, settings=settings, videos=videos, **about)
            self.trainings[key] = self._add(job)
        return self.trainings[key]

    def _add(self, job: Job) -> str:
        self.plan.jobs.setdefault(job.id, job)  # rows with the same settings share the job of the first
        return job.id

    def _about(self, row: Row, source: Source, title: str, networks: dict[str, str | None]) -> dict[str, Any]:
        """The fields that every job has."""
        about = {"row": row.name, "source": source, "title": title, "networks": networks, "device": self.device}
        return about | {"start": row.start}

    def _frozen(self, row: Row, column: Column, seed: int) -> str | None:
        measure, source, histogram = column.measure, self.sources[column.tested_on], HISTOGRAMS.get(row.kind)
        of_network = unlabelled(measure.protocol) or measure.time or measure.pooling == CELLS
        if row.kind == SUPERVISED or (histogram and of_network):
            return None
        few = measure.labels != ALL
        if few:
            _training_videos(source, column, seed)
        networks = self._networks(row, column, seed)
        network: object = networks if row.kind == "method" else row.weights or (not histogram and [*row.network, seed])
        kind, of = "flow" if histogram else "frozen", {"network": network or row.kind, "data": source.identity}
        what = measure.determining | ({"stage": "", "pooling": "", "parts": 1} if histogram else {})
        drawn = {"seed": seed if few else None}
        id = identity(kind, labels=source.labels[column.target], measure=what, **of, **drawn)
        if histogram:
            measure = replace(measure, stage=histogram, pooling="mean", parts=1, standing=True)
        requests = (Request(id, column.target, measure, seed),)
        title = f"measure on {column.tested_on}" + _how(column, networks, None if histogram else seed)
        about = self._about(row, source, title, networks)
        videos = len(source.opened(source.splits[0]).videos) * max(1, len(set(networks.values()) - {None}))
        if histogram:
            id_of_job = identity(kind, data=source.identity)
            job: Measuring = Histograms(id=id_of_job, cost=kind, clips=videos, requests=requests, **about)
        else:
            about |= {"cost": f"features {_size(row, source)}", "clips": videos * VIEWS}
            settings = replace(row.candidates[0], seed=seed)
            job = Frozen(id=identity(kind, **of, seed=seed), settings=settings, requests=requests, **about)
        old = self.plan.jobs.get(job.id)
        if isinstance(old, Measuring) and id in old.makes:
            job = old
        elif isinstance(old, Measuring):  # measures on the same features share a job
            new = measure.time and all(request.measure.time != measure.time for request in old.requests)
            tested = sum(int((source.opened(split).part == data.TEST).sum()) for split in source.splits) if new else 0
            job = replace(old, requests=old.requests + requests, clips=old.clips + tested * VIEWS)
        self.plan.jobs[job.id] = job
        return id

    def _finetuned(self, row: Row, column: Column, seed: int) -> str | None:
        if row.kind in HISTOGRAMS:
            return None
        measure, source = column.measure, self.sources[column.tested_on]
        videos = _training_videos(source, column, seed)
        networks = self._networks(row, column, seed)
        backbone, width = row.network
        budget = measure.clips + (row.clips if row.kind == SUPERVISED else 0)
        epochs = max(1, round(budget / max(1, videos)))
        bare = Settings(method="recognition", backbone=backbone, width=width, seed=seed)
        bare = replace(over(measure.settings or Settings(), bare), epochs=epochs)
        settings = {split: replace(bare, split=few_label_split(split, measure.labels, seed)) for split in source.splits}
        what = {
            "network": networks if row.kind == "method" else row.weights or None,
            "labels": source.labels[column.target],
        }
        of_splits = {split: determining(of_split) for split, of_split in settings.items()}
        id = identity("finetune", settings=of_splits, data=source.identity, **what)
        title = f"{measure.title} on {column.tested}" + _how(column, networks, seed)
        about = self._about(row, source, title, networks)
        about |= {"cost": f"recognition {_size(row, source)}", "clips": epochs * videos * len(settings)}
        of_time = identity("finetune", of=id, time=measure.time) if measure.time else id
        job = self.plan.jobs[self._add(Finetuning(id=id, target=column.target, settings=settings, times={}, **about))]
        assert isinstance(job, Finetuning)
        job.times[of_time] = measure.time
        return of_time

    def _pretext(self, row: Row, column: Column, seed: int) -> str | None:
        if row.kind != "method":
            return None  # such a row has no pretext task
        source, draws = self._source(row, column.tested_on), column.measure.draws
        if source.data.pretraining == ALL and column.tested_on == column.pretrained_on:
            raise TrainerError("pretraining is all, expected train: no video is left to test the pretext task on")
        networks = self._networks(row, column, seed)
        id = identity("pretext", network=networks, data=source.identity, draws=draws)
        title = f"pretext task on {column.tested_on}" + _how(column, networks, seed)
        about = self._about(row, source, title, networks)
        about |= {
            "cost": f"features {_size(row, source)}",
            "clips": len(source.opened(source.splits[0]).videos) * draws,
        }
        return self._add(Pretext(id=id, draws=draws, **about))


def _how(column: Column, networks: dict[str, str | None], seed: int | None) -> str:
    """The pretraining and the seed, in words."""
    before = f", pretrained on {column.pretrained_on}" if any(networks.values()) else ""
    return before + (f", seed {seed}" if seed is not None else "")


def held_out_loss(store: Store, id: str, settings: Settings) -> float:
    """The last loss of a training on held-out videos; infinite if it failed or diverged."""
    path = store.run(id) / "run" / "holdout.csv"
    if not store.has(id) or not path.exists():
        return math.inf
    last = [*csv.DictReader(read_text(path).splitlines())][-1]
    loss = float(total_loss({name: np.float64(text) for name, text in last.items()}, settings))
    return loss if math.isfinite(loss) else math.inf


def total_loss(logged: Mapping[str, Any], settings: Settings) -> Any:
    """The loss in columns of log.csv or holdout.csv; for several methods, the weighted sum."""
    if "loss" in logged:
        return logged["loss"]
    weights = asdict(resolve(settings))["weights"]
    return sum(weight * logged[f"{name}.loss"] for name, weight in zip(resolve(settings).methods, weights, strict=True))


def _training_videos(source: Source, column: Column, seed: int) -> int:
    """The number of labelled training videos of a classifier in the first split. Raises TrainerError if any split has too few."""
    for split in source.splits:
        if few_label_split(split, column.measure.labels, seed) not in source.opened(split, column.target).split_names:
            raise TrainerError(
                f"split {split} has too few training videos for labels of {words(column.measure.labels)}"
            )
    first = source.opened(few_label_split(source.splits[0], column.measure.labels, seed), column.target)
    return int(((first.part == data.TRAIN) & (first.targets >= 0)).sum())


def _size(row: Row, source: Source) -> str:
    """What determines the cost of a clip: backbone, width, frames and crop, such as "r3d10 0.125 16x40"."""
    (backbone, width), config = row.network, source.opened(source.splits[0]).config
    return f"{backbone} {width:g} {config['clip_length']}x{config['crop']}"


def _epochs(source: Source, settings: Settings, clips: int) -> tuple[int, float, tuple[int, int]]:
    """The number of passes whose clips come nearest to a budget, the number of clips in them, and the numbers of videos that they
    use and that the training part has."""
    settings, opened = resolve(settings), source.opened(str(settings.split))
    values = asdict(settings)
    shards = opened.with_training_videos(opened.train_mask)
    if settings.holdout:
        shards.hold_out(values["holdout"], values["seed"])
    shards.subsample(values["fraction"], values["seed"])
    clips_of = training_clips(shards, settings, say=lambda _: None)
    each = epoch_of(clips_of, settings)[1]
    epochs, videos = max(1, round(clips / each)), {video for each in clips_of.values() for video in _videos_of(each)}
    return epochs, epochs * each, (len(videos), int(opened.train_mask.sum()))


def _videos_of(clips: data.TrainingClips) -> list[int]:
    """The rows of the videos from which the samples of a method come."""
    shards, (shard, item) = clips.shards, clips.samples.T
    if clips.method.of_labelled_clips and shards.config["clips"] is None:  # the samples are clips
        return shards.clip_video[(np.cumsum(shards.readers.n_clips) - shards.readers.n_clips)[shard] + item].tolist()
    return (np.asarray(shards.first_row)[shard] + item).tolist()
