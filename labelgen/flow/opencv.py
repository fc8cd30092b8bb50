"""OpenCV's TV-L1, DIS and Farneback flow, with the interface of `tvl1`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from labelgen.errors import ConfigError
from labelgen.flow.backend import Backend, checked_pair

PARAMETERS: dict[str, Any] = {"attachment": 0.15, "tightness": 0.3, "step": 0.25, "scale": 0.8, "warps": 5}
_FARNEBACK: dict[str, Any] = {  # of OpenCV's tutorial
    "scale": 0.5,
    "levels": 3,
    "window": 15,
    "iterations": 3,
    "neighbours": 5,
    "sigma": 1.2,
}


def opencv_tvl1(
    first: np.ndarray,
    second: np.ndarray,
    *,
    attachment: float = PARAMETERS["attachment"],
    tightness: float = PARAMETERS["tightness"],
    step: float = PARAMETERS["step"],
    scale: float = PARAMETERS["scale"],
    warps: int = PARAMETERS["warps"],
) -> np.ndarray:
    """OpenCV's DualTVL1OpticalFlow with its defaults, the reference for accuracy; see `tvl1`. Takes uint8 luma.

    Raises ConfigError if OpenCV lacks its contributed modules.
    """
    if not hasattr(cv2, "optflow"):
        raise ConfigError(
            "flow backend 'opencv-tvl1' needs cv2.optflow, which this OpenCV lacks; "
            "install opencv-contrib-python-headless instead of other opencv packages"
        )
    create = cv2.optflow.DualTVL1OpticalFlow_create  # type: ignore[attr-defined]  # missing in its stubs
    settings = {"lambda_": attachment, "theta": tightness, "tau": step, "scaleStep": scale, "warps": warps}
    return _solved(first, second, create, **settings)


def dis(first: np.ndarray, second: np.ndarray, *, preset: int = cv2.DISOPTICAL_FLOW_PRESET_FAST) -> np.ndarray:
    """OpenCV's DIS flow, several times as fast as `tvl1`, with more than twice its error. Takes uint8 luma, see `tvl1`.

    Examples
    --------
    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    >>> first = cv2.GaussianBlur(noise, (0, 0), 3)
    >>> flow = dis(first, np.roll(first, (1, 2), axis=(0, 1)))
    >>> np.median(flow.reshape(-1, 2), axis=0).round().tolist()
    [2.0, 1.0]
    """
    create = cv2.DISOpticalFlow_create  # type: ignore[attr-defined]  # missing in its stubs
    return _solved(first, second, create, preset=preset)


def dis_medium(first: np.ndarray, second: np.ndarray, *, preset: int = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM) -> np.ndarray:
    """`dis` with OpenCV's preset "medium"."""
    return dis(first, second, preset=preset)


def farneback(
    first: np.ndarray,
    second: np.ndarray,
    *,
    scale: float = _FARNEBACK["scale"],
    levels: int = _FARNEBACK["levels"],
    window: int = _FARNEBACK["window"],
    iterations: int = _FARNEBACK["iterations"],
    neighbours: int = _FARNEBACK["neighbours"],
    sigma: float = _FARNEBACK["sigma"],
) -> np.ndarray:
    """OpenCV's Farneback flow with the parameters of its tutorial, see `tvl1`. Takes uint8 luma."""
    create = cv2.FarnebackOpticalFlow_create  # type: ignore[attr-defined]  # missing in its stubs
    names = {
        **{"pyrScale": scale, "numLevels": levels, "winSize": window, "numIters": iterations},
        **{"polyN": neighbours, "polySigma": sigma},
    }
    return _solved(first, second, create, **names)


def _solved(first: np.ndarray, second: np.ndarray, create: Callable[..., Any], **settings: float) -> np.ndarray:
    first, second = checked_pair(first, second)
    for name, image in (("first", first), ("second", second)):
        if image.dtype != np.uint8:
            raise ValueError(f"{name} has dtype {image.dtype}; expected uint8 for OpenCV's flow")
    # A new solver for each pair, which costs next to nothing: DualTVL1OpticalFlow keeps the number of pyramid levels of
    # the smallest pair that it has seen, which changes all later flows.
    solver = create(**settings)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        return solver.calc(np.ascontiguousarray(first), np.ascontiguousarray(second), None)
    finally:
        cv2.setNumThreads(threads)


TVL1 = Backend(opencv_tvl1, version=1, parameters=PARAMETERS)
DIS = Backend(dis, version=1, parameters={"preset": cv2.DISOPTICAL_FLOW_PRESET_FAST})
DIS_MEDIUM = Backend(dis_medium, version=1, parameters={"preset": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM})
FARNEBACK = Backend(farneback, version=1, parameters=_FARNEBACK)
