"""Baselines without a network: histograms of flow, motion boundaries and colours over a video and its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from trainer.inputs import OURS

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]  # luma uint8 [H, W] twice -> float32 [H, W, 2], (u, v) in pixels

_CELLS, _DIRECTIONS, _SHADES = 4, 8, 4  # per side of the frame; of flow; per colour
_PARTS = (1, 2, 4, 8)  # equal parts of the time, each with a separate histogram
VERSION = 1  # counts up with every change of the values


def of_times(frames: np.ndarray, kinds: Collection[str], flow: Flow, threads: int = 1) -> dict[str, np.ndarray]:
    """The histograms of each pair of adjacent frames ("colour", "still": of each frame) by kind, float64 [times, bins]; the
    flow is computed once for all kinds.

    frames: RGB uint8 [T, H, W, 3]; kinds: names of KINDS
    """
    made = {kind: {"flow": _directions, "boundary": _boundaries}[kind] for kind in kinds if kind not in OF_FRAMES}
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames] if made else []

    def of_pair(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
        field = flow(first, second)
        return [of(field) for of in made.values()]

    with ThreadPoolExecutor(max(1, threads)) as pool:
        pairs = [*pool.map(of_pair, luma[:-1], luma[1:])]
    found = {kind: np.array([pair[i] for pair in pairs]).reshape(-1, KINDS[kind]) for i, kind in enumerate(made)}
    return {kind: found[kind] if kind in found else np.stack([*map(OF_FRAMES[kind], frames)]) for kind in kinds}


def pyramid(times: np.ndarray) -> np.ndarray:
    """Histograms of times [n, bins] -> histograms of the whole, halves, quarters and eighths, float32 [15 x bins]: the
    square root of each bin's share of its part (Hellinger)."""
    bins = np.zeros((_PARTS[-1], times.shape[1]))
    for t, row in enumerate(times):
        bins[t * len(bins) // len(times)] += row
    return _roots(np.concatenate([bins.reshape(n, -1, bins.shape[1]).sum(1) for n in _PARTS]))


def _roots(parts: np.ndarray) -> np.ndarray:
    """Histograms [n, bins] -> the roots of their shares, float32 [n x bins]."""
    roots = np.sqrt(parts)
    return (roots / np.maximum(np.linalg.norm(roots, axis=-1, keepdims=True), 1e-12)).astype(np.float32).ravel()


def summary(times: np.ndarray, kind: str) -> np.ndarray:
    """What stands for the histograms of times [n, bins], float32 [values(kind)]: `pyramid`; of "still" the one in the middle."""
    return _roots(times[len(times) // 2][None]) if kind == "still" else pyramid(times)


def values(kind: str) -> int:
    """How many values a histogram has."""
    return KINDS[kind] * (1 if kind == "still" else sum(_PARTS))


def histogram(frames: np.ndarray, kind: str, flow: Flow) -> np.ndarray:
    """The histograms of a video, RGB uint8 [T, H, W, 3]: float32 [values(kind)], see `summary`."""
    return summary(of_times(frames, (kind,), flow)[kind], kind)


def _directions(field: np.ndarray) -> np.ndarray:
    """Histogram of 8 directions of vectors [H, W, 2], (x, y), weighted by magnitude, in a 4 x 4 grid of cells: float64
    [128]."""
    height, width = field.shape[:2]
    rows, columns = (np.arange(n) * _CELLS // n for n in (height, width))
    cell = (rows[:, None] * _CELLS + columns).ravel()
    u, v = field.reshape(-1, 2).T
    magnitude, angle = np.hypot(u, v), np.arctan2(-v, u) % (2 * np.pi)
    direction = (angle * _DIRECTIONS / (2 * np.pi)).astype(int) % _DIRECTIONS
    return np.bincount(cell * _DIRECTIONS + direction, magnitude, _CELLS**2 * _DIRECTIONS)


def _boundaries(flow: np.ndarray) -> np.ndarray:
    """Directions of the spatial derivatives (Prewitt) of u, and of v: float64 [256]. Constant flow, like the nearly
    constant flow of a moving camera, has none. Dalal, Triggs and Schmid, ECCV 2006."""
    return np.concatenate([_directions(_derivatives(component)) for component in np.moveaxis(flow, 2, 0)])


def _edges(frame: np.ndarray) -> np.ndarray:
    """Directions of the spatial derivatives (Prewitt) of luma: float64 [128]: what a frame shows without any motion, on the
    grid and with the directions of the flow. Dalal and Triggs, CVPR 2005."""
    return _directions(_derivatives(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)))


def _derivatives(component: np.ndarray) -> np.ndarray:
    """Of a picture [H, W] by x and y (Prewitt), [H, W, 2]."""
    part = np.pad(component, 1, "edge")
    columns, rows = part[:-2] + part[2:] + part[1:-1], part[:, :-2] + part[:, 2:] + part[:, 1:-1]
    return np.dstack([columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]]) / 6


def _colours(frame: np.ndarray) -> np.ndarray:
    """Number of pixels of each of 4 x 4 x 4 colours, float64 [64]."""
    shades = frame.reshape(-1, 3) // (256 // _SHADES)
    return np.bincount(shades @ np.array([_SHADES**2, _SHADES, 1]), minlength=_SHADES**3).astype(float)


OF_FRAMES = {"colour": _colours, "still": _edges}
KINDS = {"flow": _CELLS**2 * _DIRECTIONS, "boundary": 2 * _CELLS**2 * _DIRECTIONS}  # bins of each
KINDS |= {"colour": _SHADES**3, "still": _CELLS**2 * _DIRECTIONS}


class Histogram(nn.Module):
    """A histogram as a backbone: network input float32 [B, 3, T, S, S] -> one stage [B, d, 1, 1, 1], named after the
    kind, one of KINDS."""

    poolings = ("mean",)

    def __init__(self, kind: str, flow: Flow) -> None:
        super().__init__()
        self.kind, self.flow = kind, flow
        self.register_buffer("what", torch.tensor([*f"{kind} {VERSION}".encode()]))  # distinguishes cached features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pixels = OURS.pixels(x.permute(0, 2, 3, 4, 1).cpu().numpy())
        vectors = torch.from_numpy(np.stack([histogram(clip, self.kind, self.flow) for clip in pixels]))
        return {self.kind: vectors[:, :, None, None, None].to(x.device)}


def histograms(flow: Flow) -> Iterator[tuple[str, Histogram]]:
    """All kinds of histograms, by name."""
    return ((f"{kind} histogram", Histogram(kind, flow)) for kind in KINDS)
