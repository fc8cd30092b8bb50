"""Attention maps of clips, and sheets that show them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor, nn

from labelgen.shards import VideoNames
from labelgen.texts import draw
from trainer import data
from trainer.errors import SettingError
from trainer.evaluate.features import Compute, stage_outputs

_TILE = 224  # pixels: crops are enlarged to this width
_GAP = 6


def choose_videos(source: data.Shards, names: Sequence[str], count: int, seed: int) -> list[int]:
    """Rows of the videos of these names, see VideoNames; where no name is given, of `count` random ones of the split's test
    part, or of all where it has none. Raises ShardError for a name that no video has, or several."""
    ids = source.text("videos/id")
    if names:
        return VideoNames(ids).rows(names, source.dataset)
    test = np.flatnonzero(source.part == data.TEST)
    rows = test.tolist() if len(test) else range(len(ids))
    return sorted(random.Random(seed).sample(sorted(rows, key=ids.__getitem__), min(count, len(rows))))


def middle_clip(n_frames: int, length: int, pace: int = 1) -> np.ndarray:
    """Frames of the clip in the middle of a video, `pace` apart, int64 [1, length]; a video shorter than that is played in
    a loop."""
    span = pace * (length - 1) + 1
    return (max(0, n_frames - span) // 2 + pace * np.arange(length))[None] % n_frames


def stage_maps(
    backbone: nn.Module, clips: data.VideoViews, compute: Compute, stage: str | None
) -> tuple[str, np.ndarray]:
    """Name of the stage, None for the last, and its attention map of every clip, float32 [clips, h, w]. Raises TrainerError for
    a stage that the backbone does not have."""
    maps: dict[int, np.ndarray] = {}
    for index, stages in stage_outputs(backbone, clips, compute):
        stage = stage or [*stages][-1]
        if stage not in stages:
            raise SettingError(f"no stage {stage!r}: this backbone has {', '.join(stages)}")
        for i, one in zip(index, attention_map(stages[stage]).cpu().numpy(), strict=True):
            maps[i] = one
    return stage, np.stack([maps[i] for i in range(len(clips))])


def attention_map(stage: Tensor) -> Tensor:
    """Features [B, C, T, H, W] -> float32 [B, H, W]: the squared sum of absolute activations over channels, mean over time,
    relative to the largest of each map [Zagoruyko and Komodakis, ICLR 2017, activation-based attention]."""
    maps = stage.float().abs().sum(1).square().mean(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-30)


def correlation(attention: np.ndarray, moving: np.ndarray) -> float | None:
    """100 x Pearson correlation of a map's cells [h, w] with the mean of |M_u| + |M_v| (`moving` [H, W]) over each cell's
    part of the crop; None where one of them is constant."""
    height, width = attention.shape
    cells = cv2.resize(moving.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    if attention.std() == 0 or cells.std() == 0:
        return None
    return 100 * float(np.corrcoef(attention.ravel(), cells.ravel())[0, 1])


def overlay(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The map (float32 [h, w], 0 to 1), enlarged bilinearly, in colour over the grey frame uint8 [H, W, 3]."""
    height, width = frame.shape[:2]
    enlarged = cv2.resize(attention, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    color = cv2.applyColorMap((255 * enlarged).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None]
    return np.clip(0.45 * grey + 0.75 * color, 0, 255).astype(np.uint8)


def crop(picture: np.ndarray, size: int) -> np.ndarray:
    """The centre of a picture [H, W, ...], [size, size, ...]."""
    y, x = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[y : y + size, x : x + size]


def grey(magnitude: np.ndarray) -> np.ndarray:
    """Magnitudes float32 [H, W] as a grey picture, uint8 [H, W, 3], white from the 99.5th percentile on."""
    scaled = np.clip(magnitude / max(float(np.percentile(magnitude, 99.5)), 1e-3) * 255, 0, 255)
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, -1)


def sheet(title: str, tiles: dict[str, np.ndarray]) -> np.ndarray:
    """Tiles uint8 [size, size, 3] side by side under their titles, RGB uint8."""
    page = np.full((2 * 20 + _TILE, len(tiles) * (_TILE + _GAP) - _GAP, 3), 255, np.uint8)
    draw(page, title, 2, 14, 0.45)
    for i, (name, tile) in enumerate(tiles.items()):
        x = i * (_TILE + _GAP)
        page[40:, x : x + _TILE] = cv2.resize(tile, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        draw(page, name, x + 2, 34, 0.45)
    return page


def tiles_of(page: np.ndarray, count: int) -> list[np.ndarray]:
    """The tiles of a `sheet` of so many, uint8 [_TILE, _TILE, 3] each; none where the picture is of another size."""
    if page.shape[:2] != (2 * 20 + _TILE, count * (_TILE + _GAP) - _GAP):
        return []
    return [page[40:, i * (_TILE + _GAP) :][:, :_TILE] for i in range(count)]
