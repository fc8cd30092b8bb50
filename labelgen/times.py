"""The times at which the frames of a video are seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_USUAL = 9  # last steps between frames, whose median is the duration of the last frame


def frame_bounds(time: Sequence[float] | np.ndarray, fps: float = 0) -> np.ndarray:
    """Begin of each frame of a video and end of the last one, in seconds after the begin of the first, to the
    microsecond, float64 [frames + 1]; nan throughout if the file has no time stamps.

    time: presentation times in seconds, which never decrease, [frames]; fps: for a video of one frame. A frame lasts
    until the next one begins, the last one as long as the frames before it usually last.
    """
    time = np.asarray(time, np.float64)
    steps = np.diff(time)[-_USUAL:]
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / fps if fps > 0 else 0.0
    return np.round(np.append(time, time[-1:] + usual) - time[:1], 6)
