"""TV-L1 optical flow: what it takes, what it checks, and its pyramid.

References
----------
[1] C. Zach, T. Pock, H. Bischof, "A duality based approach for realtime TV-L1 optical flow", DAGM 2007.
[2] J. Sanchez, E. Meinhardt-Llopis, G. Facciolo, "TV-L1 optical flow estimation", IPOL 2013, 10.5201/ipol.2013.26
[3] D. Sun, S. Roth, M. Black, "Secrets of optical flow estimation and their principles", CVPR 2010
    (the median after each warp, the 5-point derivative, bicubic warping).
[4] S. Baker, I. Matthews, "Lucas-Kanade 20 years on", IJCV 2004 (the gradient of the image that is not warped).
[5] X. Bresson, T. Chan, "Fast dual minimization of the vectorial total variation norm", IPI 2008.
[6] A. Chambolle, "Total variation minimization and a class of binary MRF models", EMMCVPR 2005 (projected dual step).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from labelgen.flow import kernels
from labelgen.flow.backend import SMALLEST, Backend, checked_pair

PARAMETERS: dict[str, Any] = {
    "attachment": 0.3,
    "tightness": 0.2,
    "step": 0.25,
    "scale": 0.8,
    "warps": 4,
    "iterations": 10,
}


def tvl1(
    first: np.ndarray,
    second: np.ndarray,
    *,
    attachment: float = PARAMETERS["attachment"],
    tightness: float = PARAMETERS["tightness"],
    step: float = PARAMETERS["step"],
    scale: float = PARAMETERS["scale"],
    warps: int = PARAMETERS["warps"],
    iterations: int = PARAMETERS["iterations"],
) -> np.ndarray:
    """TV-L1 optical flow from `first` to `second`: first[y, x] is seen again at second[y + v, x + u].

    Minimises sum |grad (u, v)| + attachment |second(x + u) - first(x)| coarse to fine as in [1, 2], with the total variation of
    both components taken together [5]. docs/flow.md says where this differs from [1] and why. The same input gives the same
    flow on every run.

    Parameters
    ----------
    first, second : array [H, W]
        Luma, 0..255, uint8 or floating point, at least 16 x 16 pixels.
    attachment : float
        Weight of the data term per grey level (lambda in [1]); smaller is smoother.
    tightness : float
        Coupling of the two solutions (theta).
    step : float
        Time step of the dual ascent (tau); at most 0.25 converges.
    scale : float
        Size of a pyramid level relative to the next finer one, in (0, 1), made for 0.5 to 0.9.
    warps : int
        Linearisations of the image per pyramid level.
    iterations : int
        Primal-dual iterations per linearisation.

    Returns
    -------
    float32 [H, W, 2]
        (u, v) in pixels.

    Raises
    ------
    ValueError
        For images that differ in shape, are not 2-D, are too small, or hold values that are not finite, and for a parameter
        that is out of range.

    Examples
    --------
    A picture that moves by two pixels to the right and one down:

    >>> import cv2, numpy as np
    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    >>> first = cv2.GaussianBlur(noise, (0, 0), 3)
    >>> flow = tvl1(first, np.roll(first, (1, 2), axis=(0, 1)))
    >>> np.median(flow.reshape(-1, 2), axis=0).round(1).tolist()
    [2.0, 1.0]
    """
    first, second = checked_pair(first, second)
    for name, image in (("first", first), ("second", second)):
        if not np.isfinite(image).all():
            raise ValueError(f"{name} holds {image[~np.isfinite(image)][0]}; expected finite luma, 0..255")
    if not 0 < scale < 1:
        raise ValueError(f"scale is {scale}; expected a value between 0 and 1")
    numbers = {"attachment": attachment, "tightness": tightness, "step": step, "warps": warps, "iterations": iterations}
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a value above 0")
    height, width = first.shape
    sizes = [(height, width)]
    while min(sizes[-1]) * scale >= SMALLEST:
        shrunk = scale ** len(sizes)
        sizes.append((round(height * shrunk), round(width * shrunk)))
    sigma = 0.6 * np.sqrt(scale**-2 - 1)  # [2]: what shrinking to the next level must blur away
    bound, rate = np.float32(attachment * tightness), np.float32(step / tightness)
    images = np.stack([first, second]).astype(np.float32)
    return kernels.coarse_to_fine(images, np.array(sizes), sigma, bound, np.float32(tightness), rate, warps, iterations)


BACKEND = Backend(tvl1, version=1, parameters=PARAMETERS)
