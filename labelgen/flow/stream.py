"""The optical flow of a video, pair by pair."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from labelgen.config import MAX_PIXELS
from labelgen.errors import ConfigError
from labelgen.flow import find, luma


class Pairs:
    """Flow from each frame to the one `step` frames later: called with the frames in order, RGB uint8 [H, W, 3], it
    returns the flow that ends at this frame, float32 [H, W, 2], and None for the first `step` frames."""

    def __init__(self, backend: str = "tvl1", step: int = 1) -> None:
        if step < 1:
            raise ConfigError(f"step is {step}; expected at least 1 frame")
        self._backend = find(backend)
        self._images: deque[Any] = deque(maxlen=step + 1)  # prepared

    def __call__(self, frame: np.ndarray) -> np.ndarray | None:
        self._images.append(self._backend.prepare(luma(frame)))
        if len(self._images) < (self._images.maxlen or 0):
            return None
        return self._backend.of_prepared(self._images[0], self._images[-1])


def flows(
    path: str | os.PathLike[str],
    backend: str = "tvl1",
    *,
    height: int | None = None,
    width: int | None = None,
    short: int | None = None,
    step: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[np.ndarray]:
    """The optical flow of a video, pair by pair. Memory does not grow with the length of the video.

    Parameters
    ----------
    path : str or path
        A video file or a folder of numbered images, see `labelgen.decode.frames`.
    backend : str
        A key of `labelgen.flow.BACKENDS`.
    height, width, short : int
        Size of the frames in pixels, see `labelgen.decode.frames`.
    step : int
        Distance of the two frames of a pair, in frames.
    max_pixels : int
        Largest allowed picture.

    Returns
    -------
    iterator of float32 [height, width, 2]
        (u, v) in pixels, from frame t to frame t + step for t = 0, 1, ...; N frames give N - step flows.

    Raises
    ------
    DecodeError
        As `labelgen.decode.frames` does; at the end, if anything was wrong with the file: the flows yielded before are valid.
    ConfigError
        For a backend or a step that cannot be used.

    Examples
    --------
    The video's picture moves by two pixels of 128 to the right, one pixel of 64:

    >>> import numpy as np
    >>> from labelgen.flow import flows
    >>> found = list(flows("video.mp4", "dis", height=48, width=64))
    >>> len(found), found[0].shape, round(float(np.median(found[0][..., 0])))
    (39, (48, 64, 2), 1)
    """
    from labelgen import decode

    pairs = Pairs(backend, step)

    def stream() -> Iterator[np.ndarray]:
        for frame in decode.frames(path, height, width, max_pixels=max_pixels, image_fps=1.0, short=short):
            flow = pairs(frame)
            if flow is not None:
                yield flow

    return stream()
