"""Smoothness: how alike are moments of a video, the further they lie apart? [tce fig. 3]"""

from __future__ import annotations

import os

import numpy as np
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
    """Mean cosine of two moments of a video by their distance in frames, and of moments of different videos.

    A moment is one cell of the last stage along time, averaged over space: a frame of a 2D backbone, 8 frames of a 3D one
    that halves time three times. Clips of 16 frames that do not overlap, of at most 200 videos (the split's test part,
    else all).
    """
    saved = protocol.open_checkpoint(checkpoint)
    source = protocol.open_shards(saved, shards, split)
    rows_of = (
        np.flatnonzero(source.part == data.TEST) if (source.part == data.TEST).any() else np.arange(len(source.videos))
    )
    chosen = rows_of[np.unique(np.linspace(0, len(rows_of) - 1, MOST_VIDEOS).astype(int))]
    clips = data.VideoViews(source, source.videos[chosen], whole_clips)
    if not len(clips):
        raise TrainerError(f"{source.dataset}: no video has 16 frames")
    rows = []
    for network, backbone in networks(saved).items():
        moments = None
        for index, stages in stage_outputs(backbone, clips, compute):
            stage, output = list(stages.items())[-1]
            values = F.normalize(output.float().mean((3, 4)), dim=1).transpose(1, 2).cpu().numpy()  # [B, T', C]
            if moments is None:
                moments = np.empty((len(clips), *values.shape[1:]), np.float32)
            moments[index] = values
        spacing = data.CLIP_LENGTH // moments.shape[1]
        inside, outside = by_distance(moments.reshape(-1, moments.shape[2]), np.repeat(clips.owner, moments.shape[1]))
        row = {"network": network, "stage": stage, "metric": "cosine"}
        distances = [step for step in range(1, len(inside)) if step * spacing <= FARTHEST and np.isfinite(inside[step])]
        rows += [{**row, "distance": step * spacing, "value": 100 * float(inside[step])} for step in distances]
        if np.isfinite(outside):
            rows.append({**row, "distance": "other video", "value": 100 * float(outside)})
    told = protocol.describe(
        saved,
        source,
        backbone,
        mode="100 x mean cosine of two moments by their distance in frames",
        views="clips of 16 frames, none overlapping",
        items=f"{len(clips)} clips of {len(chosen)} videos",
    )
    result = {"protocol": told, "rows": rows, "notes": []}
    protocol.write(result, saved.run, "smoothness")
    return result


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
