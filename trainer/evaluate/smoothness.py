"""Smoothness: how alike are moments of a video, the further they lie apart? [tce fig. 3]"""

from __future__ import annotations

import os

import numpy as np
from torch import nn
from torch.nn import functional as F

from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate import protocol
from trainer.evaluate.features import COMPUTE, Compute, networks, stage_outputs

FARTHEST = 128  # frames
MOST_VIDEOS = 200  # evenly spread ones are taken of more


def smoothness(
    shards: str | os.PathLike = "out",
    checkpoint: str | os.PathLike | None = None,
    split: str | int | None = None,
    compute: Compute = COMPUTE,
) -> dict:
    """Mean cosine of two moments by their distance in frames, and of moments of different videos.

    A moment is the last stage averaged over space: of a 2D backbone, which leaves the time axis alone, each frame; of a 3D
    one each clip of 16 frames, averaged over time, the clips 8 frames apart (cells of one clip are no moments: those near
    its ends have seen padding). Of at most 200 videos of 16 frames or more (the split's test part, else all).
    """
    saved = protocol.open_checkpoint(checkpoint)
    source = protocol.open_shards(saved, shards, split)
    lengths = np.array([source.readers[shard].arrays["videos/n_frames"][video] for shard, video in source.videos])
    tested = source.part == data.TEST
    asked = np.flatnonzero((lengths >= data.CLIP_LENGTH) & (tested if tested.any() else True))
    if not len(asked):
        raise TrainerError(f"{source.dataset}: no video has 16 frames")
    videos = source.videos[asked[np.unique(np.linspace(0, len(asked) - 1, MOST_VIDEOS).astype(int))]]
    rows = []
    for network, backbone in networks(saved).items():
        stage, spacing, moments, owner = _moments(backbone, source, videos, compute)
        inside, outside = by_distance(moments, owner)
        row = {"network": network, "stage": stage, "metric": "cosine"}
        distances = [step for step in range(1, len(inside)) if step * spacing <= FARTHEST and np.isfinite(inside[step])]
        rows += [{**row, "distance": step * spacing, "value": 100 * float(inside[step])} for step in distances]
        if np.isfinite(outside):
            rows.append({**row, "distance": "other video", "value": 100 * float(outside)})
    over, moment = "space and time", f"a clip of 16 frames, one every {spacing} frames"
    if spacing == 1:
        over, moment = "space", "a frame"
    told = protocol.describe(
        saved,
        source,
        backbone,
        mode="100 x mean cosine of two moments of a video by the frames from the first of one to the first of the other",
        views=f"a moment is {stage}, mean over {over}, of {moment}",
        items=f"{len(moments)} moments of {len(videos)} videos",
    )
    result = {"protocol": told, "rows": rows, "notes": []}
    protocol.write(result, saved.run, "smoothness")
    return result


def _moments(
    backbone: nn.Module, source: data.Shards, videos: np.ndarray, compute: Compute
) -> tuple[str, int, np.ndarray, np.ndarray]:
    """Name of the last stage, frames from one moment to the next, and the moments: L2-normalised float32 [n, d], a video's
    adjacent and in order, and the video of each int64 [n]."""
    one = data.VideoViews(source, videos[:1], lambda n: whole_clips(n)[:1])
    _, stages = next(iter(stage_outputs(backbone, one, Compute(1, 0, compute.device))))
    stage, last = list(stages.items())[-1]
    frames = last.shape[2] == data.CLIP_LENGTH
    clips = data.VideoViews(source, videos, whole_clips if frames else data.sliding_frames)
    moments = np.empty((len(clips), last.shape[2] if frames else 1, last.shape[1]), np.float32)
    for index, stages in stage_outputs(backbone, clips, compute):
        x = stages[stage].float().mean((3, 4))  # [B, C, T']
        moments[index] = F.normalize(x if frames else x.mean(2, keepdim=True), dim=1).transpose(1, 2).cpu().numpy()
    owner = np.repeat(clips.owner, moments.shape[1])
    return stage, 1 if frames else 8, moments.reshape(len(owner), -1), owner


def whole_clips(n_frames: int) -> np.ndarray:
    """Frames of all clips of 16 frames that follow one another, int64 [clips, 16]; none of a shorter video."""
    starts = np.arange(0, n_frames - data.CLIP_LENGTH + 1, data.CLIP_LENGTH)
    return starts[:, None] + np.arange(data.CLIP_LENGTH)


def by_distance(moments: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean cosine of moments (L2-normalised float32 [n, d], a video's adjacent and in order; owner int64 [n]) of one video
    by the number of steps between them, float64 [longest], NaN where there is no pair; and of different videos."""
    videos = np.split(moments, np.flatnonzero(np.diff(owner)) + 1)
    longest = max(map(len, videos))
    sums, counts = np.zeros(longest), np.zeros(longest)
    for own in videos:
        products = (own @ own.T).astype(np.float64)
        for step in range(len(own)):
            sums[step] += np.trace(products, step)
            counts[step] += len(own) - step
    total = moments.sum(0, dtype=np.float64)
    inner = sum(float(own.sum(0, dtype=np.float64) @ own.sum(0, dtype=np.float64)) for own in videos)
    pairs = len(moments) ** 2 - sum(len(own) ** 2 for own in videos)
    outside = (float(total @ total) - inner) / pairs if pairs else np.nan
    return np.divide(sums, counts, out=np.full(longest, np.nan), where=counts > 0), outside


def format_table(result: dict) -> str:
    """The result of `smoothness` for the screen."""
    lines = protocol.header(result, "smoothness")
    return "\n".join([*lines, *protocol.table(result["rows"], ("network", "stage"), ("distance",))])
