"""Shards -> batches: the only place that reads pixels.

Every random draw is a pure function of (seed, epoch, sample), whoever makes it: a worker, the main process, or a run
that was resumed in the middle of an epoch.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from labelgen.shards import open_shards
from trainer import augment
from trainer.errors import TrainerError

TRAIN, VALIDATION, TEST = 1, 2, 3  # values of videos/split
CLIP_LENGTH = 16
_ORDER, _VIEW = 1, 2  # keeps the two kinds of draws apart


class Shards:
    """All shards of a data set as one, seen through one of its official splits.

    folder: what labelgen wrote; split: a split's name or 1-based number, None for the first.
    dataset, config, config_hash, crop_grid: as in every one of the shards (int16 [crops, 2] y, x)
    split:  name of the split, None where the data set has none
    videos: int64 [videos, 2], shard and video in it; clips: int64 [clips, 2], likewise
    owner:  int64 [clips], row of `videos` that a clip is of
    part:   uint8 [videos], 0 none, 1 train, 2 validation, 3 test
    whole:  the split marks no video as train, so that pretraining uses them all
    trains: bool [videos], whether pretraining may use it

    Raises TrainerError for an unknown split, ShardError for unreadable or mixed shards.
    """

    def __init__(self, folder: str | os.PathLike, split: str | int | None = None):
        self.readers = open_shards(folder)
        first = self.readers[0]
        self.config, self.config_hash, self.crop_grid = first.config, first.config_hash, first.crop_grid
        self.dataset: str = first.config["dataset"]
        self.videos = _pairs([reader.n_videos for reader in self.readers])
        self.clips = _pairs([reader.n_clips for reader in self.readers])
        before = np.cumsum([0] + [reader.n_videos for reader in self.readers])[:-1]
        self.owner = before[self.clips[:, 0]] + self._all("clips/video")
        column = _split_column(first.splits, split)
        self.split = None if column is None else first.splits[column]
        self.part = np.zeros(len(self.videos), np.uint8) if column is None else self._all("videos/split")[:, column]
        self.whole = not (self.part == TRAIN).any()
        if self.whole and (self.part == TEST).any():
            raise TrainerError(
                f"{folder}: split {self.split} marks {(self.part == TEST).sum()} videos as test and none as train; "
                "choose another --split, or label the training videos"
            )
        self.trains = (self.part == TRAIN) | self.whole

    def _all(self, key: str) -> np.ndarray:
        return np.concatenate([reader.arrays[key] for reader in self.readers])

    def text(self, key: str) -> list[str]:
        """A text of every video by its full name, e.g. "videos/label"."""
        return [text for reader in self.readers for text in reader.arrays[key]]


def _pairs(counts: list[int]) -> np.ndarray:
    shard = np.repeat(np.arange(len(counts)), counts)
    return np.stack([shard, np.concatenate([np.arange(n) for n in counts])], axis=1)


def _split_column(splits: tuple[str, ...], split: str | int | None) -> int | None:
    name = "1" if split is None else str(split)
    if name in splits:
        return splits.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(splits):
        return int(name) - 1
    if name == "1" and not splits:
        return None
    has = "the data set has " + (f"{', '.join(splits)} (or 1 to {len(splits)})" if splits else "no splits")
    raise TrainerError(f"unknown split {name!r}: {has}")


def steps_per_epoch(samples: int, batch_size: int) -> int:
    return math.ceil(samples / batch_size)


def batch_indices(samples: int, batch_size: int, seed: int, steps: range) -> Iterator[list[tuple[int, int]]]:
    """(epoch, sample) of every item of every batch of the given steps.

    Each epoch is one random pass over all samples, cut into batches that differ by at most one sample, none larger than
    batch_size: nothing is dropped and no rest of one or two samples upsets batch normalisation.
    """
    per_epoch = steps_per_epoch(samples, batch_size)
    for epoch in range(steps.start // per_epoch, math.ceil(steps.stop / per_epoch)):
        order = np.random.default_rng((_ORDER, seed, epoch)).permutation(samples)
        for step, batch in enumerate(np.array_split(order, per_epoch), epoch * per_epoch):
            if step in steps:
                yield [(epoch, int(sample)) for sample in batch]


class TrainingClips(Dataset):
    """Clips of one method's samples (int64 [n, 2]); an item is asked for by (epoch, sample)."""

    def __init__(self, shards: Shards, samples: np.ndarray, method, seed: int, jitter: str):
        self.shards, self.samples, self.method, self.seed, self.jitter = shards, samples, method, seed, jitter

    def __getitem__(self, key: tuple[int, int]) -> dict:
        epoch, sample = key
        shard, item = self.samples[sample]
        reader = self.shards.readers[shard]
        rng = np.random.default_rng((_VIEW, self.seed, epoch, sample))
        view = augment.draw(rng, self.shards.crop_grid, CLIP_LENGTH, self.jitter)
        frames, labels = self.method.read(reader, item, epoch, view)
        video = np.searchsorted(reader.arrays["videos/first_frame"], frames.flat[0], "right") - 1
        return {
            "id": reader.arrays["videos/id"][video],
            "clip": torch.from_numpy(reader.frames(frames)),
            "view": view,
            "labels": labels,
        }


class VideoViews(Dataset):
    """`views` clips of 16 frames of each video, evenly spread, for evaluation: item i is view i % views of video
    i // views. Starts are round(linspace(0, L - 16, views)); a video shorter than 16 frames is played in a loop."""

    def __init__(self, shards: Shards, videos: np.ndarray, views: int):
        self.shards, self.videos, self.views = shards, videos, views

    def __len__(self) -> int:
        return len(self.videos) * self.views

    def __getitem__(self, index: int) -> dict:
        shard, video = self.videos[index // self.views]
        reader = self.shards.readers[shard]
        frames = view_frames(int(reader.arrays["videos/n_frames"][video]), self.views)[index % self.views]
        first = reader.arrays["videos/first_frame"][video]
        return {"index": index, "clip": torch.from_numpy(reader.frames(first + frames))}


def view_frames(n_frames: int, views: int) -> np.ndarray:
    """Frames of each evaluation view within its video, int64 [views, 16]."""
    starts = np.rint(np.linspace(0, max(0, n_frames - CLIP_LENGTH), views)).astype(np.int64)
    return (starts[:, None] + np.arange(CLIP_LENGTH)) % n_frames


def loader(dataset: Dataset, workers: int, device: torch.device, **options) -> DataLoader:
    """A DataLoader whose workers use one thread each and leave Ctrl-C and SIGTERM to the main process."""
    cv2.setNumThreads(
        1
    )  # here, before the fork: in a worker it would wait for ever for threads that it did not inherit
    return DataLoader(
        dataset, num_workers=workers, worker_init_fn=_quiet_worker, pin_memory=device.type == "cuda", **options
    )


def _quiet_worker(_: int) -> None:
    # a signal to the whole process group must not kill the workers before the main process has finished its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def to_device(batch, device: torch.device):
    """The same nested dict with every tensor on the device."""
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch
