"""Curriculum: how easily the block of the largest motion is told [thesis 3.2]."""

from __future__ import annotations

import numpy as np

from labelgen.motion import MIN_MOTION


def curriculum_score(summed: np.ndarray) -> float:
    """max over u, v of (motion of the grid block that moves most) / (motion of the whole crop); larger is easier.

    summed: float32 [4, crop, crop], the clip's summed motion boundary M_u, M_v, in the centre crop.

    Returns 1/16 (motion everywhere) .. 1 (in one block); a component without motion does not count, NaN without any.
    """
    side = summed.shape[-1] // 4
    components = summed.astype(np.float64).reshape(2, 2, -1, summed.shape[-1])
    magnitude = np.hypot(components[:, 0], components[:, 1])
    blocks = magnitude.reshape(2, 4, side, 4, side).sum((2, 4)).reshape(2, 16)
    moving = blocks.max(1) >= MIN_MOTION * side**2
    return float(np.max(blocks.max(1)[moving] / blocks.sum(1)[moving], initial=0)) if moving.any() else float("nan")
