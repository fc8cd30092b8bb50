"""What a flow backend declares, and what all of them ask of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

SMALLEST = 16  # pixels: side of the images, and of the coarsest pyramid level, at least


@dataclass(frozen=True)
class Backend:
    """One way to compute optical flow.

    function:   (first, second) uint8 luma [H, W] -> float32 [H, W, 2], (u, v) in pixels, see `labelgen.flow.flow`
    version:    counts up with every change that may change a flow; part of the configuration of the shards
    parameters: what it computes with, by name; part of the configuration, too
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    version: int
    parameters: Mapping[str, float]


def checked_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two images as arrays. Raises ValueError if they are not two luma images of one size."""
    first, second = np.asarray(first), np.asarray(second)
    for name, image in (("first", first), ("second", second)):
        if image.ndim != 2 or min(image.shape) < SMALLEST:
            expected = f"luma [H, W] of at least {SMALLEST} x {SMALLEST} pixels"
            raise ValueError(f"{name} has shape {image.shape}; expected {expected}")
        if image.dtype.kind not in "uif":
            raise ValueError(f"{name} has dtype {image.dtype}; expected uint8 or floating point")
    if first.shape != second.shape:
        raise ValueError(f"images differ in shape: first {first.shape}, second {second.shape}; expected the same")
    return first, second
