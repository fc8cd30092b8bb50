"""Optical flow between two frames and of a video: a fast TV-L1, and OpenCV's TV-L1, DIS and Farneback behind the same call."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from labelgen.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from labelgen.flow.backend import Backend
    from labelgen.flow.stream import flows as flows
    from labelgen.flow.tv_l1 import tvl1 as tvl1

# A new backend is a file and one line here; the files are imported on use.
BACKENDS = {
    "tvl1": "labelgen.flow.tv_l1:BACKEND",
    "opencv-tvl1": "labelgen.flow.opencv:TVL1",
    "dis": "labelgen.flow.opencv:DIS",
    "dis-medium": "labelgen.flow.opencv:DIS_MEDIUM",
    "farneback": "labelgen.flow.opencv:FARNEBACK",
}


def find(name: str) -> Backend:
    """A flow backend by its name. Raises ConfigError if it is not in BACKENDS."""
    if name not in BACKENDS:
        raise ConfigError(f"flow backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    found: Backend = pkgutil.resolve_name(BACKENDS[name])
    return found


def flow(first: np.ndarray, second: np.ndarray, backend: str = "tvl1") -> np.ndarray:
    """Optical flow between two luma images.

    Parameters
    ----------
    first, second : uint8 [H, W]
        See `tvl1`.
    backend : str
        A key of BACKENDS.

    Returns
    -------
    float32 [H, W, 2]
        (u, v) in pixels: first[y, x] reappears at second[y + v, x + u].

    Raises
    ------
    ConfigError
        For a backend that is not in BACKENDS.
    ValueError
        For images that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from labelgen.flow import flow
    >>> still = np.zeros((64, 80), np.uint8)
    >>> flow(still, still, "dis").shape
    (64, 80, 2)
    """
    return find(backend).function(first, second)


def luma(frame: np.ndarray) -> np.ndarray:
    """Luma uint8 [H, W], 0..255, of an RGB frame uint8 [H, W, 3]."""
    import cv2

    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


_LAZY = {"tvl1": "labelgen.flow.tv_l1:tvl1", "flows": "labelgen.flow.stream:flows"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # imported on use: they need Numba and FFmpeg, the list of names does not
        return pkgutil.resolve_name(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
