"""Features without a network, which a network must beat: histograms of optical flow and of colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from trainer.augment import MEAN, STD
from trainer.evaluate.features import normalised

_CELLS, _DIRECTIONS = 4, 8  # of the histogram of flow: per side, and bins
_SEGMENTS = (1, 2, 4, 8)  # equal parts of a video, each with a histogram of its own
_SHADES = 8  # of the histogram of colour: bins per channel


def flow_histogram(frames: np.ndarray, flow: Callable) -> np.ndarray:
    """What a user could do without a network: frames uint8 [T, H, W, 3] -> float32 [15 x 4 x 4 x 8].

    For the video, its halves, quarters and eighths, and each cell of a 4 x 4 grid over the frame: 8 directions of the flow,
    weighted by its magnitude; the root of each, relative to the whole part of the video (Hellinger). flow: luma uint8 [H, W]
    twice -> float32 [H, W, 2].
    """
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = luma[0].shape
    rows, columns = (np.arange(n) * _CELLS // n for n in (height, width))
    cell = (rows[:, None] * _CELLS + columns).ravel()
    out = np.zeros((_SEGMENTS[-1], _CELLS**2 * _DIRECTIONS))
    steps = max(1, len(luma) - 1)
    for t, (first, second) in enumerate(pairwise(luma)):
        u, v = flow(first, second).reshape(-1, 2).T
        magnitude, angle = np.hypot(u, v), np.arctan2(-v, u) % (2 * np.pi)
        direction = (angle * _DIRECTIONS / (2 * np.pi)).astype(int) % _DIRECTIONS
        out[t * len(out) // steps] += np.bincount(cell * _DIRECTIONS + direction, magnitude, out.shape[1])
    parts = np.concatenate([out.reshape(n, -1, out.shape[1]).sum(1) for n in _SEGMENTS])
    return normalised(np.sqrt(parts)).astype(np.float32).ravel()


def colour_histogram(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] -> float32 [8 x 8 x 8]: the root of the share of the pixels of each colour (Hellinger), eight
    shades of red, green and blue."""
    red, green, blue = np.moveaxis(frames // (256 // _SHADES), -1, 0).astype(np.int64)
    counts = np.bincount(((red * _SHADES + green) * _SHADES + blue).ravel(), minlength=_SHADES**3)
    return np.sqrt(counts / red.size).astype(np.float32)


class Histogram(nn.Module):
    """A histogram in the place of a backbone: network input float32 [B, 3, T, S, S] -> one stage [B, d, 1, 1, 1] of that name.

    of: pixels uint8 [T, S, S, 3] -> float32 [d]
    """

    poolings = ("mean",)

    def __init__(self, name: str, of: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.name, self.of = name, of
        self.register_buffer("what", torch.tensor([*f"{name} 1".encode()]))  # kept features are told apart by it

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pixels = (255 * (x * STD + MEAN)).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).cpu().numpy()
        vectors = torch.from_numpy(np.stack([self.of(clip) for clip in pixels]))
        return {self.name: vectors[:, :, None, None, None].to(x.device)}


def histograms(flow: Callable | None) -> Iterator[tuple[str, Histogram]]:
    """The histograms of colour and, given a function of flow (see `flow_histogram`), of flow, by name."""
    yield "colour histogram", Histogram("colour", colour_histogram)
    if flow is not None:
        yield "flow histogram", Histogram("flow", lambda frames: flow_histogram(frames, flow))
