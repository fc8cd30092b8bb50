"""From samples to batches of frames, labels and views.

Every random draw is a pure function of (seed, epoch, sample), in any thread, even if the run was resumed in the middle
of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labelgen.processes import cores
from labelgen.shards import ShardReader
from trainer import augment
from trainer.data.index import Shards, sample_clips
from trainer.data.keys import OTHER_VIDEO, VIEW

if TYPE_CHECKING:
    from trainer.methods.method import Method


@dataclass(frozen=True)
class Draw:
    """How one sample is shown.

    Parameters
    ----------
    epoch : int
        Number of the pass over the samples; an epoch of the run may have several (the setting `repeats`).
    rng : numpy.random.Generator
        Of this (seed, epoch, sample).
    views : list of dict
        One per clip, see augment.draw.
    options : dict
        Of the method.
    """

    epoch: int
    rng: np.random.Generator
    views: list[dict]
    options: dict


ReadClip = Callable[[ShardReader, int, dict[str, Tensor], Draw], np.ndarray]


def _no_clips(rows: Tensor, read: ReadClip) -> Tensor:
    raise AssertionError("this batch was made without its shards")


@dataclass(frozen=True)
class Batch:
    """The input of a method's forward, on the device.

    Parameters
    ----------
    clips : float32 [B n, 3, T, size, size]
        Augmented; the n clips of a sample, of T frames each, are adjacent.
    labels : dict of [B, ...]
        Returned by the method's read, by name, stacked.
    video : int64 [B]
        Row in Shards.videos of each sample's video.
    progress : float
        Share of the training that is done, 0 to 1.
    key : (int, int)
        Seed of the run and step, for draws that are equal in all processes.
    counts : sequence of int
        Number of samples in each process; not needed with one process.
    share : float
        Share of the step's samples that this micro-batch holds, over all processes.
    clips_of : callable
        (rows int64 [B] of Shards.videos, read) -> float32 [B, 3, T, size, size], augmented: a clip of another video for each
        sample, decoded while the caller waits. read: (reader, video in it, the sample's labels, draw) -> frames int64 [T].
    """

    clips: Tensor
    labels: dict[str, Tensor]
    video: Tensor
    progress: float
    key: tuple[int, int] = (0, 0)
    counts: Sequence[int] = ()
    share: float = 1.0
    clips_of: Callable[[Tensor, ReadClip], Tensor] = _no_clips


class TrainingClips:
    """Clips of one method's samples (int64 [n, 2]).

    method: class of trainer.methods; tag: gives each use of the same samples different draws
    weights: how often a sample of each data set occurs, if not once; each copy has a different draw
    jitter, crop_area, color_strength: see augment.draw
    """

    def __init__(
        self,
        shards: Shards,
        samples: np.ndarray,
        method: type[Method],
        options: dict,
        seed: int,
        jitter: str,
        tag: int = 0,
        weights: Sequence[int] = (),
        crop_area: Sequence[float] = augment.CROP_AREA,
        color_strength: float = 1.0,
    ) -> None:
        self.shards, self.samples, self.method, self.options = shards, samples, method, options
        self.seed, self.jitter, self.tag = seed, jitter, tag
        self.crop_area, self.color_strength = crop_area, color_strength
        self.times, self.copy = np.ones(len(samples), np.int64), np.zeros(len(samples), np.int64)
        if weights:
            self.samples, self.times, self.copy = shards.weighted(samples, weights)
        (self.n, self.length), self.size = method.shape(shards.config, options), shards.config["crop"]

    def _draw(self, kind: int, key: np.ndarray, n: int) -> Draw:
        epoch, sample = map(int, key)
        seed = kind, self.tag, self.seed, epoch, sample
        # the same generator either way; an array makes it in half the time
        rng = np.random.default_rng(np.array(seed, np.uint32) if max(seed) < 1 << 32 else seed)
        grid, size = self.shards.crop_grid, self.shards.frame_size
        look = self.length, self.jitter, size, self.crop_area, self.color_strength
        views = [augment.draw(rng, grid, *look) for _ in range(n)]
        return Draw(epoch * int(self.times[sample]) + int(self.copy[sample]), rng, views, self.options)

    def _frames(self, views: list[dict], n: int) -> np.ndarray:
        """Memory for n clips per sample, uint8 [B, n, T, H, W, 3], for whole frames if views are boxes in them."""
        size = self.shards.frame_size if "box" in views[0] else (self.size, self.size)
        return np.empty((len(views) // n, n, self.length, *size, 3), np.uint8)

    def batch(self, keys: np.ndarray) -> dict[str, Any]:
        """The batch of these keys, int64 [B, 2] (epoch, sample): "id" list, "key" and "video" int64, "clips" uint8
        [B, n, T, size, size, 3], cropped as "view" says, or with boxes in it whole frames [B, n, T, H, W, 3], "labels"."""
        shown, ids, rows, views, labels = [], [], [], [], []
        for key in keys:  # not while decoding, which fills the processor's caches
            shard, item = self.samples[key[1]]
            reader = self.shards.readers[shard]
            draw = self._draw(VIEW, key, self.n)
            if self.method.of_labelled_clips:
                clips = sample_clips(reader, item)  # sorted: without the shift a pass would show all beginnings
                item = clips[(draw.epoch + item) % len(clips)]
            frames, label = self.method.read(reader, item, draw)
            shown.append((reader, frames, draw.views))
            video = np.searchsorted(reader.arrays["videos/first_frame"], frames.flat[0], "right") - 1
            ids.append(reader.arrays["videos/id"][video])
            rows.append(self.shards.first_row[shard] + video)
            views += draw.views
            labels.append(label)
        array = self._frames(views, self.n)
        for sample, (reader, frames, drawn) in zip(array, shown, strict=True):
            for target, indices, view in zip(sample, frames, drawn, strict=True):
                reader.frames(indices, target, view.get("corner", (0, 0)))
        return {
            "id": ids,
            "key": torch.from_numpy(np.asarray(keys)),
            "video": torch.tensor(rows),
            "clips": torch.from_numpy(array),
            "view": {name: view.unflatten(0, (-1, self.n)) for name, view in _tensors(_stacked(views)).items()},
            "labels": _tensors(_stacked(labels)),
        }

    def of_videos(self, raw: dict[str, Any], rows: np.ndarray, read: ReadClip) -> dict[str, Any]:
        """A clip of the video of each row, for each sample of a batch: "clips" as in `batch`, one per sample, and
        "view", drawn only from the samples' keys. read: see `Batch`."""
        draws = [self._draw(OTHER_VIDEO, key, 1) for key in raw["key"].numpy()]
        array = self._frames([draw.views[0] for draw in draws], 1)

        def decode(i: int) -> None:
            shard, video = self.shards.videos[rows[i]]
            reader, labels = self.shards.readers[shard], {name: value[i] for name, value in raw["labels"].items()}
            reader.frames(read(reader, video, labels, draws[i]), array[i, 0], draws[i].views[0].get("corner", (0, 0)))

        with ThreadPoolExecutor(min(8, cores())) as threads:
            list(threads.map(decode, range(len(draws))))
        views = _tensors(_stacked([_stacked(draw.views) for draw in draws]))
        return {"clips": torch.from_numpy(array), "view": views}


class CentreClips(TrainingClips):
    """Samples drawn as in training, but with centre crops, neither mirrored nor jittered."""

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
