"""Augmentation of whole batches on the device. Parameters are drawn per clip on the CPU and travel with the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.inputs import Input, constant

# The colour jitter is that of the public code of pace's authors; the thesis has no numbers.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.8, 0.8, 0.8, 0.2  # its ranges
JITTER_PROBABILITY = 0.8
_LUMA = (0.299, 0.587, 0.114)
_SECTORS = (5.0, 3.0, 1.0)  # of the hue, for R, G, B


def draw(rng: np.random.Generator, crop_grid: np.ndarray, frames: int, jitter: str) -> dict:
    """The view of one clip: `crop` (row of crop_grid), `corner` int64 [2] (y, x), `mirror` 0 or 1 with equal chance
    and, with jitter "frame" or "clip" and not "none", `jitter` float32 [frames, 4], see color_jitter."""
    row = int(rng.integers(len(crop_grid)))
    view = {"crop": row, "corner": crop_grid[row].astype(np.int64), "mirror": int(rng.integers(2))}
    if jitter != "none":
        draws = frames if jitter == "frame" else 1
        width = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
        factors = np.array([1, 1, 1, 0]) + rng.uniform(-width, width, (draws, 4))
        factors[rng.random(draws) >= JITTER_PROBABILITY] = 1, 1, 1, 0
        view["jitter"] = np.broadcast_to(factors, (frames, 4)).astype(np.float32)
    return view


def augment(clips: Tensor, view: dict[str, Tensor], input: Input) -> Tensor:
    """Crops uint8 [B, T, S, S, 3] and the batch of views drawn for them, on the CPU -> network input float32
    [B, 3, T, S, S], mirrored, jittered and normalised as the network expects it, where the crops are."""
    mirrored = view["mirror"].tolist()
    x = torch.stack([clip.flip(2) if flip else clip for clip, flip in zip(clips, mirrored, strict=True)])
    x = x.float().div_(255)
    if "jitter" in view:
        x = color_jitter(x, view["jitter"].to(x.device, non_blocking=True))
    return input.normalised(x).permute(0, 4, 1, 2, 3)  # a view that is already channels_last_3d


def centre(clips: Tensor, size: int, input: Input) -> Tensor:
    """uint8 [B, T, H, W, 3] -> network input float32 [B, 3, T, size, size] of the centre crop, for evaluation."""
    y, x = (clips.shape[2] - size) // 2, (clips.shape[3] - size) // 2
    return input.normalised(clips[:, :, y : y + size, x : x + size].float().div_(255)).permute(0, 4, 1, 2, 3)


def color_jitter(clips: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each frame, in this order.

    clips:   float [B, T, H, W, 3] in 0..1
    factors: float [B, T, 4]; the first three multiply (1 leaves as is): black, the frame's mean luma and each pixel's
             luma are what a factor of 0 gives; the fourth turns the hue by that part of a full turn.
    """
    brightness, contrast, saturation, hue = factors[:, :, None, None, None].unbind(-1)  # each [B, T, 1, 1, 1]
    x = (clips * brightness).clamp(0, 1)
    x = (contrast * x + (1 - contrast) * _luma(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    x = (saturation * x + (1 - saturation) * _luma(x)).clamp(0, 1)
    return _turn_hue(x, hue[..., 0])


def _luma(x: Tensor) -> Tensor:
    return (x * constant(_LUMA, x.device)).sum(-1, keepdim=True)


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    red, green, blue = x.unbind(-1)
    high = x.amax(-1)
    chroma = high - x.amin(-1)
    safe = chroma.clamp(min=1e-6)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sectors = (hue[..., None] + 6 * turn[..., None] + constant(_SECTORS, x.device)) % 6
    return high[..., None] - chroma[..., None] * torch.minimum(sectors, 4 - sectors).clamp(0, 1)
