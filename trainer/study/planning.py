"""From a study file and its data sets to the runs: which there are, what is missing, how long it takes."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from labelgen.reading import read_text
from trainer import data, distributed
from trainer.errors import TrainerError
from trainer.network import build_backbone
from trainer.settings import Settings, over, resolve
from trainer.study.devices import kind_of_device
from trainer.study.file import ALL, FLOW, SUPERVISED, VIEWS, WEIGHTS, WITHOUT_LABELS, Measure, Row, Study
from trainer.study.jobs import Job, Store, code, determining, identity
from trainer.study.sources import Source, few_name
from trainer.training.precision import pick_precision, set_precision
from trainer.training.streams import epoch_of, training_clips


@dataclass(frozen=True)
class Column:
    """What numbers of all rows stand under one another: data set that networks were pretrained on, and the test; target: the
    labels, of a measure that needs none whichever come first."""

    pretrained_on: str
    tested_on: str
    target: str
    measure: Measure


@dataclass(frozen=True)
class Planned:
    """jobs: all of them, done or not, trainings first; numbers: id of the result by (row, column, seed); unknown: why there
    is none, likewise; runs: id of the training by (row, data set, split, seed); tried: of the trainings to choose from by
    (row, data set), one for each of the row's candidates; chosen: index of the best, where it is known"""

    jobs: dict[str, Job]
    numbers: dict[tuple[str, Column, int], str]
    unknown: dict[tuple[str, Column, int], str]
    runs: dict[tuple[str, str, str, int], str]
    tried: dict[tuple[str, str], list[str]]
    chosen: dict[tuple[str, str], int]


def columns(study: Study, sources: dict[str, Source]) -> list[Column]:
    """All columns, those of one pretraining and test side by side."""
    found = []
    for measure in study.measures:
        for tested in measure.on:
            named = measure.pretrained_on
            before = [tested] if named == "itself" else study.data if named == ALL else named
            targets = [*sources[tested].overlays] if tested in sources else []
            targets = [own for own in targets if not own or not measure.targets or own in measure.targets]
            for target in targets[:1] if measure.protocol in WITHOUT_LABELS else targets:
                found += [Column(name, tested, target, measure) for name in before if name in sources]
    places = list(dict.fromkeys((c.tested_on, c.target, c.pretrained_on) for c in found))
    return sorted(dict.fromkeys(found), key=lambda c: places.index((c.tested_on, c.target, c.pretrained_on)))


def plan(study: Study, sources: dict[str, Source], store: Store, device: str, failed: dict[str, str]) -> Planned:
    """All jobs of a study as far as they are known: settings that are still to be chosen are taken as the first ones.

    failed: why, by id of the jobs that did not work just now
    """
    planner = _Planner(study, sources, store, device, failed)
    for column in columns(study, sources):
        for row in study.rows.values():
            asked = row.kind != "method" or row.name in (column.measure.rows or study.rows)
            for seed in study.seeds if asked else ():
                planner.number(row, column, seed)
    return planner.planned


class _Planner:
    def __init__(self, study: Study, sources: dict[str, Source], store: Store, device: str, failed: dict[str, str]):
        self.study, self.sources, self.store, self.device, self.failed = study, sources, store, device, failed
        self.planned = Planned({}, {}, {}, {}, {}, {})
        self.trainings: dict[tuple, str] = {}

    def number(self, row: Row, column: Column, seed: int) -> None:
        key = row.name, column, seed
        try:
            if column.measure.protocol == "finetune":
                made = self._finetuned(row, column, seed)
            elif column.measure.protocol == "pretext":
                made = self._pretext(row, column, seed)
            else:
                made = self._frozen(row, column, seed)
        except TrainerError as error:
            self.planned.unknown[key] = str(error)
        else:
            if made:
                self.planned.numbers[key] = made

    def _add(self, job: Job) -> None:
        old = self.planned.jobs.get(job.id)
        if old is not None and set(job.makes) - set(old.makes):
            old.how["requests"] += job.how["requests"]
            job = replace(old, makes=(*old.makes, *job.makes))
        elif old is not None:
            return
        self.planned.jobs[job.id] = job

    def _networks(self, row: Row, column: Column, seed: int) -> dict[str, str | None]:
        """Id of the training whose network is tested, by split; None: random weights."""
        tested, before = self.sources[column.tested_on], self._source(row, column.pretrained_on)
        if row.kind != "method":
            return dict.fromkeys(tested.splits)
        same = column.tested_on == column.pretrained_on
        return {split: self._trained(row, before, split if same else before.splits[0], seed) for split in tested.splits}

    def _source(self, row: Row, name: str) -> Source:
        """A data set as the row asks for it."""
        own = row.pretrains_on(name)
        if own not in self.sources:
            raise TrainerError(
                f"{own} is not there: it needs a data set that the study labels itself, and labelling that works"
            )
        return self.sources[own]

    def _trained(self, row: Row, source: Source, split: str, seed: int) -> str:
        split, name = source.pretraining(split), source.data.name
        index, first = 0, self.study.seeds[0]
        if len(row.candidates) > 1:
            split_of_choice = source.pretraining(source.splits[0])
            tried = [self._training(row, source, split_of_choice, first, i) for i in range(len(row.candidates))]
            self.planned.tried[row.name, name] = tried
            best = self._choose(tried, [resolve(own) for own in row.candidates])
            if best is not None:  # else a later plan knows
                index = self.planned.chosen[row.name, name] = best
        id = self._training(row, source, split, seed, index)
        self.planned.runs[row.name, name, split, seed] = id
        return id

    def _training(self, row: Row, source: Source, split: str, seed: int, index: int) -> str:
        key = row.name, source.data.name, split, seed, index
        if key in self.trainings:
            return self.trainings[key]
        settings = replace(row.candidates[index], seed=seed, split=split)
        epochs, clips, videos = _epochs(source, settings, row.clips)
        settings = replace(settings, epochs=epochs)
        what = {"settings": determining(settings), "data": source.identity[split]}
        what |= {"start": row.weights} if row.weights else {}
        id = self.trainings[key] = identity(kind="train", code=code("train"), **what)
        own = resolve(settings)
        told = f"pretrain on {source.data.name}{f', split {split}' if len(source.splits) > 1 else ''}, seed {seed}"
        tried = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.tried[index].items()
        )
        how = {"settings": asdict(settings), "source": source, "device": self.device, "start": row.start}
        cost = f"{own.method} {own.backbone} {own.width:g} {_clip(source)}", clips
        self._add(Job("train", id, (), how, (), row.name, ", ".join(filter(None, (told, tried))), cost, videos))
        return id

    def _choose(self, tried: list[str], settings: list[Settings]) -> int | None:
        """Index of the training with the lowest held-out loss; None while one is missing."""
        if not all(self.store.has(id) or id in self.failed for id in tried):
            return None
        losses = [held_out_loss(self.store, id, own) for id, own in zip(tried, settings, strict=True)]
        return int(np.argmin(losses))

    def _identity(self, row: Row, networks: dict, seed: int) -> object:
        if row.kind == FLOW:
            return FLOW
        if row.kind == WEIGHTS:
            return row.weights
        own = resolve(row.candidates[0])
        return networks if row.kind == "method" else [own.backbone, own.width, seed]

    def _frozen(self, row: Row, column: Column, seed: int) -> str | None:
        measure, source = column.measure, self.sources[column.tested_on]
        if row.kind == SUPERVISED or (row.kind == FLOW and measure.protocol == "smoothness"):
            return None
        if measure.labels != ALL:
            self._draw(source, column, seed)
        networks = self._networks(row, column, seed)
        network = {"network": self._identity(row, networks, seed), "data": source.identity}
        what = measure.what
        if row.kind == FLOW:
            what |= {"stage": "", "pooling": "", "parts": 1}
        drawn_by = seed if measure.labels != ALL else None
        measured = {"labels": source.labels[column.target], "measure": what, "seed": drawn_by}
        id = identity(kind="frozen", code=code("measure"), **network, **measured)
        kind = "flow" if row.kind == FLOW else "frozen"
        settings = None if row.kind == FLOW else asdict(replace(row.candidates[0], seed=seed))
        how = {"source": source, "run": networks, "settings": settings, "device": self.device}
        how["start"] = row.start if row.kind == WEIGHTS else ""
        how["requests"] = [(id, column.target, measure, seed)]
        needs = tuple(dict.fromkeys(filter(None, networks.values())))
        videos = _videos(source) * max(1, len(needs))
        cost = "flow", videos
        if row.kind != FLOW:
            own = resolve(row.candidates[0])
            cost = f"features {own.backbone} {own.width:g} {_clip(source)}", videos * VIEWS
        told = f"measure on {column.tested_on}" + (f", pretrained on {column.pretrained_on}" if needs else "")
        told += f", seed {seed}" if row.kind != FLOW else ""
        job = identity(kind=kind, **network, **({} if row.kind == FLOW else {"seed": seed}))
        self._add(Job(kind, job, (id,), how, needs, row.name, told, cost))
        return id

    def _draw(self, source: Source, column: Column, seed: int) -> int:
        """Number of labelled videos that a classifier learns from, in the first split. Raises TrainerError where a class
        has too few."""
        for split in source.splits:
            if few_name(split, column.measure.labels, seed) not in source.opened(split, column.target).split_names:
                raise TrainerError(f"a class has fewer than {column.measure.labels} training videos in split {split}")
        first = source.opened(few_name(source.splits[0], column.measure.labels, seed), column.target)
        return int(((first.part == data.TRAIN) & (first.targets >= 0)).sum())

    def _finetuned(self, row: Row, column: Column, seed: int) -> str | None:
        measure, source = column.measure, self.sources[column.tested_on]
        if row.kind == FLOW:
            return None
        videos = self._draw(source, column, seed)
        networks = self._networks(row, column, seed)
        own = resolve(row.candidates[0])
        clips = measure.clips + (row.clips if row.kind == SUPERVISED else 0)
        epochs = max(1, round(clips / max(1, videos)))
        bare = Settings(method="recognition", backbone=own.backbone, width=own.width, seed=seed)
        bare = replace(over(measure.settings or Settings(), bare), epochs=epochs)
        settings = {s: replace(bare, split=few_name(s, measure.labels, seed)) for s in source.splits}
        network = self._identity(row, networks, seed) if row.kind in ("method", WEIGHTS) else None
        what = {"network": network, "data": source.identity, "labels": source.labels[column.target]}
        of = {split: determining(one) for split, one in settings.items()}
        id = identity(kind="finetune", code=code("train") + code("measure"), settings=of, **what)
        how = {"source": source, "target": column.target, "run": networks, "device": self.device}
        how |= {"settings": {split: asdict(one) for split, one in settings.items()}}
        how["start"] = row.start if row.kind == WEIGHTS else ""
        needs = tuple(dict.fromkeys(filter(None, networks.values())))
        told = f"{measure.title} on {column.tested_on} {column.target}".rstrip()
        told += (f", pretrained on {column.pretrained_on}" if needs else "") + f", seed {seed}"
        cost = f"recognition {own.backbone} {own.width:g} {_clip(source)}", epochs * videos * len(settings)
        self._add(Job("finetune", id, (id,), how, needs, row.name, told, cost))
        return id

    def _pretext(self, row: Row, column: Column, seed: int) -> str | None:
        if row.kind != "method":
            return None  # it has no pretext task
        measure, source = column.measure, self._source(row, column.tested_on)
        if source.data.pretraining == ALL and column.tested_on == column.pretrained_on:
            raise TrainerError("pretraining sees all videos: none is left to test the pretext task on")
        networks = self._networks(row, column, seed)
        id = identity(kind="pretext", code=code("measure"), network=networks, data=source.identity, draws=measure.draws)
        how = {"source": source, "run": networks, "draws": measure.draws, "device": self.device}
        needs = tuple(dict.fromkeys(filter(None, networks.values())))
        told = f"pretext task on {column.tested_on}, pretrained on {column.pretrained_on}, seed {seed}"
        own = resolve(row.candidates[0])
        cost = f"features {own.backbone} {own.width:g} {_clip(source)}", _videos(source) * measure.draws
        self._add(Job("pretext", id, (id,), how, needs, row.name, told, cost))
        return id


def held_out_loss(store: Store, id: str, settings: Settings) -> float:
    """Last loss on held-out videos of a training; infinite where it failed or diverged."""
    path = store.run(id) / "run" / "holdout.csv"
    if not store.has(id) or not path.exists():
        return math.inf
    last = [*csv.DictReader(read_text(path).splitlines())][-1]
    weights = zip(settings.methods, settings.weights or (), strict=True)
    names = {"loss": 1} if "loss" in last else {f"{name}.loss": weight for name, weight in weights}
    loss = sum(weight * float(last[name]) for name, weight in names.items())
    return loss if math.isfinite(loss) else math.inf


def _clip(source: Source) -> str:
    config = source.opened(source.splits[0]).config
    return f"{config['clip_length']}x{config['crop']}"


def _videos(source: Source) -> int:
    return len(source.opened(source.splits[0]).videos)


def _epochs(source: Source, settings: Settings, clips: int) -> tuple[int, float, tuple[int, int]]:
    """Passes whose clips come nearest to a budget, how many clips these are, of how many videos, and how many videos the training
    part has."""
    own = resolve(settings)
    values, opened = asdict(own), source.opened(str(own.split))
    whole = int(opened.trains.sum())
    shards = opened.with_training_videos(opened.trains)
    if own.holdout:
        shards.hold_out(values["holdout"], values["seed"])
    shards.keep(values["fraction"], values["seed"])
    with contextlib.redirect_stdout(io.StringIO()):  # it says which videos it leaves out, as it does when it trains
        clips_of = training_clips(shards, own)
    each = epoch_of(clips_of, own)[1]
    epochs, videos = max(1, round(clips / each)), {video for own in clips_of.values() for video in _videos_of(own)}
    return epochs, epochs * each, (len(videos), whole)


def _videos_of(clips: data.TrainingClips) -> list[int]:
    """Rows of the videos that the samples of a method are of."""
    shards, (shard, item) = clips.shards, clips.samples.T
    if clips.method.of_labelled_clips and shards.config["clips"] is None:  # the samples are clips
        return shards.owner[(np.cumsum(shards.readers.n_clips) - shards.readers.n_clips)[shard] + item].tolist()
    return (np.asarray(shards.before)[shard] + item).tolist()


def seconds(planned: Iterable[Job], store: Store, device: str) -> Iterator[tuple[Job, float]]:
    """About how long each job takes on such a device: at the rate of like jobs of this study that were done on one, else of a
    few steps made now. Raises TrainerError for a device that cannot be used."""
    kind_of, spent = kind_of_device(device), dict[str, list[float]]()
    for path in (*store.root.glob("runs/*/done.json"), *store.root.glob("results/*.json")):
        made = store.result(path.parent.name if path.name == "done.json" else path.stem)
        if made.get("device") == kind_of:
            total = spent.setdefault(made["cost"], [0.0, 0.0])
            total[0] += made["seconds"]
            total[1] += made["clips"]
    for job in planned:
        kind, clips = job.cost
        if kind in spent:
            yield job, clips * spent[kind][0] / spent[kind][1]
        else:
            yield job, clips * (0.3 if kind == "flow" else _rate(kind, device.split(",")[0]))


@functools.cache
def _rate(kind: str, name: str) -> float:
    """Seconds per clip of a network on the device of that name, in training or, of "features", forward alone."""
    what, backbone, width, clip = kind.split(" ")
    trains = what != "features"
    frames, crop = map(int, clip.split("x"))
    settings, device = resolve(Settings(backbone=backbone, width=float(width))), distributed.pick_device(name)
    network = build_backbone(settings)
    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    set_precision(pick_precision("auto" if trains else "float32", device), network)
    clips = torch.rand(4 if device.type == "cpu" else 16, 3, frames, crop, crop, device=device)
    for _ in range(2):  # the first time kernels are chosen
        begin = time.perf_counter()
        with torch.set_grad_enabled(trains):
            total = [*network(clips).values()][-1].sum()
        if trains:
            total.backward()
            total = next(
                weight.grad.sum() for weight in network.parameters() if weight.grad is not None
            )  # the last that is computed
        total.item()  # the device is waited for
        took = time.perf_counter() - begin
    return took / len(clips)
