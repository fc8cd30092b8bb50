"""Shards -> batches: the only place that reads pixels.

Every random draw is a pure function of (seed, epoch, sample), whoever makes it: a worker, the main process, or a run
that was resumed in the middle of an epoch.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from labelgen.errors import VsslError
from labelgen.shards import NO_ROW, open_shards
from trainer import augment
from trainer.errors import TrainerError

TRAIN, VALIDATION, TEST = 1, 2, 3  # values of videos/split
CLIP_LENGTH = 16
_ORDER, _VIEW, _OTHER, _HOLDOUT = 1, 2, 3, 4  # keep the kinds of draws apart


class Shards:
    """All shards of a data set as one, seen through one of its official splits.

    folder: what labelgen wrote; split: a split's name or 1-based number, None for the first.
    dataset, config, config_hash, crop_grid: as in every one of the shards (int16 [crops, 2] y, x)
    split:  name of the split, None where the data set has none
    videos: int64 [videos, 2], shard and video in it; clips: int64 [clips, 2], likewise
    before: int64 [shards], row of a shard's first video; frame_size: height and width of the stored frames
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
        self.before = np.cumsum([0] + [reader.n_videos for reader in self.readers])[:-1]
        self.owner = self.before[self.clips[:, 0]] + self._all("clips/video")
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
        self.frame_size = first.frame_size

    def hold_out(self, share: float, seed: int) -> np.ndarray:
        """Take about a share of the training videos out of `trains`, whole groups (a video without a group is one), drawn
        from the seed, one group at least. Returns which, bool [videos]. Raises TrainerError when there is only one group."""
        groups = np.array(
            [group or name for group, name in zip(*map(self.text, ("videos/group", "videos/id")), strict=True)]
        )
        names, counts = np.unique(groups[self.trains], return_counts=True)
        if len(names) < 2:
            raise TrainerError(
                f"{self.dataset}: its {counts.sum()} training videos are one group, no part can be held out"
            )
        order = np.random.default_rng((_HOLDOUT, seed)).permutation(len(names))
        chosen = order[: max(1, np.searchsorted(np.cumsum(counts[order]), share * counts.sum(), "right"))]
        held = self.trains & np.isin(groups, names[chosen])
        self.trains = self.trains & ~held
        return held

    def labelled_clips(self) -> tuple[np.ndarray, int, str]:
        """The labelled clips of the training videos, int64 [n, 2], how many videos are left out, and why."""
        used = self.trains[self.owner]
        left_out = int(self.trains.sum() - len(np.unique(self.owner[used])))
        return self.clips[used], left_out, "without a labelled clip"

    def long_enough(self, frames: int) -> tuple[np.ndarray, int, str]:
        """The training videos of at least so many frames, int64 [n, 2], how many are left out, and why."""
        long = self._all("videos/n_frames") >= frames
        return self.videos[self.trains & long], int((self.trains & ~long).sum()), f"shorter than {frames} frames"

    def with_rows(self, key: str) -> tuple[np.ndarray, int, str]:
        """The training videos that have rows of "pace/pace" or "order/permutation", int64 [n, 2], how many are left out, and
        why."""
        has = (self._all(key) != NO_ROW).all(1)
        return (
            self.videos[self.trains & has],
            int((self.trains & ~has).sum()),
            f"too short for the {key.split('/')[0]} rows",
        )

    def easier_half(self, samples: np.ndarray, method) -> np.ndarray:
        """Indices int64 of the easier half of a method's samples, easiest first; clips without motion come last [thesis 3.2].
        Raises TrainerError when the samples are no labelled clips."""
        if not method.of_labelled_clips:
            raise TrainerError(
                f"a curriculum needs labelled clips, which {method.__name__} does not draw; leave it out"
            )
        scores = np.array([self.readers[shard].arrays["curriculum/score"][clip] for shard, clip in samples])
        return np.argsort(-scores, kind="stable")[: math.ceil(len(scores) / 2)]  # NaN is sorted last

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


class Batches:
    """Which samples each step shows, a pure function of the step.

    Without a curriculum each epoch is one random pass over all samples, cut into batches that differ by at most one
    sample, none larger than batch_size: nothing is dropped and no rest of one or two samples upsets batch
    normalisation. The first `easy_steps` steps pass over the samples `easy` (int64 indices) alone, with batches of the
    same sizes, so that the total number of samples is that without a curriculum.

    parts: micro-batches of a step (gradient accumulation), processes, number of this process. The joined batch of a step
    does not depend on them.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        easy: np.ndarray | None = None,
        easy_steps: int = 0,
        parts: tuple[int, int, int] = (1, 1, 0),
    ):
        self.samples, self.seed, self.easy, self.easy_steps = samples, seed, easy, easy_steps
        self.per_epoch = math.ceil(samples / batch_size)
        self.micro, self.world, self.rank = parts
        if samples // self.per_epoch < self.micro * self.world:
            raise TrainerError(
                f"a batch of {samples // self.per_epoch} samples cannot be shared among {self.world} processes and "
                f"{self.micro} accumulated parts; raise --batch-size or lower --accumulate"
            )
        self._pass = functools.lru_cache(maxsize=4)(self._permuted)

    def _begin(self, step: int) -> int:
        """Samples shown before a step."""
        epoch, place = divmod(step, self.per_epoch)
        small, longer = divmod(self.samples, self.per_epoch)
        return epoch * self.samples + place * small + min(place, longer)

    def _permuted(self, number: int, easy: bool) -> np.ndarray:
        rng = np.random.default_rng((_ORDER, self.seed, number))
        return rng.permutation(self.easy) if easy else rng.permutation(self.samples)

    def joined(self, step: int) -> np.ndarray:
        """(pass, sample) of every item of a step, int64 [n, 2]. Passes are counted from 0 and tell draws apart."""
        easy = step < self.easy_steps
        length = len(self.easy) if easy else self.samples
        cut = 0 if easy else self._begin(self.easy_steps)
        before = 0 if easy or not self.easy_steps else math.ceil(cut / len(self.easy))
        numbers, places = np.divmod(np.arange(self._begin(step), self._begin(step + 1)) - cut, length)
        numbers += before
        return np.array([(k, self._pass(k, easy)[place]) for k, place in zip(numbers.tolist(), places, strict=True)])

    def size(self, step: int) -> int:
        """Samples of a step, over all processes."""
        return self._begin(step + 1) - self._begin(step)

    def shares(self, step: int) -> list[float]:
        """Part of the step's samples that each micro-batch holds, over all processes."""
        n = self.size(step)
        return [len(part) / n for part in np.array_split(np.arange(n), self.micro)]

    def sampler(self, steps: range) -> Iterator[np.ndarray]:
        """Items of this process of every micro-batch of the steps, int64 [n, 2] each."""
        for step in steps:
            for part in np.array_split(self.joined(step), self.micro):
                yield np.array_split(part, self.world)[self.rank]


@dataclass(frozen=True)
class Draw:
    """How one sample is shown.

    epoch: number of the pass over the samples; rng: generator of this (seed, epoch, sample); views: one per clip, see
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
    fetch:    clips of other videos: (rows int64 [B], read) -> float32 [B, 1, 3, T, size, size], see TrainingClips.fetch
    """

    clips: Tensor
    labels: dict[str, Tensor]
    video: Tensor
    progress: float
    fetch: Callable


def _telling(get: Callable) -> Callable:
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
    """

    def __init__(
        self, shards: Shards, samples: np.ndarray, method, options: dict, seed: int, jitter: str, tag: int = 0
    ):
        self.shards, self.samples, self.method, self.options = shards, samples, method, options
        self.seed, self.jitter, self.tag = seed, jitter, tag
        (self.n, self.length), self.size = method.shape(shards.config, options), shards.config["crop"]

    def _draw(self, kind: int, key: np.ndarray, n: int) -> Draw:
        epoch, sample = map(int, key)
        key = kind, self.tag, self.seed, epoch, sample
        # the same generator either way; of an array it is made in half the time
        rng = np.random.default_rng(np.array(key, np.uint32) if max(key) < 1 << 32 else key)
        views = [augment.draw(rng, self.shards.crop_grid, self.length, self.jitter) for _ in range(n)]
        return Draw(epoch, rng, views, self.options)

    @_telling
    def __getitems__(self, keys: np.ndarray) -> dict:
        """One batch: "id" list, "key" and "video" int64, "clips" uint8 [B, n, T, size, size, 3], cropped as "view" says,
        "labels"."""
        shown, ids, rows, views, labels = [], [], [], [], []
        for key in keys:  # apart from the decoding, which fills the processor's caches
            shard, item = self.samples[key[1]]
            reader = self.shards.readers[shard]
            draw = self._draw(_VIEW, key, self.n)
            frames, label = self.method.read(reader, item, draw)
            shown.append((reader, frames, draw.views))
            video = np.searchsorted(reader.arrays["videos/first_frame"], frames.flat[0], "right") - 1
            ids.append(reader.arrays["videos/id"][video])
            rows.append(self.shards.before[shard] + video)
            views += draw.views
            labels.append(label)
        array, clips = _frames(len(keys), self.n, self.length, self.size, self.size, 3)
        for sample, (reader, frames, drawn) in zip(array, shown, strict=True):
            for target, indices, view in zip(sample, frames, drawn, strict=True):
                reader.frames(indices, target, view["corner"])
        return {
            "id": ids,
            "key": torch.from_numpy(np.asarray(keys)),
            "video": torch.tensor(rows),
            "clips": clips,
            "view": {name: view.unflatten(0, (-1, self.n)) for name, view in _tensors(_stacked(views)).items()},
            "labels": _tensors(_stacked(labels)),
        }

    def fetch(self, keys: np.ndarray, rows: np.ndarray, read: Callable) -> tuple[Tensor, dict[str, Tensor]]:
        """Clips uint8 [B, 1, T, size, size, 3] of the videos of these rows, chosen while a step is computed, and their
        views.

        read: (reader, video, index in the batch, Draw) -> frames int64 [1, T]; the draws depend on seed and key alone.
        """
        draws = [self._draw(_OTHER, key, 1) for key in keys]
        clips = np.empty((len(keys), 1, self.length, self.size, self.size, 3), np.uint8)

        def one(i: int) -> None:
            shard, video = self.shards.videos[rows[i]]
            reader = self.shards.readers[shard]
            reader.frames(read(reader, video, i, draws[i])[0], clips[i, 0], draws[i].views[0]["corner"])

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves Python's lock
            list(pool.map(one, range(len(keys))))
        return torch.from_numpy(clips), _tensors(_stacked([_stacked(draw.views) for draw in draws]))


def _stacked(dicts: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([values[name] for values in dicts]) for name in dicts[0]}


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class VideoViews(Dataset):
    """Clips of 16 frames of videos (int64 [n, 2]), for evaluation, a video's adjacent and in order.

    frames: (number of frames of the video) -> frames int64 [clips, 16] to show of it
    owner:  int64 [clips], index into `videos` of each clip
    """

    def __init__(self, shards: Shards, videos: np.ndarray, frames: Callable[[int], np.ndarray]):
        self.shards, self.videos = shards, videos
        lengths = [int(shards.readers[shard].arrays["videos/n_frames"][video]) for shard, video in videos]
        shown = [frames(length) for length in lengths]
        self.owner = np.repeat(np.arange(len(videos)), [len(clips) for clips in shown])
        self.frames = np.concatenate(shown) if shown else np.empty((0, CLIP_LENGTH), np.int64)

    def __len__(self) -> int:
        return len(self.owner)

    @_telling
    def __getitems__(self, indices: list[int]) -> dict:
        """One batch: "index" int64 [B], "clips" uint8 [B, 16, H, W, 3]."""
        array, clips = _frames(len(indices), CLIP_LENGTH, *self.shards.frame_size, 3)
        for target, index in zip(array, indices, strict=True):
            shard, video = self.videos[self.owner[index]]
            reader = self.shards.readers[shard]
            reader.frames(reader.arrays["videos/first_frame"][video] + self.frames[index], target)
        return {"index": torch.tensor(indices), "clips": clips}


def spread_frames(n_frames: int, views: int = 10) -> np.ndarray:
    """Frames of `views` clips evenly spread over a video, int64 [views, 16]: starts round(linspace(0, L - 16, views)); a
    video shorter than 16 frames is played in a loop."""
    starts = np.rint(np.linspace(0, max(0, n_frames - CLIP_LENGTH), views)).astype(np.int64)
    return (starts[:, None] + np.arange(CLIP_LENGTH)) % n_frames


def sliding_frames(n_frames: int, step: int = 8) -> np.ndarray:
    """Frames of all clips that begin `step` frames apart and fit, int64 [clips, 16]; of a video shorter than 16 frames
    one, played in a loop."""
    starts = np.arange(0, max(1, n_frames - CLIP_LENGTH + 1), step)
    return (starts[:, None] + np.arange(CLIP_LENGTH)) % n_frames


def _frames(*shape: int) -> tuple[np.ndarray, Tensor | _Lent]:
    """A uint8 array to decode into, and what a batch holds of it, which the main process receives as a tensor."""
    if get_worker_info() is None:
        array = np.empty(shape, np.uint8)
        return array, torch.from_numpy(array)
    lent = _Lent(shape)
    return lent.frames.numpy(), lent


class _Lent:
    """Frames in memory that a worker shares with the main process and uses again once that has dropped them: for new
    shared memory, which it would get otherwise for every batch, the kernel takes a third of the time of decoding."""

    rooms: list[Tensor] = []  # of this worker, uint8 [size + 1]; the last byte is 1 as long as the room is lent

    def __init__(self, shape: tuple[int, ...]):
        size = math.prod(shape)
        _Lent.rooms = [room for room in _Lent.rooms if room[-1] or len(room) > size]
        room = next((room for room in _Lent.rooms if not room[-1]), None)
        if room is None:
            room = torch.empty(size + 1, dtype=torch.uint8).share_memory_()
            _Lent.rooms.append(room)
        room[-1] = 1
        self.frames = room[:size].view(shape)

    def __reduce__(self):
        return _received, (self.frames,)


def _received(frames: Tensor) -> Tensor:
    """Lent frames in the main process; their room is given back when no tensor uses it any more."""
    lent = torch.empty(0, dtype=torch.uint8).set_(frames.untyped_storage())[-1]
    array = frames.numpy()  # lives as long as the storage of the tensor made of it
    weakref.finalize(array, lent.zero_).atexit = False
    return torch.from_numpy(array)


def loader(dataset: Dataset, workers: int, device: torch.device, **options) -> DataLoader:
    """A DataLoader whose workers use one thread each and leave Ctrl-C and SIGTERM to the main process."""
    cv2.setNumThreads(
        1
    )  # here, before the fork: in a worker it would wait for ever for threads that it did not inherit
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=_quiet_worker,
        pin_memory=device.type == "cuda",
        collate_fn=_sent,
        **options,
    )


def told(batch: dict | VsslError) -> dict:
    """The batch, or the error that a decoding process met raised here, as it was."""
    if isinstance(batch, VsslError):
        raise batch
    return batch


_ending = multiprocessing.RawValue("b", 0)  # shared with the decoding processes


@contextmanager
def ending_workers() -> Iterator[None]:
    """End the decoding processes with the block: else they ignore SIGTERM, and after an error Python would wait for them for
    ever."""
    before = set(multiprocessing.active_children())
    _ending.value = 0
    try:
        yield
    finally:
        _ending.value = 1
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.terminate()
        for process in left:
            process.join()


def _sent(batch: dict | VsslError):
    return batch if get_worker_info() is None or isinstance(batch, VsslError) else _Sent(batch)


class _Sent:
    """A batch that a worker sends. Its small tensors travel by value: to share the memory of one takes longer than to
    decode a frame, in both processes."""

    def __init__(self, batch: dict):
        self.batch = batch

    def __reduce__(self):
        return _arrived, (_each(self.batch, Tensor, Tensor.numpy),)


def _arrived(batch: dict) -> dict:
    return _each(batch, np.ndarray, torch.from_numpy)


def _quiet_worker(_: int) -> None:
    # a signal to the whole process group must not kill the workers before the main process has finished its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if _ending.value else None)


def to_device(batch, device: torch.device):
    """The same nested dict with every tensor on the device."""
    return _each(batch, Tensor, lambda tensor: tensor.to(device, non_blocking=True))


def _each(batch, kind: type, change: Callable):
    """The same nested dict with every value of that kind changed."""
    if isinstance(batch, dict):
        return {key: _each(value, kind, change) for key, value in batch.items()}
    return change(batch) if isinstance(batch, kind) else batch
