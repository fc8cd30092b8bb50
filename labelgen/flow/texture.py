"""The texture of an image, the part that changes of light affect least, for the data term of `tvl1`.

References
----------
[1] A. Wedel, T. Pock, C. Zach, H. Bischof, D. Cremers, "An improved algorithm for TV-L1 optical flow", Statistical and
    Geometrical Approaches to Visual Motion Analysis 2009, section 3.2 (structure-texture decomposition).
[2] L. Rudin, S. Osher, E. Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 1992.
[3] A. Chambolle, "Total variation minimization and a class of binary MRF models", EMMCVPR 2005 (projected dual step).
"""

from __future__ import annotations

import numpy as np

from labelgen.compiled import njit

f32 = np.float32

_BAND = 8192  # pixels worked on at a time: their state, 16 bytes each, stays in the second-level cache
_STEP = 0.25  # of the dual ascent, the largest step that converges

# Inlined for the reason given in kernels.py.
_kernel = njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)


@_kernel
def _primal(u, image, px, px_left, py, py_up, theta):
    for i in range(u.size):
        u[i] = image[i] + theta * ((px[i] - px_left[i]) + (py[i] - py_up[i]))


@_kernel
def _dual(u, u_right, u_down, px, py, rate):
    for i in range(u.size):
        a, b = px[i] + rate * (u_right[i] - u[i]), py[i] + rate * (u_down[i] - u[i])
        shrink = f32(1) / np.sqrt(max(f32(1), a * a + b * b))
        px[i], py[i] = a * shrink, b * shrink


@_kernel
def texture(image, share, theta, steps):
    """An image minus a share of its structure, float32 [H, W]: image - share * u. u approximates the minimiser of sum
    |grad u| + |u - image|^2 / (2 theta) [2] by `steps` projected dual steps [3] from u = image.

    image: [H, W]; share: 0..1; theta: grey levels

    The steps run over bands of rows, each one row behind the previous one, as in `kernels`. Planes are flat, with a
    border of one pixel, across which u does not change and in which the dual variables are zero.
    """
    height, width = image.shape
    stride = (width + 2 + 15) // 16 * 16
    planes = np.zeros((4, (height + 2) * stride), f32)
    given, u, px, py = planes[0], planes[1], planes[2], planes[3]
    for y in range(height):
        b = (y + 1) * stride + 1
        for x in range(width):
            given[b + x] = image[y, x]
    rate = f32(_STEP / theta)
    band = max(1, _BAND // stride)
    for front in range(0, height + steps + 1, band):
        for k in range(steps + 1):
            top, bottom = max(front - k, 0), min(front + band - k, height)
            if top < bottom:
                b, e = (top + 1) * stride, (bottom + 1) * stride
                _primal(
                    u[b:e], given[b:e], px[b:e], px[b - 1 : e - 1], py[b:e], py[b - stride : e - stride], f32(theta)
                )
                for left in range(b + 1, e, stride):
                    right = left + width - 1
                    u[left - 1], u[right + 1] = u[left], u[right]
                if bottom == height:
                    u[e : e + stride] = u[e - stride : e]
            top, bottom = max(front - k - 1, 0), min(front + band - k - 1, height)
            if top < bottom and k < steps:
                b, e = (top + 1) * stride, (bottom + 1) * stride
                _dual(u[b:e], u[b + 1 : e + 1], u[b + stride : e + stride], px[b:e], py[b:e], rate)
    out = np.empty((height, width), f32)
    for y in range(height):
        b = (y + 1) * stride + 1
        for x in range(width):
            out[y, x] = given[b + x] - f32(share) * u[b + x]
    return out
