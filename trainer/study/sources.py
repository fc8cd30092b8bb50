"""The data sets of a study: which videos each split tests, and shards that say so, with the labels of a target."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labelgen import shards
from labelgen.errors import ReadError
from labelgen.reading import read_text
from trainer.data import TEST, TRAIN, Shards
from trainer.errors import TrainerError
from trainer.study.file import ALL, Data

EVERY = "every video"  # name of the split that trains on all videos


@dataclass(frozen=True)
class Source:
    """Shards of a data set as the study uses them.

    folders: by target; splits: names of those tested; identity: hash of the frames, their
    labels and the parts, by split; labels: hash of the labels, by target
    """

    data: Data
    folders: dict[str, Path]
    splits: tuple[str, ...]
    identity: dict[str, str]
    labels: dict[str, str]

    @property
    def folder(self) -> Path:
        """Shards to pretrain on and to take features of; their frames are those of every target."""
        return next(iter(self.folders.values()))

    def pretraining(self, split: str) -> str:
        """Name of the split that a network which is tested on `split` is pretrained on."""
        return EVERY if self.data.pretraining == ALL else split

    def opened(self, target: str, split: str) -> Shards:
        """The shards with the labels of a target, through a split."""
        return Shards(self.folders[target], split)


def prepare(own: Data, folder: Path, root: Path, seeds: tuple[int, ...], few: tuple[int, ...]) -> Source:
    """The data set of shards in `folder`, ready to be pretrained on and tested on.

    Where its splits are the study's own, it has targets, or few labels are learnt from, shards with these labels and splits
    are written below `root` once; few: numbers of labels per class that networks are finetuned with. Raises TrainerError,
    ShardError.
    """
    opened = Shards(folder)
    parts = _parts(own, opened)
    digests = json.dumps([opened.config_hash, opened.readers.sha256], sort_keys=True)
    columns = parts | ({EVERY: np.ones(len(opened.videos), np.uint8)} if own.pretraining == ALL else {})
    identity = {name: _hash(digests, part.tobytes()) for name, part in columns.items()}
    if not own.targets and not few and columns.keys() <= set(opened.readers[0].splits):
        labels = _hash(json.dumps(opened.text("videos/label")))
        return Source(own, {"": folder}, tuple(parts), identity, {"": labels})
    folders, hashes = {}, {}
    ids = opened.text("videos/id")
    labelled = {name: _labels(source, ids) for name, source in own.targets.items()}
    for target, named in (labelled or {"": opened.text("videos/label")}).items():
        own_columns, hashes[target] = dict(columns), _hash(json.dumps(named))
        for name, part in parts.items():
            for count in few:
                for seed in seeds:
                    chosen = drawn(np.array(named), part == TRAIN, count, seed)
                    if chosen is not None:
                        own_columns[few_name(name, count, seed)] = np.where(chosen, TRAIN, part * (part != TRAIN))
        key = _hash(digests, hashes[target], *(n.encode() + c.tobytes() for n, c in own_columns.items()))
        folders[target] = root / "-".join(filter(None, (own.folder, target, key)))
        _write(folders[target], opened, named, own_columns)
    return Source(own, folders, tuple(parts), identity, hashes)


def few_name(split: str, labels: int | str, seed: int) -> str:
    """Name of the split that learns from so many videos per class."""
    return split if labels == ALL else f"{split}, {labels} per class, seed {seed}"


def drawn(labels: np.ndarray, train: np.ndarray, count: int | str, seed: int) -> np.ndarray | None:
    """Videos that a classifier learns from, bool [n]: `count` of each class (labels [n]) among those of `train` (bool [n]),
    drawn from the seed, or all that have a label; None where a class has too few."""
    train = train & (labels != "")
    if isinstance(count, str):  # all
        return train
    rng, chosen = np.random.default_rng((count, seed)), np.zeros(len(labels), bool)
    for name in np.unique(labels[train]):
        rows = np.flatnonzero(train & (labels == name))
        if len(rows) < count:
            return None
        chosen[rng.choice(rows, count, replace=False)] = True
    return chosen


def _parts(own: Data, opened: Shards) -> dict[str, np.ndarray]:
    """uint8 [videos] by split: TRAIN, TEST or what else the shards say."""
    if own.test or own.folds:
        return {name: np.where(held, TEST, TRAIN).astype(np.uint8) for name, held in _held(own, opened).items()}
    named = own.split if isinstance(own.split, list) else [own.split]
    names = opened.readers[0].splits if own.split == ALL else named
    seen = [Shards(opened.folder, name, opened.readers) for name in names]
    for one in seen:
        if not {TRAIN, TEST} <= set(one.part.tolist()):
            raise TrainerError(
                f"{own.name}: its split {one.split} has no train part or no test part; say `folds: 5` or `test: 0.25` in the "
                "study file, which then draws them"
            )
    return {str(one.split): one.part for one in seen}


def _held(own: Data, opened: Shards) -> dict[str, np.ndarray]:
    """Tested videos by split, bool [videos], whole groups: a share of the videos, or folds with about equal classes. The order
    of the shards has no effect."""
    if own.test:
        every = opened.with_training_videos(np.ones(len(opened.videos), bool))
        return {"1": every.hold_out(own.test, 0)}
    from sklearn.model_selection import StratifiedGroupKFold

    order = np.argsort(opened.text("videos/id"))
    groups, labels = opened.groups[order], np.array(opened.text("videos/label"))[order]
    if own.folds is None or len(np.unique(groups)) < own.folds:
        raise TrainerError(f"{own.name}: {own.folds} folds of {len(np.unique(groups))} groups")
    folds = StratifiedGroupKFold(own.folds, shuffle=True, random_state=0).split(labels, labels, groups)
    return {str(i): np.isin(np.arange(len(order)), order[rows]) for i, (_, rows) in enumerate(folds, 1)}


def _labels(source: dict, ids: list[str]) -> list[str]:
    """The label of every video (by id or file name, with or without its folder) in a column of a table."""
    try:
        rows = [*csv.DictReader(io.StringIO(read_text(source["csv"], encoding="utf-8-sig"), newline=""))]
        named = {row[source["video"]]: row[source["column"]] for row in rows}
    except (ReadError, KeyError, csv.Error) as error:
        raise TrainerError(f"{source['csv']}: cannot be read as a table with {source} ({error!r})") from error
    found = [named.get(name, named.get(Path(name).name, "")) for name in ids]
    if not any(found):
        raise TrainerError(f"{source['csv']}: names none of the videos, whose ids look like {ids[0]!r}")
    return found


def _hash(*texts: str | bytes) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update((text.encode() if isinstance(text, str) else text) + b"\0")
    return digest.hexdigest()[:16]


def _write(folder: Path, opened: Shards, labels: list[str], columns: dict[str, np.ndarray]) -> None:
    """The shards with other labels and splits; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for reader, first in zip(opened.readers, opened.before, strict=True):
        path, rows = folder / Path(reader.path).name, slice(first, first + reader.n_videos)
        if path.exists():
            continue
        frames = io.BytesIO(b"".join(bytes(reader.jpeg(i)) for i in range(len(reader.arrays["frames/offset"]) - 1)))
        changed = {"videos/label": labels[rows], "videos/split": np.stack([*columns.values()], 1)[rows]}
        shards.write(path, {**reader.arrays, **changed}, frames, reader.config, reader.crop_grid, [*columns])
