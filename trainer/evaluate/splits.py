"""The videos to test, those to learn from, and those that a network was trained on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from labelgen.progress import counted
from trainer import data
from trainer.checkpoint import Checkpoint, trained_splits, with_labels
from trainer.data.keys import LABELLED
from trainer.errors import ProtocolError, SettingError, TrainerError

FOLDS = 5
MOST_GROUPS = 30  # leaving out each of more groups in turn takes too long


@dataclass(frozen=True)
class Folds:
    """How the videos of a data set are tested.

    source: the data set; parts: (test, train) of every fold, int64 rows of source.videos, the same rows twice if each video is
    to be compared with all others; mode: a description; notes: for the reader; splits: the official split of each fold, if all
    are used; pooled: whether every labelled video is tested exactly once, so that all predictions form one test
    """

    source: data.Shards
    parts: list[tuple[np.ndarray, np.ndarray]]
    mode: str
    notes: list[str]
    splits: tuple[str, ...] = ()
    pooled: bool = True

    @property
    def apart(self) -> bool:
        """Whether no fold both tests a video and learns from it."""
        return not any(np.isin(test, train).any() for test, train in self.parts)

    @property
    def tested(self) -> np.ndarray:
        """The tested videos of all folds, int64 rows of source.videos."""
        return np.concatenate([test for test, _ in self.parts])


def of_split(source: data.Shards) -> Folds:
    """One fold: the labelled videos of the split's test part (or, without one, of its validation part) against those of its
    training part. If either is empty, both are all labelled videos, and a protocol leaves out one video or one group of videos
    at a time. Raises TrainerError if there are no labels."""
    labelled = source.targets >= 0
    if not labelled.any():
        raise TrainerError(f"{source.dataset}: its videos have no class labels, which this protocol needs")
    train = labelled & (source.part == data.TRAIN)
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        test = labelled & (source.part == value)
        if test.any() and train.any():
            unused = int((~labelled & np.isin(source.part, (data.TRAIN, value))).sum())
            parts = [(np.flatnonzero(test), np.flatnonzero(train))]
            return Folds(source, parts, f"{name} part against train part", unlabelled(unused))
    rows = np.flatnonzero(labelled)
    if len(rows) < 2:
        raise TrainerError(f"{source.dataset}: only 1 labelled video, expected at least two; label more videos")
    return Folds(source, [(rows, rows)], "each video against all others", unlabelled(len(labelled) - len(rows)))


def in_turn(source: data.Shards, split: str | int | None, learnt_labels: bool) -> Folds | None:
    """One fold for each official split, or None if only one split is to be used. All splits are used if `split` is "all", or if
    it is None, their test parts together hold every labelled video exactly once (such as splits that leave out one group each),
    and the run did not learn labels: it would have seen those of the other splits' test videos."""
    names = source.split_names
    if len(names) < 2 or split not in (None, "all") or (split is None and learnt_labels):
        return None
    sources = [through(source, name) for name in names]
    if split is None and not (source.targets >= 0).any():
        return None
    found = [of_split(one) for one in sources]
    pooled = covers(source, np.concatenate([folds.tested for folds in found]))
    without = next((name for name, folds in zip(names, found, strict=True) if not folds.apart), None)
    if split is None and (without or not pooled):
        return None
    if without:
        raise ProtocolError(f"{source.dataset}: split {without} has no test part", "choose one that has, --split NAME")
    mode = f"{'each video once' if pooled else 'mean'} over splits {', '.join(names)}, {found[0].mode}"
    notes = list(dict.fromkeys(note for folds in found for note in folds.notes))
    return Folds(sources[0], [folds.parts[0] for folds in found], mode, notes, tuple(names), pooled)


def learnable(folds: Folds, labels: int | str | None = None, seed: int = 0) -> Folds:
    """Folds from which a classifier can learn. If a video is both tested and learnt from, these folds leave out one group at a
    time or, without groups or with more than MOST_GROUPS of them, are FOLDS stratified folds that keep groups together.

    labels: how many labels of each training part to use (see `draw`). Raises TrainerError if there is too little to learn from.
    """
    source = folds.source
    if not folds.apart:
        mode, held_out = _cross_validation(source, folds.tested)
        parts = [(rows, np.setdiff1d(folds.tested, rows)) for rows in held_out]
        folds = replace(folds, parts=parts, mode=mode)
    if labels is not None:
        ids, parts = np.array(source.text("videos/id")), []
        for test, train in folds.parts:
            drawn = draw(source.targets, ids, np.isin(np.arange(len(ids)), train), labels, seed)
            if drawn is None:
                raise TrainerError(
                    f"{source.dataset}: {counted(len(train), 'labelled video')} to learn from, too few for "
                    f"{words(labels)}; use fewer labels"
                )
            parts.append((test, np.flatnonzero(drawn)))
        folds = replace(folds, parts=parts, mode=f"{folds.mode}, labels of {words(labels)} by seed {seed}")
    for _, train in folds.parts:
        classes = np.unique(source.targets[train])
        if len(classes) < 2:
            raise TrainerError(
                f"{source.dataset}: {counted(len(train), 'labelled video')} of "
                f"{counted(len(classes), 'class', 'classes')} to learn from, expected two or more"
            )
    return folds


def unfair(folds: Folds) -> list[str]:
    """Notes on tested videos whose class is rarer among those that are learnt from, or absent; folds: see `learnable`."""
    targets, notes = folds.source.targets, []
    unknown = sum(int((~np.isin(targets[test], targets[train])).sum()) for test, train in folds.parts)
    if unknown:
        notes.append(
            f"{counted(unknown, 'test video counts', 'test videos count')} as wrong: their class has no training video"
        )
    if len(folds.parts) > 1:
        notes.append(rarer(targets, folds.parts))
    return notes


def _cross_validation(source: data.Shards, rows: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """The mode in words, and the videos that each fold tests, int64 rows of source.videos; rows: all labelled videos."""
    groups, grouped = source.groups[rows], np.array(source.text("videos/group"))[rows] != ""
    names = np.unique(groups)
    if 2 <= len(names) <= MOST_GROUPS and grouped.all():
        return f"leave one group out, {len(names)} groups", [rows[groups == name] for name in names]
    held_out = [rows[fold] for fold in grouped_folds(source.targets[rows], groups)]
    if not held_out:
        raise TrainerError(
            f"{source.dataset}: {len(rows)} labelled videos, {len(names)} groups and no class with two videos: no folds"
        )
    kept = ", groups kept together" if grouped.any() else ""
    return f"{len(held_out)} stratified folds of videos{kept}", held_out


def grouped_folds(targets: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Indices (int64) of each of up to FOLDS stratified folds that keep groups whole; empty if there cannot be two folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    number = min(FOLDS, len(np.unique(groups)), int(np.bincount(targets).max()))
    if number < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = [held_out for _, held_out in StratifiedGroupKFold(number).split(targets, targets, groups)]
    return [held_out for held_out in folds if 0 < len(held_out) < len(targets)]


def number_of_labels(given: int | str) -> int | str:
    """How many labels a classifier learns from: an int for a number of videos of each class (given as 5 or "5 per class"), or a
    string such as "1000 videos" for a total. Raises SettingError for anything else."""
    found = re.fullmatch(
        r"([1-9][0-9]{0,8}) (videos|per class)", f"{given} per class" if type(given) is int else str(given)
    )
    if not found:
        raise SettingError(
            f"labels is {given!r:.60}, expected 1 or more per class, '5 per class', or a total, such as '1000 videos'"
        )
    return found[0] if found[2] == "videos" else int(found[1])


def words(labels: int | str) -> str:
    """A number of labels as `number_of_labels` reads it."""
    return labels if isinstance(labels, str) else f"{labels} per class"


def draw(targets: np.ndarray, ids: np.ndarray, train: np.ndarray, labels: int | str, seed: int) -> np.ndarray | None:
    """Which videos of the training part a classifier learns from, bool [n], drawn from the seed; None if there are too few.

    targets: class of every video, "" or -1 for none [n]; ids: [n]; train: bool [n]; labels: a number per class or a total (see
    `number_of_labels`). For a total, videos are sorted: the videos of a class are shuffled, and the i-th of n has the position
    (i + u) / n, with one uniform u for each class. The first videos then hold about the same share of each class, whatever
    their number, and a smaller number is a subset of a larger one.
    """
    known = train & (targets != ("" if targets.dtype.kind == "U" else -1))
    chosen, place = np.zeros(len(targets), bool), np.full(len(targets), np.inf)
    if isinstance(labels, int):
        rng = np.random.default_rng((labels, seed))
        for name in np.unique(targets[known]):
            rows = np.flatnonzero(known & (targets == name))
            if len(rows) < labels:
                return None
            chosen[rng.choice(rows, labels, replace=False)] = True
        return chosen
    count, rng = int(labels.split()[0]), np.random.default_rng((LABELLED, seed))
    order = np.argsort(ids)  # the order of the shards has no effect
    for name in np.unique(targets[known]):
        rows = rng.permutation(order[known[order] & (targets[order] == name)])
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    chosen[np.argsort(place)[:count]] = True
    return chosen if count <= known.sum() else None


def opposites(folds: Folds, pairs: Sequence[Sequence[str]]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The indices of the two classes of each pair, int64 [2], by "FIRST / SECOND", and a note for each pair that is left out
    because a class is absent, or is not learnt from in a fold that tests the pair. Raises TrainerError if no pair is left."""
    source, found, notes = folds.source, {}, list[str]()
    for first, second in pairs:
        name, both = f"{first} / {second}", [c for c in (first, second) if c in source.classes]
        classes = np.array([source.classes.index(c) for c in both])
        tested = [(test, train) for test, train in folds.parts if np.isin(source.targets[test], classes).any()]
        learnt = [np.isin(classes, source.targets[train]).all() for _, train in tested]
        if len(both) < 2 or not tested or not all(learnt):
            why = "a class is absent" if len(both) < 2 else "not in all parts that are tested and learnt from"
            notes.append(f"pair left out, {why}: {name}")
        else:
            found[name] = classes
    if not found:
        raise TrainerError(
            f"{source.dataset}: none of the {len(pairs)} pairs of opposite classes can be measured ({'; '.join(notes[:3])}); its "
            f"classes are {', '.join(source.classes)[:200]}"
        )
    return found, notes


def of_classes(folds: Folds, classes: np.ndarray) -> Folds:
    """Folds with only the videos of some classes (int64 indices), without folds that then test no video."""
    targets = folds.source.targets
    test, train = ([rows[np.isin(targets[rows], classes)] for rows in side] for side in zip(*folds.parts, strict=True))
    kept = [number for number, rows in enumerate(test) if len(rows)]
    names = tuple(folds.splits[number] for number in kept) if folds.splits else ()
    return replace(folds, parts=[(test[number], train[number]) for number in kept], splits=names)


def covers(source: data.Shards, tested: np.ndarray) -> bool:
    """Whether every labelled video is tested exactly once; tested: int64 rows of source.videos."""
    return bool((np.bincount(tested, minlength=len(source.videos))[source.targets >= 0] == 1).all())


def through(source: data.Shards, split: str | int | None) -> data.Shards:
    """The same data set with another of its splits."""
    return data.Shards(Path(source.readers[0].path).parent, split, source.readers)


def with_split(name: str, split: str | None) -> str:
    """A data set with the split, if it has one: "ucf101, split 1"."""
    return f"{name}, split {split}" if split else name


def unlabelled(videos: int) -> list[str]:
    """A note on videos that have no label."""
    return [f"{counted(videos, 'video')} without label left out"] if videos else []


def incomplete(source: data.Shards, has: dict[str, int]) -> list[str]:
    """A note if the counts of a data set differ from the published ones in its manifest."""
    expected = source.config.get("expected") or {}
    published = {key: expected[key] for key in has if key in expected}
    if all(has[key] == count for key, count in published.items()):
        return []
    return [f"not the whole data set: {has}, published {published}; not comparable with published numbers"]


def rarer(targets: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """A note for videos that are tested and learnt from in turn. targets: int64 [n]; parts: int64 rows (or bool [n]) of each
    fold's test and training videos."""
    right = [targets[test] == np.bincount(targets[train]).argmax() for test, train in parts]
    return (
        "leaving videos out makes their own class rarer in training, so that on noise an accuracy can fall below 1 / classes; "
        f"always the most frequent class of the others: {100 * np.concatenate(right).mean():.1f} %"
    )


def seen(saved: Checkpoint, source: data.Shards, tested: np.ndarray) -> list[str]:
    """Notes on tested videos (int64 rows of source.videos) that this run, or the run that it started from, was trained on."""
    notes, tested = [], np.unique(tested)
    for meta in (saved.meta, saved.meta.get("initial")):
        used = 0 if meta is None else int(trained_on(meta, source)[tested].sum())
        if meta is not None and used:
            by = with_split(meta["settings"]["method"], meta["split"])
            labels = "with their labels" if with_labels(meta["settings"]) else "without labels"
            notes.append(f"{used} of the {len(tested)} tested videos are training videos of {by} ({labels})")
    return notes


def trained_on(meta: dict, source: data.Shards) -> np.ndarray:
    """Which videos of the source a run (its meta, see checkpoint) was trained on, bool [videos]; all videos of the data set if
    the source does not have the run's split."""
    splits = trained_splits(meta)
    if source.dataset not in splits:
        return np.zeros(len(source.videos), bool)
    split = splits[source.dataset]
    if split not in (source.split_names or (None,)):
        return np.ones(len(source.videos), bool)
    then = through(source, split)
    # for training on several data sets, one of them does not tell which videos were held out: all count as trained on
    same = meta["config_hash"] == source.config_hash and meta.get("videos", len(then.videos)) == len(then.videos)
    if meta["settings"]["holdout"] and same:
        then.hold_out(meta["settings"]["holdout"], meta["settings"]["seed"])
    if meta["settings"].get("fraction", 1) < 1 and same:
        then.subsample(meta["settings"]["fraction"], meta["settings"]["seed"])
    return then.train_mask


def unseen(saved: Checkpoint, source: data.Shards) -> tuple[np.ndarray, str]:
    """The videos that a pretext task is tested on, int64 rows of source.videos, and a description of them: the test part of the
    split, else its validation part, else, for another data set than that of training, all videos, else the videos held out of
    training. Raises ProtocolError if the run was trained on all of them."""
    for name, value in (("test", data.TEST), ("validation", data.VALIDATION)):
        if (source.part == value).any():
            return np.flatnonzero(source.part == value), f"{name} part"
    if source.dataset not in trained_splits(saved.meta):
        return np.arange(len(source.videos)), "all videos"
    held_out = source.train_mask & ~trained_on(saved.meta, source)
    if not held_out.any():
        raise ProtocolError(
            f"{source.dataset}: has neither a test nor a validation part, and no video was held out of training",
            "train with --holdout 0.1",
        )
    return np.flatnonzero(held_out), "videos held out of training"
