"""TV-L1 optical flow: its parameters, checks and pyramid.

References
----------
[1] C. Zach, T. Pock, H. Bischof, "A duality based approach for realtime TV-L1 optical flow", DAGM 2007.
[2] J. Sanchez, E. Meinhardt-Llopis, G. Facciolo, "TV-L1 optical flow estimation", IPOL 2013, 10.5201/ipol.2013.26
[3] D. Sun, S. Roth, M. Black, "Secrets of optical flow estimation and their principles", CVPR 2010
    (the median after each warp, the 5-point derivative, bicubic warping).
[4] S. Baker, I. Matthews, "Lucas-Kanade 20 years on", IJCV 2004 (the gradient of the unwarped image). [5] X. Bresson,
T. Chan, "Fast dual minimization of the vectorial total variation norm", IPI 2008. [6] A. Chambolle, "Total variation
minimization and a class of binary MRF models", EMMCVPR 2005 (projected dual step). [7] A. Wedel, T. Pock, C. Zach, H.
Bischof, D. Cremers, "An improved algorithm for TV-L1 optical flow", Statistical and
    Geometrical Approaches to Visual Motion Analysis 2009 (structure-texture decomposition).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from labelgen.flow import kernels
from labelgen.flow.backend import SMALLEST, Backend, checked, checked_pair
from labelgen.flow.texture import texture

PARAMETERS: dict[str, Any] = {
    "attachment": 0.35,
    "tightness": 0.2,
    "step": 0.25,
    "scale": 0.8,
    "warps": 4,
    "iterations": 10,
    "structure": 0.3,
    "flatness": 16.0,
    "structure_steps": 20,
}


class Image(NamedTuple):
    """An image, prepared for any number of flows. planes: see `kernels.pyramid`; sizes: int64 [levels, 2]."""

    planes: np.ndarray
    sizes: np.ndarray


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
    structure: float = PARAMETERS["structure"],
    flatness: float = PARAMETERS["flatness"],
    structure_steps: int = PARAMETERS["structure_steps"],
) -> np.ndarray:
    """TV-L1 optical flow from `first` to `second`: first[y, x] reappears at second[y + v, x + u].

    Minimises sum |grad (u, v)| + attachment |second(x + u) - first(x)| coarse to fine as in [1, 2], with the joint
    total variation of both components [5], on the images minus a share of their structure [7]. docs/flow.md lists and
    explains the differences from [1]. The same input gives the same flow on every run.

    Parameters
    ----------
    first, second : array [H, W]
        Luma, 0..255, uint8 or floating point, at least 16 x 16 pixels.
    attachment : float
        Weight of the data term per grey level (lambda); smaller is smoother.
    tightness : float
        Coupling of the two solutions (theta).
    step : float
        Time step of the dual ascent (tau); at most 0.25 converges.
    scale : float
        Size of a pyramid level relative to the next finer one, in (0, 1), best between 0.5 and 0.9.
    warps : int
        Linearisations of the image per pyramid level.
    iterations : int
        Primal-dual iterations per linearisation.
    structure : float
        Share of the structure of both images that is removed, 0..1, see `texture`; 0 leaves the images unchanged.
    flatness : float
        Smoothness of the structure in grey levels (theta of the denoising).
    structure_steps : int
        Steps of the denoising that computes the structure.

    Returns
    -------
    float32 [H, W, 2]
        (u, v) in pixels.

    Raises
    ------
    ValueError
        For images that differ in shape, are not 2-D, are too small or hold non-finite values, and for parameters out of range.

    Examples
    --------
    A picture that moves by two pixels to the right and one down:

    >>> import cv2, numpy as np
    >>> from labelgen.flow import tvl1
    >>> noise = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    >>> first = cv2.GaussianBlur(noise, (0, 0), 3)
    >>> flow = tvl1(first, np.roll(first, (1, 2), axis=(0, 1)))
    >>> np.median(flow.reshape(-1, 2), axis=0).round(1).tolist()
    [2.0, 1.0]
    """
    first, second = checked_pair(first, second)
    how = scale, structure, flatness, structure_steps
    one, two = _prepared("first", first, *how), _prepared("second", second, *how)
    return _solved(one, two, attachment, tightness, step, warps, iterations)


def _prepared(
    name: str, image: np.ndarray, scale: float, structure: float, flatness: float, structure_steps: int
) -> Image:
    if not np.isfinite(image).all():
        raise ValueError(f"{name} holds {image[~np.isfinite(image)][0]}; expected finite luma, 0..255")
    if not 0 < scale < 1:
        raise ValueError(f"scale is {scale}; expected a value between 0 and 1")
    if not 0 <= structure <= 1:
        raise ValueError(f"structure is {structure}; expected a share from 0 to 1")
    _check_positive(flatness=flatness, structure_steps=structure_steps)
    height, width = image.shape
    sizes = [(height, width)]
    while min(sizes[-1]) * scale >= SMALLEST:
        shrunk = scale ** len(sizes)
        sizes.append((round(height * shrunk), round(width * shrunk)))
    sigma = 0.6 * np.sqrt(scale**-2 - 1)  # [2]: the blur that shrinking to the next level needs
    image = np.ascontiguousarray(image, np.float32)
    if structure:
        image = texture(image, np.float32(structure), np.float32(flatness), structure_steps)
    levels: np.ndarray = np.array(sizes)
    return Image(kernels.pyramid(image, levels, sigma), levels)


def _solved(
    first: Image, second: Image, attachment: float, tightness: float, step: float, warps: int, iterations: int
) -> np.ndarray:
    _check_positive(attachment=attachment, tightness=tightness, step=step, warps=warps, iterations=iterations)
    if not np.array_equal(first.sizes, second.sizes):
        shapes = f"first {tuple(first.sizes[0].tolist())}, second {tuple(second.sizes[0].tolist())}"
        raise ValueError(f"images differ in shape: {shapes}; expected the same")
    bound, rate = np.float32(attachment * tightness), np.float32(step / tightness)
    return kernels.coarse_to_fine(
        first.planes, second.planes, first.sizes, bound, np.float32(tightness), rate, warps, iterations
    )


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected a value above 0")


def _prepare(image: np.ndarray) -> Image:
    return _prepared("image", checked("image", image), *(PARAMETERS[name] for name in ("scale", *_OF_STRUCTURE)))


def _between(first: Image, second: Image) -> np.ndarray:
    return _solved(
        first, second, *(PARAMETERS[name] for name in ("attachment", "tightness", "step", "warps", "iterations"))
    )


_OF_STRUCTURE = ("structure", "flatness", "structure_steps")
BACKEND = Backend(tvl1, version=2, parameters=PARAMETERS, prepare=_prepare, between=_between)
