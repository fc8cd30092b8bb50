"""From videos to the clips of evaluation, of whole frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.data.index import Shards
from trainer.data.keys import SHUFFLED
from trainer.inputs import OURS, Input


class Time(NamedTuple):
    """What is done to the order of a clip's frames: they are "shuffled" by a permutation that is a function of the seed, the id
    of the video and the clip's first frame, "reversed", or "still", the frame at T // 2 repeated."""

    kind: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}" if self.kind == "shuffled" else self.kind

    def of(self, frames: np.ndarray, id: str) -> np.ndarray:
        """The frames that are shown in place of those of a video's clips, int64 [clips, T] both."""
        if self.kind == "reversed":
            return frames[:, ::-1]
        if self.kind == "still":
            return np.broadcast_to(frames[:, frames.shape[1] // 2, None], frames.shape)
        key = SHUFFLED, self.seed, int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
        return np.stack([np.random.default_rng((*key, int(clip[0]))).permutation(clip) for clip in frames])


class VideoViews:
    """Clips of videos (int64 [n, 2]), of T frames as in the shards; the clips of a video are adjacent and in order.

    frames: (number of frames of a video, T) -> frames int64 [clips, T] of its clips
    input:  of the network, which may expect clips of another length or with gaps between frames
    time:   None for the frames in their order
    owner:  int64 [clips], index into `videos` of each clip
    """

    def __init__(
        self,
        shards: Shards,
        videos: np.ndarray,
        frames: Callable[[int, int], np.ndarray],
        input: Input = OURS,
        time: Time | None = None,
    ):
        self.shards, self.videos = shards, videos
        count, step = input.frames or shards.clip_length, input.stride
        lengths = [int(shards.readers[shard].arrays["videos/n_frames"][video]) for shard, video in videos]
        shown = [frames(length, step * (count - 1) + 1)[:, ::step] for length in lengths]
        if time is not None:
            ids = (shards.readers[shard].arrays["videos/id"][video] for shard, video in videos)
            shown = [time.of(clips, id) for clips, id in zip(shown, ids, strict=True)]
        self.owner = np.repeat(np.arange(len(videos)), [len(clips) for clips in shown])
        self.frames = np.concatenate(shown) if shown else np.empty((0, count), np.int64)

    def __len__(self) -> int:
        return len(self.owner)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch: "index" int64 [B], "clips" uint8 [B, T, H, W, 3]."""
        array = np.empty((len(indices), self.frames.shape[1], *self.shards.frame_size, 3), np.uint8)
        for target, index in zip(array, indices, strict=True):
            shard, video = self.videos[self.owner[index]]
            reader = self.shards.readers[shard]
            reader.frames(reader.arrays["videos/first_frame"][video] + self.frames[index], target)
        return {"index": torch.tensor(indices), "clips": torch.from_numpy(array)}


class TenCrops(VideoViews):
    """Ten crops of each clip, one after the other: upper left, upper right, lower left, lower right and centre, then
    these mirrored. `owner` and `frames` refer to clips."""

    def __len__(self) -> int:
        return 10 * len(self.owner)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """One batch: "index" int64 [B], of clip * 10 + crop, "clips" uint8 [B, T, S, S, 3]."""
        size = self.shards.config["crop"]
        bottom, right = (length - size for length in self.shards.frame_size)
        corners = (0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)
        wanted = np.array(indices)
        clips, of = np.unique(wanted // 10, return_inverse=True)  # decodes each clip once
        whole = super().batch(clips.tolist())["clips"]
        crops = [
            whole[clip, :, y : y + size, x : x + size].flip(2)
            if crop >= 5
            else whole[clip, :, y : y + size, x : x + size]
            for clip, crop in zip(of.tolist(), (wanted % 10).tolist(), strict=True)
            for y, x in [corners[crop % 5]]
        ]
        return {"index": torch.tensor(indices), "clips": torch.stack(crops)}


def spread_frames(n_frames: int, length: int, views: int = 10) -> np.ndarray:
    """Frames of `views` clips evenly spread over a video, int64 [views, length]: starts round(linspace(0, n_frames - length,
    views)); a video shorter than a clip is looped."""
    starts = np.rint(np.linspace(0, max(0, n_frames - length), views)).astype(np.int64)
    return (starts[:, None] + np.arange(length)) % n_frames


def sliding_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that overlap by half and fit, int64 [clips, length]; a video shorter than a clip gives one,
    which is looped."""
    starts = np.arange(0, max(1, n_frames - length + 1), length // 2)
    return (starts[:, None] + np.arange(length)) % n_frames


def adjacent_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that fit without overlap, int64 [clips, length]; a video shorter than a clip gives one,
    which is looped."""
    starts = np.arange(0, max(1, n_frames - length + 1), length)
    return (starts[:, None] + np.arange(length)) % n_frames
