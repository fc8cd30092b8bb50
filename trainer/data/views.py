"""Videos -> clips that evaluation measures, of whole frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.data.index import Shards
from trainer.inputs import OURS, Input


class VideoViews:
    """Clips of T frames, as long as those of the shards, of videos (int64 [n, 2]); the clips of a video are adjacent and in
    order.

    frames: (number of frames of the video, T) -> frames int64 [clips, T] of its clips
    input:  of the network, which may expect clips of another length, or with gaps between the frames
    owner:  int64 [clips], index into `videos` of each clip
    """

    def __init__(
        self, shards: Shards, videos: np.ndarray, frames: Callable[[int, int], np.ndarray], input: Input = OURS
    ):
        self.shards, self.videos = shards, videos
        count, step = input.frames or shards.clip_length, input.stride
        lengths = [int(shards.readers[shard].arrays["videos/n_frames"][video]) for shard, video in videos]
        shown = [frames(length, step * (count - 1) + 1)[:, ::step] for length in lengths]
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


def spread_frames(n_frames: int, length: int, views: int = 10) -> np.ndarray:
    """Frames of `views` clips evenly spread over a video, int64 [views, length]: starts round(linspace(0, n_frames - length,
    views)); a video shorter than a clip is played in a loop."""
    starts = np.rint(np.linspace(0, max(0, n_frames - length), views)).astype(np.int64)
    return (starts[:, None] + np.arange(length)) % n_frames


def sliding_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that overlap by half and fit, int64 [clips, length]; a video shorter than a clip gives one, played in
    a loop."""
    starts = np.arange(0, max(1, n_frames - length + 1), length // 2)
    return (starts[:, None] + np.arange(length)) % n_frames


def adjacent_frames(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that fit one after the other, int64 [clips, length]; a video shorter than a clip gives one, played in
    a loop."""
    starts = np.arange(0, max(1, n_frames - length + 1), length)
    return (starts[:, None] + np.arange(length)) % n_frames
