"""What label kinds get of a clip: its frames, flow and motion boundaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from labelgen.flow import find, luma
from labelgen.flow.backend import Backend
from labelgen.labels.boundaries import motion_boundaries

MAX_FLOW = 20  # pixels per frame, to which components are clipped
VERSION = 1  # counts up with every change of luma, clipping or boundaries that may change a label


@dataclass(frozen=True)
class Clip:
    """A clip from which labels are computed.

    Parameters
    ----------
    frames : uint8 [T, H, W, 3]
        RGB.
    flows : sequence of float32 [H, W, 2]
        T - 1 flows, (u, v) in pixels per frame, see `clipped_flow`.
    boundaries : float32 [T - 1, 4, H, W]
        Derivatives of the flows, see `motion_boundaries`.
    """

    frames: np.ndarray
    flows: Sequence[np.ndarray]
    boundaries: np.ndarray

    @classmethod
    def of(cls, frames: Sequence[np.ndarray], flows: Sequence[np.ndarray]) -> Clip:
        """A clip made of its frames, each RGB uint8 [H, W, 3], and its flows."""
        # Filled one by one: np.stack takes twice the memory, which malloc returns to the system and faults in again, 3 ms.
        boundaries = np.empty((len(flows), 4, *frames[0].shape[:2]), np.float32)
        for i, field in enumerate(flows):
            boundaries[i] = motion_boundaries(field)
        return cls(np.stack(frames), flows, boundaries)


def clipped_flow(first: Any, second: Any, backend: Backend) -> np.ndarray:
    """Flow between two luma images uint8 [H, W] that the backend has prepared, its components clipped to MAX_FLOW; float32
    [H, W, 2]."""
    return np.clip(backend.of_prepared(first, second), -MAX_FLOW, MAX_FLOW)


def clip_of_frames(frames: Sequence[np.ndarray] | np.ndarray, backend: str) -> Clip:
    """The clip of RGB frames uint8 [T, H, W, 3], with its flow computed by this backend."""
    found = find(backend)
    images = (found.prepare(luma(frame)) for frame in frames)
    return Clip.of(list(frames), [clipped_flow(*pair, found) for pair in pairwise(images)])


def clip_boundaries(frames: Sequence[np.ndarray] | np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Magnitudes of the summed motion boundaries M_u and M_v of RGB frames uint8 [T, H, W, 3], float32 [2, H, W].
    config: the configuration of the frames' shard, which names the flow backend."""
    summed = clip_of_frames(frames, config["flow"]["backend"]).boundaries.sum(0)
    return np.hypot(summed[0::2], summed[1::2])
