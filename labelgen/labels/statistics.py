"""Motion and appearance statistics of each crop of a clip: 14 and 13 ids [thesis 2.2.2, 2.2.3]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from labelgen.labels.kind import Arrays, Field, Kind, Labels, Settings, histogram
from labelgen.labels.patterns import BLOCKS, MIN_MOTION, crop_grid

if TYPE_CHECKING:
    from labelgen.config import Config
    from labelgen.labels.clip import Clip

PATTERNS = ("grid", "rings", "triangles")
MOTION_NAMES = [f"{name} {pattern}" for pattern in PATTERNS for name in ("p_u", "o_u", "p_v", "o_v")] + ["I_u", "I_v"]
APPEARANCE_NAMES = [f"{name} {pattern}" for pattern in PATTERNS for name in ("p_l", "c_l", "p_s", "c_s")] + ["C"]
_SIZES = [size for blocks in BLOCKS for size in (blocks, 8, blocks, 8)]


def motion_sizes(config: Settings) -> np.ndarray:
    """How many ids each of the 14 motion labels has, int64 [14]."""
    return np.array([*_SIZES, config["clip_length"] - 1, config["clip_length"] - 1])


def appearance_sizes(config: Settings) -> np.ndarray:
    """How many ids each of the 13 appearance labels has, int64 [13]."""
    return np.array([*_SIZES, 8])


def _of_clip(clip: Clip, config: Config) -> Labels:
    # not above: reading a shard imports this file, and needs no Numba
    from labelgen.labels.appearance import appearance_statistics
    from labelgen.labels.motion import motion_statistics

    corners = crop_grid(config.height, config.width, config.crop)
    motion, valid = motion_statistics(clip.boundaries, corners, config.crop)
    appearance = appearance_statistics(clip.frames, corners, config.crop)
    return {"statistics/motion": motion, "statistics/appearance": appearance, "statistics/valid": valid}


def _lines(arrays: Arrays, config: Settings) -> Iterator[str]:
    motion, valid, appearance = (arrays[f"statistics/{name}"] for name in ("motion", "valid", "appearance"))
    for label, (name, size) in enumerate(zip(MOTION_NAMES, motion_sizes(config), strict=True)):
        yield histogram(name, motion[..., label][valid[..., label] > 0], size)
    for label, (name, size) in enumerate(zip(APPEARANCE_NAMES, appearance_sizes(config), strict=True)):
        yield histogram(name, appearance[..., label].ravel(), size)


_CROPS = ("clips", "crops", 2)  # the 2 is plain, mirrored
_MOTION = "`p_u o_u p_v o_v` of patterns 1, 2, 3, then `I_u I_v`; axis 2: plain, mirrored"
_APPEARANCE = "`p_l c_l p_s c_s` of patterns 1, 2, 3, then `C`"
_VALID = "0 where the component hardly moves, so that the motion label is meaningless"

STATISTICS = Kind(
    name="statistics",
    version=1,
    constants={"min_motion": MIN_MOTION},
    fields=(
        Field("statistics/motion", np.uint8, (*_CROPS, 14), _MOTION, motion_sizes, in_file=True),
        Field("statistics/appearance", np.uint8, (*_CROPS, 13), _APPEARANCE, appearance_sizes, in_file=True),
        Field("statistics/valid", np.uint8, (*_CROPS, 14), _VALID, lambda config: 2, in_file=True),
    ),
    of_clip=_of_clip,
    lines=_lines,
)
