"""Which videos a classifier on frozen features is tested on and learns from, and the accuracy over several such folds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer import data
from trainer.checkpoint import Checkpoint, trained_splits, with_labels
from trainer.errors import TrainerError
from trainer.evaluate.bench import Bench, parts
from trainer.evaluate.features import Features
from trainer.evaluate.numbers import distribution
from trainer.evaluate.protocol import ProtocolError
from trainer.evaluate.tables import with_split
from trainer.evaluate.tally import Tally

FOLDS = 5
MOST_GROUPS = 30  # with more of them, leaving each out in turn costs more than it tells


@dataclass(frozen=True)
class Plan:
    """How videos are tested.

    source: the data set; parts: (test, train) of every fold, int64 rows of source.videos; mode: in words; notes: for the
    reader; splits: the official split of each fold, where all of them are used; pooled: every labelled video is tested
    once, so that all predictions count as one test; tally: of its predictions
    """

    source: data.Shards
    parts: list[tuple[np.ndarray, np.ndarray]]
    mode: str
    notes: list[str]
    splits: tuple[str, ...] = ()
    pooled: bool = True
    tally: Tally = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "tally", Tally.of(self.source))

    def features(self, bench: Bench, network: str) -> list[Extracted]:
        """Features of the 10 clips of every video that takes part: of one fold test and train apart, as retrieval keeps
        them, of several all together."""
        rows = self.parts[0]
        if len(self.parts) > 1:
            rows = [np.unique(np.concatenate([*map(np.concatenate, self.parts)]))]
        return [Extracted(videos, bench.features(network, self.source, videos, "spread")) for videos in rows]

    def conditions(self) -> dict[str, Any]:
        """Which videos were tested, see Protocol.conditions."""
        return {
            "split": None if self.splits else self.source.split,
            "mode": self.mode,
            "items": f"{len(self.tested)} tested videos",
            **distribution(self.source.targets[self.tested]),
            "intervals": self.tally.drawn(self.tested),
        }

    @property
    def tested(self) -> np.ndarray:
        """The tested videos of all folds, int64 rows of source.videos."""
        return np.concatenate([test for test, _ in self.parts])

    def scores(
        self, hits: list[np.ndarray], owners: list[np.ndarray], named: list[np.ndarray] | None = None
    ) -> list[dict]:
        """Accuracy of every split, where there are several, and of all folds together, see Tally.accuracies.

        hits: bool [items] of each fold; owners: int64 [items], the row of source.videos of each item; named: int64 [items],
        the class that was named for it.
        """
        for (test, _), owner in zip(self.parts, owners, strict=True):
            if not np.array_equal(np.unique(owner), np.sort(test)):
                raise AssertionError(f"{len(test)} videos to score, {len(np.unique(owner))} scored")
        return self.tally.accuracies(hits, owners, self.splits, self.pooled, named)


@dataclass(frozen=True)
class Extracted:
    """Features of videos, int64 rows of source.videos."""

    videos: np.ndarray
    found: Features

    def items(self, key: tuple[str, str], level: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [items, d] of a stage and pooling, at level "clip" or "video", and the video of each, int64."""
        if level == "clip":
            return self.found.arrays[key], self.videos[self.found.owner]
        return self.found.video_means(key), self.videos


def of_videos(items: list[tuple[np.ndarray, np.ndarray]], videos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors and videos among `items` (see Extracted.items) that belong to `videos`."""
    vectors, owner = next(part for part in items if np.isin(videos, part[1]).all())
    chosen = np.isin(owner, videos)
    return (vectors, owner) if chosen.all() else (vectors[chosen], owner[chosen])


def plan(bench: Bench) -> Plan:
    """Folds of a labelled data set, on which the network of the bench is tested.

    A split's test (else validation) part against its train part. split "all", or no split where the official ones together
    test each video once (see splits_in_turn): each of them in turn. Where the data set has no two such parts: leave one group
    out, or, without groups or with more than MOST_GROUPS of them, FOLDS stratified folds that keep groups together.

    Raises TrainerError when there are no labels or too few to learn from.
    """
    if sources := splits_in_turn(bench):
        return _of_all_splits(sources)
    source = bench.open(bench.folder) if bench.split == "all" else bench.source()
    names = source.readers[0].splits
    test, train, mode, notes = parts(source)
    if bench.split is None and len(names) > 1:
        notes = [*notes, f"split {source.split} alone, one of {len(names)}; --split all uses each in turn"]
    if not (test & train).any():
        return _checked(source, [(test, train)], mode, notes)
    mode, held = _cross_validation(source, test)
    return _checked(source, [(fold, test & ~fold) for fold in held], mode, notes)


def splits_in_turn(bench: Bench) -> list[data.Shards]:
    """The data set seen through each of its official splits, where all are used: asked for as "all", or with no split asked for
    where their test parts hold every labelled video exactly once, as those that leave out one group each. Else none; nor of a
    run that learnt labels, which has seen those of the other splits' test videos, unless asked for."""
    names = bench.open(bench.folder).readers[0].splits
    if len(names) < 2 or bench.split not in (None, "all"):
        return []
    if bench.split is None and with_labels(bench.saved.meta["settings"]):
        return []
    sources = [bench.open(bench.folder, name) for name in names]
    if bench.split is None and (sources[0].targets >= 0).any():
        found = [parts(source) for source in sources]
        apart = not any((test & train).any() for test, train, *_ in found)
        return sources if apart and covers(sources[0], np.sum([test for test, *_ in found], axis=0)) else []
    return [] if bench.split is None else sources


def of_splits(sources: list[data.Shards]) -> tuple[list[tuple[np.ndarray, np.ndarray]], str, list[str], bool]:
    """Masks (test, train) of every split, how they were chosen in words, notes, and whether every video is tested once."""
    found, names = [parts(source) for source in sources], [source.split for source in sources]
    for name, (test, train, *_) in zip(names, found, strict=True):
        if (test & train).any():
            raise ProtocolError(
                f"{sources[0].dataset}: split {name} has no test part", "name one that has, --split NAME"
            )
    pooled = covers(sources[0], np.sum([test for test, *_ in found], axis=0))
    mode = f"{'each video once' if pooled else 'mean'} over splits {', '.join(names)}, {found[0][2]}"
    notes = list(dict.fromkeys(note for *_, chosen in found for note in chosen))
    return [chosen[:2] for chosen in found], mode, notes, pooled


def _of_all_splits(sources: list[data.Shards]) -> Plan:
    masks, mode, notes, pooled = of_splits(sources)
    return _checked(sources[0], masks, mode, notes, tuple(source.split for source in sources), pooled)


def covers(source: data.Shards, tested: np.ndarray) -> bool:
    """Whether every labelled video is tested exactly once; tested: int64 [videos], how often each is."""
    return bool((tested[source.targets >= 0] == 1).all())


def _checked(source: data.Shards, masks: list[tuple], mode: str, notes: list[str], *splits) -> Plan:
    unknown = 0
    for test, train in masks:
        classes = np.unique(source.targets[train])
        if len(classes) < 2:
            raise TrainerError(
                f"{source.dataset}: {train.sum()} labelled videos of {len(classes)} classes to learn from, two or more are needed"
            )
        unknown += int((~np.isin(source.targets[test], classes)).sum())
    if unknown:
        notes = [*notes, f"{unknown} test videos count as wrong: their class has no training video"]
    if len(masks) > 1:
        notes = [*notes, rarer(source.targets, masks)]
    return Plan(source, [(np.flatnonzero(test), np.flatnonzero(train)) for test, train in masks], mode, notes, *splits)


def rarer(targets: np.ndarray, masks: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Note on videos that are tested and learnt from in turn: targets int64 [n], masks bool [n] of each fold's test and train."""
    right = [targets[test] == np.bincount(targets[train]).argmax() for test, train in masks]
    return (
        "leaving videos out makes their own class rarer in training, so that on noise an accuracy can fall below 1 / classes; "
        f"always the most frequent class of the others: {100 * np.concatenate(right).mean():.1f} %"
    )


def _cross_validation(source: data.Shards, labelled: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """Mode in words, and the videos that each fold tests, bool [videos]."""
    groups, named = groups_of(source), np.array(source.text("videos/group"))[labelled]
    names = np.unique(groups[labelled])
    if 2 <= len(names) <= MOST_GROUPS and (named != "").all():
        return f"leave one group out, {len(names)} groups", [labelled & (groups == name) for name in names]
    rows, held = np.flatnonzero(labelled), []
    for fold in grouped_folds(source.targets[rows], groups[rows]):
        held.append(np.zeros(len(labelled), bool))
        held[-1][rows[fold]] = True
    if not held:
        raise TrainerError(
            f"{source.dataset}: {len(rows)} labelled videos, {len(names)} groups and no class with two videos: no folds"
        )
    kept = ", groups kept together" if (named != "").any() else ""
    return f"{len(held)} stratified folds of videos{kept}", held


def groups_of(source: data.Shards) -> np.ndarray:
    """Source group of every video; a video without one is a group of its own."""
    return np.array(
        [group or name for group, name in zip(*map(source.text, ("videos/group", "videos/id")), strict=True)]
    )


def grouped_folds(targets: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Indices int64 of each of up to FOLDS stratified folds that keep groups whole; none where that cannot be."""
    from sklearn.model_selection import StratifiedGroupKFold

    number = min(FOLDS, len(np.unique(groups)), int(np.bincount(targets).max()))
    if number < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = [held for _, held in StratifiedGroupKFold(number).split(targets, targets, groups)]
    return [held for held in folds if 0 < len(held) < len(targets)]


def seen(saved: Checkpoint, source: data.Shards, tested: np.ndarray) -> list[str]:
    """Notes about tested videos (int64 rows of source.videos) that the network was trained on, now or before."""
    notes, tested = [], np.unique(tested)
    for meta in (saved.meta, saved.meta.get("initial")):
        used = 0 if meta is None else int(trained_on(meta, source)[tested].sum())
        if used:
            by = with_split(meta["settings"]["method"], meta["split"])
            labels = "with their labels" if with_labels(meta["settings"]) else "without labels"
            notes.append(f"{used} of the {len(tested)} tested videos are training videos of {by} ({labels})")
    return notes


def trained_on(meta: dict, source: data.Shards) -> np.ndarray:
    """Which videos of the source a run (its meta, see checkpoint) was trained on, bool [videos]; when its split is unknown
    here, all of the data set."""
    splits = trained_splits(meta)
    if source.dataset not in splits:
        return np.zeros(len(source.videos), bool)
    split = splits[source.dataset]
    if split not in (source.readers[0].splits or (None,)):
        return np.ones(len(source.videos), bool)
    folder = Path(source.readers[0].path).parent
    through = data.Shards(folder, split, source.readers)
    # which videos of several data sets were held out cannot be told from one of them: they count as trained on
    same = meta["config_hash"] == source.config_hash and meta.get("videos", len(through.videos)) == len(through.videos)
    if meta["settings"]["holdout"] and same:
        through.hold_out(meta["settings"]["holdout"], meta["settings"]["seed"])
    if meta["settings"].get("fraction", 1) < 1 and same:
        through.keep(meta["settings"]["fraction"], meta["settings"]["seed"])
    return through.trains
