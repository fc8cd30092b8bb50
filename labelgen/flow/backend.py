"""The declaration of a flow backend, and the checks of images that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST = 16  # pixels, the smallest side of images and of the coarsest pyramid level


@dataclass(frozen=True)
class Backend:
    """One way to compute optical flow.

    function:   (first, second) uint8 luma [H, W] -> float32 [H, W, 2], (u, v) in pixels, see `labelgen.flow.flow`
    prepare, between: the same in two steps, function(first, second) = between(prepare(first), prepare(second)): the
    work per image of a video, and the work per pair; without them all work is per pair
    version:    counts up with every change that may change a flow; part of the configuration of the shards
    parameters: of the computation, by name; part of the configuration, too
    """

    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    version: int
    parameters: Mapping[str, float]
    prepare: Callable[[np.ndarray], Any] = lambda image: image
    between: Callable[[Any, Any], np.ndarray] | None = None

    def of_prepared(self, first: Any, second: Any) -> np.ndarray:
        """The flow between two images that `prepare` has prepared."""
        return (self.between or self.function)(first, second)


def checked(name: str, image: np.ndarray) -> np.ndarray:
    """An image as an array. Raises ValueError if it is not a luma image."""
    image = np.asarray(image)
    if image.ndim != 2 or min(image.shape) < SMALLEST:
        expected = f"luma [H, W] of at least {SMALLEST} x {SMALLEST} pixels"
        raise ValueError(f"{name} has shape {image.shape}; expected {expected}")
    if image.dtype.kind not in "uif":
        raise ValueError(f"{name} has dtype {image.dtype}; expected uint8 or floating point")
    return image


def checked_pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two images as arrays. Raises ValueError if they are not two luma images of one size."""
    first, second = checked("first", first), checked("second", second)
    if first.shape != second.shape:
        raise ValueError(f"images differ in shape: first {first.shape}, second {second.shape}; expected the same")
    return first, second
