"""All shards of a data set as one, with one of its official splits."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Sequence

import numpy as np

from labelgen.shards import NO_ROW, TEST, TRAIN, ShardReader, config_hash, hash_of_all
from trainer.data.keys import FRACTION, HALF, HOLDOUT
from trainer.data.readers import Folders, Readers, each_folder
from trainer.errors import SettingError, TrainerError


class Shards:
    """All shards of a data set, or of several, as one, with one of the official splits.

    folder: of shards, or several; split: name or 1-based number of a split, None for the first; readers: of the folder, if it
    is open already; overlay: see Readers
    dataset, config, config_hash, clip_length, crop_grid (int16 [crops, 2] y, x): as in each of the shards; for several data sets
    their names joined by +; for these and for a folder that has grown a joint hash, see `hash_of_all`
    split: name of the split, None if the data set has none
    videos: int64 [videos, 2], shard and video in it; clips: int64 [clips, 2], likewise
    first_row: int64 [shards], row of a shard's first video; frame_size: height and width of the stored frames
    clip_video: int64 [clips], row of `videos` that a clip belongs to
    part: uint8 [videos], 0 none, 1 train, 2 validation, 3 test
    unsplit_datasets: names of the data sets whose split marks no video as train, so that pretraining uses all of their videos
    train_mask: bool [videos], whether pretraining may use a video

    Raises TrainerError for an unknown split, ShardError for unreadable or mixed shards.
    """

    def __init__(
        self,
        folder: Folders,
        split: str | int | None = None,
        readers: Readers | None = None,
        overlay: str | os.PathLike[str] | None = None,
    ):
        self.readers = Readers(folder, overlay) if readers is None else readers
        self.folder: str | os.PathLike = ", ".join(map(str, f)) if len(f := each_folder(folder)) > 1 else f[0]
        first, of = self.readers[0], [*self.readers.datasets.values()]
        hashes = [hash_of_all(self.readers.config_hashes[shards.start : shards.stop]) for shards in of]
        self.config, self.config_hash, self.crop_grid = first.config, hashes[0], first.crop_grid
        self.dataset: str = "+".join(self.readers.datasets)
        if len(of) > 1:
            self.config = first.config | {"dataset": self.dataset, "expected": {}}
            self.config_hash = config_hash({"joined": hashes})
        self.clip_length = first.clip_length
        self.videos = _pairs(self.readers.n_videos)
        self.clips = _pairs(self.readers.n_clips)
        self.first_row = np.cumsum(self.readers.n_videos) - self.readers.n_videos
        self.clip_video = self.first_row[self.clips[:, 0]] + self._all("clips/video")
        self.part, self.train_mask = np.zeros(len(self.videos), np.uint8), np.zeros(len(self.videos), bool)
        self.splits: dict[str, str | None] = {}
        self.unsplit_datasets: list[str] = []
        for name, shards in self.readers.datasets.items():
            own = self.of_shards(shards)
            splits = self.readers.splits[name]
            column = _split_column(splits, split)
            self.splits[name] = None if column is None else splits[column]
            if column is not None:
                self.part[own] = self._all("videos/split")[own, column]
            if not (self.part[own] == TRAIN).any():
                if (self.part[own] == TEST).any():
                    raise TrainerError(
                        f"{self.folder}: split {self.splits[name]} marks {(self.part[own] == TEST).sum()} videos as test and "
                        "none as train; choose another split, or label the training videos"
                    )
                self.unsplit_datasets.append(name)
                self.train_mask[own] = True
        self.train_mask |= self.part == TRAIN
        self.split = next(iter(self.splits.values())) if len(set(self.splits.values())) == 1 else str(self.splits)
        self.frame_size = first.frame_size

    def of_shards(self, shards: range) -> slice:
        """Rows of `videos` in these shards."""
        return slice(
            int(self.first_row[shards[0]]), int(self.first_row[shards[-1]] + self.readers.n_videos[shards[-1]])
        )

    def weighted(self, samples: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples repeated by the weight of their data set, int64 [n, 2]; the number of repetitions of each, and which
        repetition it is, int64 [n]. Raises TrainerError unless there is one weight per data set."""
        if len(weights) != len(self.readers.datasets):
            raise TrainerError(
                f"shard_weights are {weights}, expected one for each of {', '.join(self.readers.datasets)}"
            )
        times = np.repeat(weights, [len(shards) for shards in self.readers.datasets.values()])[samples[:, 0]]
        copy = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        return np.repeat(samples, times, axis=0), np.repeat(times, times), copy

    def with_training_videos(self, train_mask: np.ndarray) -> Shards:
        """The same shards with another `train_mask`, bool [videos]."""
        other = copy.copy(self)
        other.train_mask = train_mask
        return other

    @property
    def groups(self) -> np.ndarray:
        """The source group of every video, str [videos]; a video without one is a separate group, named after its id."""
        return np.array([group or id for group, id in zip(*map(self.text, ("videos/group", "videos/id")), strict=True)])

    def hold_out(self, share: float, seed: int) -> np.ndarray:
        """Remove about this share of the training videos from `train_mask`, in whole groups (a video without a group is
        one), drawn from the seed, at least one group. Returns the removed videos, bool [videos]. Raises TrainerError if
        there is only one group."""
        groups = self.groups
        names, counts = np.unique(groups[self.train_mask], return_counts=True)
        if len(names) < 2:
            raise TrainerError(
                f"{self.dataset}: its {counts.sum()} training videos are one group, so that none can be held out"
            )
        order = np.random.default_rng((HOLDOUT, seed)).permutation(len(names))
        chosen = order[: max(1, np.searchsorted(np.cumsum(counts[order]), share * counts.sum(), "right"))]
        held = self.train_mask & np.isin(groups, names[chosen])
        self.train_mask = self.train_mask & ~held
        return held

    def subsample(self, fraction: float, seed: int) -> None:
        """Keep about this fraction of the training videos in `train_mask`, at least one, drawn from the seed; a smaller
        fraction is a subset of a larger one. [thesis 3.5.2, which takes one of every k]"""
        ids, rows = np.array(self.text("videos/id")), np.flatnonzero(self.train_mask)
        order = np.random.default_rng((FRACTION, seed)).permutation(rows[np.argsort(ids[rows])])
        self.train_mask = np.isin(np.arange(len(ids)), order[: max(1, round(fraction * len(rows)))])

    def labelled_clips(self) -> tuple[np.ndarray, int, str]:
        """The samples of methods that learn from labelled clips, int64 [n, 2], the number of videos left out, and the
        reason. Samples are all labelled clips of the training videos or, if random clips of each video were labelled,
        the videos, of which each pass shows another clip [thesis 3.4.2]. For the clips of a sample see
        `sample_clips`."""
        used = self.train_mask[self.clip_video]
        videos = np.unique(self.clip_video[used])
        samples = self.clips[used] if self.config["clips"] is None else self.videos[videos]
        return samples, int(self.train_mask.sum() - len(videos)), "without a labelled clip"

    def long_enough(self, frames: int) -> tuple[np.ndarray, int, str]:
        """The training videos of at least `frames` frames, int64 [n, 2], the number of those left out, and the reason."""
        long = self._all("videos/n_frames") >= frames
        return (
            self.videos[self.train_mask & long],
            int((self.train_mask & ~long).sum()),
            f"shorter than {frames} frames",
        )

    def with_rows(self, key: str, different: bool = False) -> tuple[np.ndarray, int, str]:
        """The training videos with rows of "pace/pace" or "order/permutation", int64 [n, 2], the number of those left
        out, and the reason. different: only videos with rows of two values."""
        rows = self._all(key)
        has = (rows != NO_ROW).all(1)
        why = f"too short for the {key.split('/')[0]} rows"
        if different:
            has &= (rows != rows[:, :1]).any(1)
            why += ", or with equal rows only"
        return self.videos[self.train_mask & has], int((self.train_mask & ~has).sum()), why

    def by_difficulty(self, samples: np.ndarray) -> np.ndarray:
        """Indices int64 of samples of labelled_clips, from easy to hard; those without motion come last. [thesis 3.2]"""
        scores = self._scores(samples)
        return np.argsort(-scores, kind="stable")  # NaN is sorted last

    def half(self, samples: np.ndarray, which: str, seed: int) -> np.ndarray:
        """The "easy", the "hard" or a "random" half (drawn from the seed) of samples of labelled_clips, in their order.
        [thesis table 3.3]"""
        if which == "random":
            order = np.random.default_rng((HALF, seed)).permutation(len(samples))
        else:
            order = self.by_difficulty(samples)
        size = math.ceil(len(order) / 2)
        return samples[np.sort(order[-size:] if which == "hard" else order[:size])]

    def _scores(self, samples: np.ndarray) -> np.ndarray:
        """Difficulty of each sample of labelled_clips, larger is easier; for a video the mean of its clips with motion."""
        scores = self._all("curriculum/score")
        if self.config["clips"] is None:
            clip = np.cumsum(self.readers.n_clips) - self.readers.n_clips
            return scores[clip[samples[:, 0]] + samples[:, 1]]
        known, n = ~np.isnan(scores), len(self.videos)
        sums = np.bincount(self.clip_video[known], scores[known], n)
        counts = np.bincount(self.clip_video[known], minlength=n)
        means = np.divide(sums, counts, out=np.full(n, np.nan), where=counts > 0).astype(np.float32)
        return means[self.first_row[samples[:, 0]] + samples[:, 1]]

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits of the (first) data set."""
        return next(iter(self.readers.splits.values()))

    @functools.cached_property
    def classes(self) -> list[str]:
        """The class labels of all videos, sorted."""
        return sorted(set(self.text("videos/label")) - {""})

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """Index into `classes` of every video, -1 without a label; int64 [videos]."""
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index.get(label, -1) for label in self.text("videos/label")])

    def _all(self, key: str) -> np.ndarray:
        return self.readers.numbers(key)

    def text(self, key: str) -> list[str]:
        """A text data set of the videos by its full name, such as "videos/label"."""
        return list(self.readers.texts(key))


def sample_clips(reader: ShardReader, item: int) -> range:
    """The labelled clips of a sample of Shards.labelled_clips: the sample itself, or the clips of the video."""
    if reader.config["clips"] is None:
        return range(item, item + 1)
    return range(*np.searchsorted(reader.arrays["clips/video"], [item, item + 1]))


def _pairs(counts: np.ndarray) -> np.ndarray:
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - first], axis=1)


def _split_column(splits: tuple[str, ...], split: str | int | None) -> int | None:
    name = "1" if split is None else str(split)
    if name in splits:
        return splits.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(splits):
        return int(name) - 1
    if name == "1" and not splits:
        return None
    has = "the data set has " + (f"{', '.join(splits)} (or 1 to {len(splits)})" if splits else "no splits")
    raise SettingError(f"unknown split {name!r}: {has}")
