"""The data sets of a study: shards, the tested videos of each split, and the classes of each target."""

from __future__ import annotations

import csv
import functools
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelgen.errors import ReadError
from labelgen.files import json_sha256
from labelgen.reading import read_text
from trainer.data import TEST, TRAIN, Readers, Shards
from trainer.data.overlay import Overlay
from trainer.errors import TrainerError
from trainer.evaluate.splits import draw, words
from trainer.study.spec import ALL, Data

EVERY = "every video"  # name of the split that trains on all videos


@dataclass(frozen=True)
class Source:
    """A data set for use in a study.

    folder: its shards; overlays: by target, the file with the study's classes and splits; the target is "" if the classes are
    those of the shards; splits: names of the tested splits
    identity: hash of the shards and of the part of every video, by split; labels: hash of the classes, by target
    """

    data: Data
    folder: Path
    overlays: dict[str, Path]
    splits: tuple[str, ...]
    identity: dict[str, str]
    labels: dict[str, str]

    @property
    def overlay(self) -> Path:
        """The overlay for what needs no classes: pretraining, features, pretext tasks."""
        return next(iter(self.overlays.values()))

    def pretraining(self, split: str) -> str:
        """The name of the split for pretraining a network that is tested on `split`."""
        return EVERY if self.data.pretraining == ALL else split

    def opened(self, split: str, target: str | None = None) -> Shards:
        """The shards with a split and the classes of a target (None for any). Callers must not change them, they are shared."""
        return _opened(self.folder, self.overlay if target is None else self.overlays[target], split)


@functools.lru_cache(maxsize=64)
def _opened(folder: Path, overlay: Path, split: str) -> Shards:
    return Shards(folder, split, _readers(folder, overlay))


@functools.lru_cache(maxsize=8)
def _readers(folder: Path, overlay: Path) -> Readers:
    return Readers(folder, overlay)


def prepare(data: Data, folder: Path, root: Path, seeds: tuple[int, ...], few: tuple[int | str, ...]) -> Source:
    """The data set of the shards in `folder`. Writes its overlays into the folder `root`.

    few: numbers of labels that classifiers learn from, see splits.number_of_labels. Raises TrainerError, ShardError.
    """
    opened = Shards(folder)
    parts = _parts(data, opened)
    columns = parts | ({EVERY: np.full(len(opened.videos), TRAIN, np.uint8)} if data.pretraining == ALL else {})
    ids, digest = opened.text("videos/id"), opened.readers.digest
    classes = {target: _labels(table, ids) for target, table in data.targets.items()}
    classes, overlays = classes or {"": opened.text("videos/label")}, {}
    for target, labels in classes.items():
        drawn = {}
        for split, count, seed in itertools.product(parts, few, seeds):
            chosen = draw(np.array(labels), np.array(ids), parts[split] == TRAIN, count, seed)
            if chosen is not None:
                others = np.where(parts[split] == TRAIN, 0, parts[split])
                drawn[few_label_split(split, count, seed)] = np.where(chosen, TRAIN, others).astype(np.uint8)
        overlays[target] = Overlay(labels, columns | drawn).write(root, data.folder, digest)
    identity = {split: json_sha256([digest, column.tolist()]) for split, column in columns.items()}
    labels_of = {target: json_sha256(labels) for target, labels in classes.items()}
    return Source(data, folder, overlays, tuple(parts), identity, labels_of)


def few_label_split(split: str, labels: int | str, seed: int) -> str:
    """The name of the split whose training part has only these labels, drawn from the seed; for "all", the split itself."""
    return split if labels == ALL else f"{split}, {words(labels)}, seed {seed}"


def _parts(data: Data, opened: Shards) -> dict[str, np.ndarray]:
    """The part of every video, uint8 [videos], by the name of the split."""
    if data.test or data.folds:
        return {name: np.where(held, TEST, TRAIN).astype(np.uint8) for name, held in _held_out(data, opened).items()}
    named = data.split if isinstance(data.split, list) else [data.split]
    names = opened.split_names if data.split == ALL else named
    seen = [Shards(opened.folder, name, opened.readers) for name in names]
    for one in seen:
        if not {TRAIN, TEST} <= set(one.part.tolist()):
            raise TrainerError(
                f"{data.name}: its split {one.split} has no train part or no test part; set `folds: 5` or `test: 0.25` in the "
                "study file to draw them"
            )
    return {str(one.split): one.part for one in seen}


def _held_out(data: Data, opened: Shards) -> dict[str, np.ndarray]:
    """The tested videos by split, bool [videos], in whole groups: a share of the videos, or folds with about the same classes.
    The order of the shards has no effect."""
    if data.test:
        every = opened.with_training_videos(np.ones(len(opened.videos), bool))
        return {"1": every.hold_out(data.test, 0)}
    from sklearn.model_selection import StratifiedGroupKFold

    order = np.argsort(opened.text("videos/id"))
    groups, labels = opened.groups[order], np.array(opened.text("videos/label"))[order]
    if data.folds is None or len(np.unique(groups)) < data.folds:
        raise TrainerError(
            f"{data.name}: {data.folds} folds of {len(np.unique(groups))} groups of videos, expected at most one fold per group"
        )
    folds = StratifiedGroupKFold(data.folds, shuffle=True, random_state=0).split(labels, labels, groups)
    return {str(i): np.isin(np.arange(len(order)), order[rows]) for i, (_, rows) in enumerate(folds, 1)}


def _labels(table: dict[str, str], ids: list[str]) -> list[str]:
    """The class of every video (by id or file name, with or without its folder) in a column of a CSV table."""
    try:
        rows = [*csv.DictReader(io.StringIO(read_text(table["csv"], encoding="utf-8-sig"), newline=""))]
        named = {row[table["video"]]: row[table["column"]] or "" for row in rows}
    except (ReadError, KeyError, csv.Error) as error:
        raise TrainerError(f"{table['csv']}: cannot be read as a table with {table} ({error!r})") from error
    found = [named.get(name, named.get(Path(name).name, "")) for name in ids]
    if not any(found):
        raise TrainerError(f"{table['csv']}: names none of the videos, expected ids such as {ids[0]!r}")
    return found
