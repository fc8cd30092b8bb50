"""Moments of video files as the moving pictures of pages, which the trainer does not decode."""

from __future__ import annotations

import math
from pathlib import Path

_SIDE, _SECONDS = 240, 1.0  # longer side of a film in pixels, and how much of a longer moment it shows
_FRAMES, _READ = 12, 300  # of a film; frames that are decoded for one at most


def film(row: dict):
    """About a second from the middle of a row's moment (path, start, end): at most 12 frames, RGB uint8 [n, H, W, 3], and how
    long each is shown, in seconds [n]. None if the file is not there or has no time stamps, or if the moment cannot be read."""
    import itertools

    import cv2
    import numpy as np

    from labelgen.decode import frames
    from labelgen.errors import DecodeError
    from labelgen.span import Span
    from labelgen.times import frame_bounds

    if row["start"] is None or not Path(row["path"]).is_absolute():
        return None
    middle = (row["start"] + row["end"]) / 2
    begin, end = max(row["start"], middle - _SECONDS / 2), min(row["end"], middle + _SECONDS / 2)
    span = Span(frames(row["path"], since=begin), begin, end)
    found, times = [], []
    try:
        for frame in itertools.islice(span, _READ):
            scale = _SIDE / max(frame.shape[:2])
            size = [max(1, round(scale * length)) for length in (frame.shape[1], frame.shape[0])]
            found.append(cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame)
            times.append(span.time)
    except DecodeError:  # what came before is shown
        pass
    finally:
        span.close()
    if not found:
        return None
    bounds = frame_bounds(np.array(times), span.fps)
    every = math.ceil(len(found) / _FRAMES)
    chosen = np.arange(0, len(found), every)
    return np.stack([found[number] for number in chosen]), bounds[np.minimum(chosen + every, len(found))] - bounds[
        chosen
    ]
