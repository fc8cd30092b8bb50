"""Moments of videos, and how alike they are by their distance."""

from __future__ import annotations

import numpy as np
from torch import nn
from torch.nn import functional as F

from trainer import data
from trainer.evaluate.features import Compute, stage_outputs


def last_stage_moments(
    backbone: nn.Module, source: data.Shards, videos: np.ndarray, compute: Compute
) -> tuple[str, int, np.ndarray, np.ndarray]:
    """Name of the last stage, frames from one moment to the next, and the moments: L2-normalised float32 [n, d], a video's
    adjacent and in order, and the video of each int64 [n]."""
    one = data.VideoViews(source, videos[:1], lambda *lengths: whole_clips(*lengths)[:1])
    _, stages = next(iter(stage_outputs(backbone, one, Compute(1, 0, compute.device))))
    stage, last = list(stages.items())[-1]
    frames = last.shape[2] == source.clip_length
    clips = data.VideoViews(source, videos, whole_clips if frames else data.sliding_frames)
    moments = np.empty((len(clips), last.shape[2] if frames else 1, last.shape[1]), np.float32)
    for index, stages in stage_outputs(backbone, clips, compute):
        x = stages[stage].float().mean((3, 4))  # [B, C, T']
        moments[index] = F.normalize(x if frames else x.mean(2, keepdim=True), dim=1).transpose(1, 2).cpu().numpy()
    owner = np.repeat(clips.owner, moments.shape[1])
    return stage, 1 if frames else source.clip_length // 2, moments.reshape(len(owner), -1), owner


def whole_clips(n_frames: int, length: int) -> np.ndarray:
    """Frames of all clips that follow one another, int64 [clips, length]; none of a shorter video."""
    starts = np.arange(0, n_frames - length + 1, length)
    return starts[:, None] + np.arange(length)


def by_distance(moments: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean cosine of moments (L2-normalised float32 [n, d], a video's adjacent and in order; owner int64 [n]) of one video
    by the number of steps between them, float64 [longest], NaN where there is no pair; and of different videos."""
    videos = np.split(moments, np.flatnonzero(np.diff(owner)) + 1)
    longest = max(map(len, videos))
    sums, counts = np.zeros(longest), np.zeros(longest)
    for video in videos:
        products = (video @ video.T).astype(np.float64)
        for step in range(len(video)):
            sums[step] += np.trace(products, step)
            counts[step] += len(video) - step
    total = moments.sum(0, dtype=np.float64)
    inner = sum(float(video.sum(0, dtype=np.float64) @ video.sum(0, dtype=np.float64)) for video in videos)
    pairs = len(moments) ** 2 - sum(len(video) ** 2 for video in videos)
    outside = (float(total @ total) - inner) / pairs if pairs else np.nan
    return np.divide(sums, counts, out=np.full(longest, np.nan), where=counts > 0), outside
