"""Samples -> batches of frames, labels and views: the only place that reads pixels.

Every random draw is a pure function of (seed, epoch, sample), whoever makes it: a worker, the main process, or a run
that was resumed in the middle of an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from labelgen.errors import VsslError
from labelgen.processes import cores
from trainer import augment
from trainer.data.index import Shards, clips_of
from trainer.data.keys import OTHER_VIDEO, VIEW
from trainer.data.transport import alive, frame_buffer


@dataclass(frozen=True)
class Draw:
    """How one sample is shown.

    epoch: number of the pass over the samples, several of which may make an epoch of the run (the setting `repeats`)
    rng: generator of this (seed, epoch, sample); views: one per clip, see
    augment.draw; options: the method's
    """

    epoch: int
    rng: np.random.Generator
    views: list[dict]
    options: dict


@dataclass(frozen=True)
class Batch:
    """What a method's forward gets, on the device.

    clips:    float32 [B, n, 3, T, size, size], n clips of T frames per sample, augmented
    labels:   what the method's read returned, by name, stacked [B, ...]
    video:    int64 [B], row of Shards.videos that a sample is of
    progress: share of the training that is done, 0 to 1
    others:   float32 [B, 1, 3, T, size, size], clips of the videos that the method's `others` names; None where it names none
    counts:   samples of each process; of one process nobody asks
    """

    clips: Tensor
    labels: dict[str, Tensor]
    video: Tensor
    progress: float
    others: Tensor | None = None
    counts: Sequence[int] = ()


def _returns_errors(get: Callable) -> Callable:
    """Decorator: an error is returned; raised in a decoding process it would arrive as a text with a traceback in it."""

    @functools.wraps(get)
    def items(self, keys):
        try:
            return get(self, keys)
        except VsslError as error:
            return error

    return items


class TrainingClips(Dataset):
    """Clips of one method's samples (int64 [n, 2]); a batch is asked for by its keys, int64 [B, 2] (epoch, sample).

    method: class of trainer.methods; tag tells the draws of different uses of the same samples apart.
    times, copy: int64 [n], how often a sample stands among the samples, and which one of these it is: each shows another draw
    """

    def __init__(
        self, shards: Shards, samples: np.ndarray, method, options: dict, seed: int, jitter: str, tag: int = 0
    ):
        self.shards, self.samples, self.method, self.options = shards, samples, method, options
        self.seed, self.jitter, self.tag = seed, jitter, tag
        self.times, self.copy = np.ones(len(samples), np.int64), np.zeros(len(samples), np.int64)
        (self.n, self.length), self.size = method.shape(shards.config, options), shards.config["crop"]

    def _draw(self, kind: int, key: np.ndarray, n: int) -> Draw:
        epoch, sample = map(int, key)
        key = kind, self.tag, self.seed, epoch, sample
        # the same generator either way; of an array it is made in half the time
        rng = np.random.default_rng(np.array(key, np.uint32) if max(key) < 1 << 32 else key)
        views = [augment.draw(rng, self.shards.crop_grid, self.length, self.jitter) for _ in range(n)]
        return Draw(epoch * int(self.times[sample]) + int(self.copy[sample]), rng, views, self.options)

    @_returns_errors
    def __getitems__(self, keys: np.ndarray) -> dict:
        """One batch: "id" list, "key" and "video" int64, "clips" uint8 [B, n, T, size, size, 3], cropped as "view" says,
        "labels"."""
        shown, ids, rows, views, labels = [], [], [], [], []
        for key in keys:  # apart from the decoding, which fills the processor's caches
            shard, item = self.samples[key[1]]
            reader = self.shards.readers[shard]
            draw = self._draw(VIEW, key, self.n)
            if self.method.of_labelled_clips:
                clips = clips_of(reader, item)  # of videos they are sorted: shifted, no pass shows only the beginnings
                item = clips[(draw.epoch + item) % len(clips)]
            frames, label = self.method.read(reader, item, draw)
            shown.append((reader, frames, draw.views))
            video = np.searchsorted(reader.arrays["videos/first_frame"], frames.flat[0], "right") - 1
            ids.append(reader.arrays["videos/id"][video])
            rows.append(self.shards.before[shard] + video)
            views += draw.views
            labels.append(label)
            alive()
        array, clips = frame_buffer(len(keys), self.n, self.length, self.size, self.size, 3)
        for sample, (reader, frames, drawn) in zip(array, shown, strict=True):
            for target, indices, view in zip(sample, frames, drawn, strict=True):
                reader.frames(indices, target, view["corner"])
                alive()
        return {
            "id": ids,
            "key": torch.from_numpy(np.asarray(keys)),
            "video": torch.tensor(rows),
            "clips": clips,
            "view": {name: view.unflatten(0, (-1, self.n)) for name, view in _tensors(_stacked(views)).items()},
            "labels": _tensors(_stacked(labels)),
        }

    def fetch(self, raw: dict, rows: np.ndarray, pin: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Clips uint8 [B, 1, T, size, size, 3] of the videos of these rows, one for each sample of a raw batch, and their
        views, which depend on the samples' keys alone; pin: in pinned memory."""
        draws = [self._draw(OTHER_VIDEO, key, 1) for key in raw["key"].numpy()]
        shape = len(draws), 1, self.length, self.size, self.size, 3
        clips = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        array = clips.numpy()

        def one(i: int) -> None:
            shard, video = self.shards.videos[rows[i]]
            reader, labels = self.shards.readers[shard], {name: value[i] for name, value in raw["labels"].items()}
            frames = self.method.read_other(reader, video, labels, draws[i])[0]
            reader.frames(frames, array[i, 0], draws[i].views[0]["corner"])

        with ThreadPoolExecutor(min(8, cores())) as pool:  # decoding leaves Python's lock
            list(pool.map(one, range(len(draws))))
        views = _tensors(_stacked([_stacked(draw.views) for draw in draws]))
        return clips, {name: view.pin_memory() for name, view in views.items()} if pin else views


class CentreClips(TrainingClips):
    """Samples drawn as in training, but each clip the centre crop, neither mirrored nor jittered."""

    def _draw(self, kind: int, key: np.ndarray, n: int) -> Draw:
        draw, grid = super()._draw(kind, key, n), self.shards.crop_grid
        corner = (np.array(self.shards.frame_size) - self.size) // 2
        crop = int(np.abs(grid - corner).sum(1).argmin())
        view = {"crop": crop, "corner": grid[crop].astype(np.int64), "mirror": 0}
        return replace(draw, views=[dict(view) for _ in range(n)])


def _stacked(dicts: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([values[name] for values in dicts]) for name in dicts[0]}


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class VideoViews(Dataset):
    """Clips of T frames, as long as those of the shards, of videos (int64 [n, 2]), for evaluation, a video's adjacent and in
    order.

    frames: (number of frames of the video, T) -> frames int64 [clips, T] to show of it
    owner:  int64 [clips], index into `videos` of each clip
    """

    def __init__(self, shards: Shards, videos: np.ndarray, frames: Callable[[int, int], np.ndarray]):
        self.shards, self.videos = shards, videos
        lengths = [int(shards.readers[shard].arrays["videos/n_frames"][video]) for shard, video in videos]
        shown = [frames(length, shards.clip_length) for length in lengths]
        self.owner = np.repeat(np.arange(len(videos)), [len(clips) for clips in shown])
        self.frames = np.concatenate(shown) if shown else np.empty((0, shards.clip_length), np.int64)

    def __len__(self) -> int:
        return len(self.owner)

    @_returns_errors
    def __getitems__(self, indices: list[int]) -> dict:
        """One batch: "index" int64 [B], "clips" uint8 [B, T, H, W, 3]."""
        array, clips = frame_buffer(len(indices), self.frames.shape[1], *self.shards.frame_size, 3)
        for target, index in zip(array, indices, strict=True):
            shard, video = self.videos[self.owner[index]]
            reader = self.shards.readers[shard]
            reader.frames(reader.arrays["videos/first_frame"][video] + self.frames[index], target)
            alive()
        return {"index": torch.tensor(indices), "clips": clips}


def spread_frames(n_frames: int, length: int, views: int = 10) -> np.ndarray:
    """Frames of `views` clips evenly spread over a video, int64 [views, length]: starts round(linspace(0, n_frames - length,
    views)); a video shorter than a clip is played in a loop."""
    starts = np.rint(np.linspace(0, max(0, n_frames - length), views)).astype(np.int64)
    return (starts[:, None] + np.arange(length)) % n_frames


def sliding_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that overlap by half and fit, int64 [clips, length]; of a video shorter than a clip one, played in a
    loop."""
    starts = np.arange(0, max(1, n_frames - length + 1), length // 2)
    return (starts[:, None] + np.arange(length)) % n_frames


def adjacent_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that fit one after the other, int64 [clips, length]; of a video shorter than a clip one, played in a
    loop."""
    starts = np.arange(0, max(1, n_frames - length + 1), length)
    return (starts[:, None] + np.arange(length)) % n_frames
