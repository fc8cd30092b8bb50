"""Augmentation of whole batches on the device. Parameters are drawn per clip on the CPU and travel with the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.inputs import Input

# The colour jitter is that of the public code of pace's authors, as the thesis has no numbers, and of SimCLR and CVRL.
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.8, 0.8, 0.8, 0.2  # its ranges, at strength 1
JITTER_PROBABILITY = 0.8
CROP_AREA = 0.2, 1.0  # share of the frame [T. Han et al., CoCLR, NeurIPS 2020]
ASPECT = 3 / 4, 4 / 3  # width / height of the box, see random_box
GREY_PROBABILITY, BLUR_PROBABILITY, SIGMA = 0.2, 0.5, (0.1, 2.0)  # of SimCLR; sigma in pixels of the crop
_TRIES = 10
_LUMA = (0.299, 0.587, 0.114)
_SECTORS = (5.0, 3.0, 1.0)  # of the hue, for R, G, B


def draw(
    rng: np.random.Generator,
    crop_grid: np.ndarray,
    frames: int,
    jitter: str,
    frame_size: tuple[int, int] = (0, 0),
    area: Sequence[float] = CROP_AREA,
    strength: float = 1.0,
) -> dict:
    """The view of one clip: `crop` (row of crop_grid), `corner` int64 [2] (y, x), `mirror` 0 or 1 with equal chance and,
    unless jitter is "none", `jitter` float32 [frames, 4], see color_jitter: drawn for each frame with "frame", else once.

    With jitter "contrast" it has, instead of a crop of the grid, a `box` float32 [4] (y, x, height, width) in the whole frame,
    see random_box; clips are grey (saturation 0) with probability .2, and `sigma` float32 is the standard deviation of a
    Gaussian blur in pixels of the crop, 0 for half of the clips. [T. Chen et al., SimCLR, ICML 2020, appendix A]

    frame_size: height and width of the stored frames; area: see random_box; strength: multiplies the ranges of the jitter
    """
    contrast = jitter == "contrast"
    if contrast:
        view = {"box": random_box(rng, *frame_size, area), "mirror": int(rng.integers(2))}
    else:
        row = int(rng.integers(len(crop_grid)))
        view = {"crop": row, "corner": crop_grid[row].astype(np.int64), "mirror": int(rng.integers(2))}
    if jitter != "none":
        draws = frames if jitter == "frame" else 1
        width = strength * np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
        factors = np.array([1, 1, 1, 0]) + rng.uniform(-width, width, (draws, 4))
        factors[rng.random(draws) >= JITTER_PROBABILITY] = 1, 1, 1, 0
        if contrast:
            grey, blurred = rng.random(2) < (GREY_PROBABILITY, BLUR_PROBABILITY)
            factors[:, 2] *= not grey
            view["sigma"] = np.float32(blurred * rng.uniform(*SIGMA))
        view["jitter"] = np.broadcast_to(factors, (frames, 4)).astype(np.float32)
    return view


def random_box(rng: np.random.Generator, height: int, width: int, area: Sequence[float]) -> np.ndarray:
    """A box of whole pixels inside a frame, float32 [4] (y, x, height, width), drawn as in torchvision's
    RandomResizedCrop: its share of the frame's area is uniform in `area`, and the logarithm of width / height uniform
    between those of ASPECT; if none of ten such boxes fits, the largest central one with an allowed ratio of sides."""
    (least, most), (narrow, wide) = area, np.log(ASPECT)
    shares, logs = rng.uniform(least, most, _TRIES), rng.uniform(narrow, wide, _TRIES)
    sides = np.rint(np.sqrt(height * width * shares[:, None] * np.exp(logs[:, None] * (-1, 1)))).astype(np.int64)
    fits = (sides >= 1).all(1) & (sides <= (height, width)).all(1)
    if fits.any():
        h, w = sides[fits.argmax()]
        y, x = rng.integers((height - h + 1, width - w + 1))
    else:
        h, w = min(height, round(width / ASPECT[0])), min(width, round(height * ASPECT[1]))
        y, x = (height - h) // 2, (width - w) // 2
    return np.array([y, x, h, w], np.float32)


def augment(clips: Tensor, view: dict[str, Tensor], input: Input, size: int) -> Tensor:
    """Clips uint8 [B, T, H, W, 3] and the batch of views drawn for them, on the CPU -> network input float32
    [B, 3, T, size, size], mirrored, jittered and normalised as the network expects it, on the device of the clips.
    Clips are crops of size x size pixels or, if the views have a box, whole frames."""
    if "box" in view:
        box, mirror, sigma = (view[name].to(clips.device, non_blocking=True) for name in ("box", "mirror", "sigma"))
        x = resampled(clips, box, mirror, sigma, size)
    else:
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


def resampled(clips: Tensor, box: Tensor, mirror: Tensor, sigma: Tensor, size: int) -> Tensor:
    """The box of each clip, resized, mirrored and blurred: uint8 [B, T, H, W, 3] -> float32 [B, T, size, size, 3] in 0..1.

    box: float32 [B, 4] (y, x, height, width); mirror: int64 [B]; sigma: float32 [B], in pixels of the result, 0: not blurred.
    All three are linear and separable: the rows and the columns of each clip are multiplied by one matrix each.
    """
    rows, columns = (_weights(box[:, axis], box[:, 2 + axis], sigma, clips.shape[2 + axis], size) for axis in range(2))
    columns = torch.where(mirror[:, None, None] > 0, columns.flip(1), columns)
    planes = clips.permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    x = planes.flatten(1, 3) @ columns.transpose(1, 2)  # [B, T 3 H, size]
    x = rows[:, None, None] @ x.view(*planes.shape[:-1], size)
    return x.div_(255).permute(0, 1, 3, 4, 2)


def _weights(begin: Tensor, length: Tensor, sigma: Tensor, pixels: int, size: int) -> Tensor:
    """Weight of each of `pixels` in a line for each of `size` places that divide the pixels begin..begin + length, float32 [B,
    size, pixels]: linear interpolation, by a triangle as wide as two places if these are wider than a pixel, which is the
    antialiasing of PIL and PyTorch; then a Gaussian over the places. Pixels outside of the box have no weight."""
    begin, length, sigma = (each[:, None, None] for each in (begin, length, sigma))
    places, at = (torch.arange(n, device=begin.device, dtype=torch.float32) for n in (size, pixels))
    step = length / size
    distance = (at + 0.5 - begin - (places[:, None] + 0.5) * step).abs()
    inside = (at >= begin) & (at < begin + length)
    weights = (1 - distance / step.clamp(min=1)).clamp(min=0) * inside
    blur = torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma.clamp(min=1e-3) ** 2))
    blur = F.threshold(blur, 1e-6, 0)  # multiplying numbers near 0 takes ten times as long
    return _sums_of_one(blur) @ _sums_of_one(weights)


def _sums_of_one(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def color_jitter(clips: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of each frame, in this order.

    clips:   float [B, T, H, W, 3] in 0..1
    factors: float [B, T, 4]; the first three multiply (1: no change), where a factor of 0 gives black, the frame's mean
    luma and each pixel's luma; the fourth rotates the hue by this part of a full turn.
    """
    brightness, contrast, saturation, hue = factors[:, :, None, None, None].unbind(-1)  # each [B, T, 1, 1, 1]
    x = (clips * brightness).clamp_(0, 1)  # in place from here on: memory takes most of the time
    grey = _luma(x).mean((2, 3), keepdim=True)
    x = x.mul_(contrast).add_((1 - contrast) * grey).clamp_(0, 1)
    grey = _luma(x)
    x = x.mul_(saturation).add_(grey.mul_(1 - saturation)).clamp_(0, 1)
    return _turn_hue(x, hue[..., 0])


def _luma(x: Tensor) -> Tensor:
    red, green, blue = (channel * weight for channel, weight in zip(x.unbind(-1), _LUMA, strict=True))
    return red.add_(green).add_(blue)[..., None]


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    red, green, blue = x.unbind(-1)
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=1e-6)
    hue = (red - green).div_(safe).add_(4)  # in sixths of a turn; lerp selects, faster than where
    hue.lerp_((blue - red).div_(safe).add_(2), (high == green).to(x.dtype))
    hue.lerp_((green - blue).div_(safe), (high == red).to(x.dtype))
    hue += 6 * turn
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for channel, sector in zip(out.unbind(-1), _SECTORS, strict=True):
        place = (hue + sector).remainder_(6)
        torch.sub(high, torch.minimum(place, 4 - place).clamp_(0, 1).mul_(chroma), out=channel)
    return out
