"""Curriculum: how easily the block of the largest motion is found [thesis 3.2]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from labelgen.labels.kind import Arrays, Field, Kind, Labels, Settings
from labelgen.labels.patterns import MIN_MOTION, centre_crop, crop_grid

if TYPE_CHECKING:
    from labelgen.config import Config
    from labelgen.labels.clip import Clip


def curriculum_score(summed: np.ndarray) -> float:
    """max over u, v of (largest motion of a grid block) / (motion of the whole crop); larger is easier.

    summed: float32 [4, crop, crop], the clip's summed motion boundary M_u, M_v, in the centre crop.

    Returns 1/16 (even motion) .. 1 (motion in one block); components without motion do not count, NaN if there is none.
    """
    side = summed.shape[-1] // 4
    components = summed.astype(np.float64).reshape(2, 2, -1, summed.shape[-1])
    magnitude = np.hypot(components[:, 0], components[:, 1])
    blocks = magnitude.reshape(2, 4, side, 4, side).sum((2, 4)).reshape(2, 16)
    moving = blocks.max(1) >= MIN_MOTION * side**2
    return float(np.max(blocks.max(1)[moving] / blocks.sum(1)[moving], initial=0)) if moving.any() else float("nan")


def _of_clip(clip: Clip, config: Config) -> Labels:
    size = config.height, config.width, config.crop
    y, x = crop_grid(*size)[centre_crop(*size)]
    score = curriculum_score(clip.boundaries.sum(0)[:, y : y + config.crop, x : x + config.crop])
    return {"curriculum/score": np.float32(score)}


def _faults(arrays: Arrays, config: Settings) -> Iterator[tuple[str, bool]]:
    score = arrays["curriculum/score"]
    yield "curriculum/score", bool(((score < 1 / 16 - 1e-6) | (score > 1)).any())


def _lines(arrays: Arrays, config: Settings) -> Iterator[str]:
    score = arrays["curriculum/score"]
    if not np.isnan(score).all():
        quartiles = np.array2string(np.nanpercentile(score, [0, 25, 50, 75, 100]), precision=3)
        yield f"difficulty, quartiles {quartiles}, {np.isnan(score).sum()} clips without one"


CURRICULUM = Kind(
    name="curriculum",
    version=1,
    constants={"min_motion": MIN_MOTION},
    fields=(
        Field(
            "curriculum/score",
            np.float32,
            ("clips",),
            "share of the motion in one block, larger is easier; NaN without motion",
        ),
    ),
    of_clip=_of_clip,
    faults=_faults,
    lines=_lines,
    counts=lambda arrays: {"clips_without_motion": int(np.isnan(arrays["curriculum/score"]).sum())},
)
