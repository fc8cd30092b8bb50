"""Optical flow between two frames: TV-L1 as one compiled call.

References
----------
[1] C. Zach, T. Pock, H. Bischof, "A duality based approach for realtime TV-L1 optical flow", DAGM 2007.
[2] J. Sanchez, E. Meinhardt-Llopis, G. Facciolo, "TV-L1 optical flow estimation", IPOL 2013, 10.5201/ipol.2013.26
[3] D. Sun, S. Roth, M. Black, "Secrets of optical flow estimation and their principles", CVPR 2010
    (the median of each warp's flow, the 5-point derivative, bicubic warping).
"""

from __future__ import annotations

import numpy as np
from numba import njit

f32 = np.float32


def tvl1(
    first: np.ndarray,
    second: np.ndarray,
    *,
    attachment: float = 0.2,
    tightness: float = 0.3,
    step: float = 0.25,
    scale: float = 0.8,
    warps: int = 5,
    iterations: int = 15,
) -> np.ndarray:
    """TV-L1 optical flow from `first` to `second`: first[y, x] is seen again at second[y + v, x + u].

    first, second: luma [H, W], 0..255, uint8 or floating point, at least 16 x 16 pixels
    attachment:    weight of the data term per grey level (lambda in [1]); smaller is smoother
    tightness:     coupling of the two solutions (theta)
    step:          time step of the dual ascent (tau); at most 0.25 converges
    scale:         size of a pyramid level relative to the next finer one, in (0, 1)
    warps:         linearisations of the image per pyramid level
    iterations:    primal-dual iterations per linearisation

    Returns float32 [H, W, 2], (u, v) in pixels. The same input gives the same flow on every run.
    Raises ValueError for images that differ in shape, are not 2-D, are too small, or hold values that are not finite.
    """
    first, second = _luma(first, "first"), _luma(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"images differ in shape: first {first.shape}, second {second.shape}; expected the same")
    if not 0 < scale < 1:
        raise ValueError(f"scale is {scale}; expected a value between 0 and 1")
    sizes = [first.shape]
    while min(sizes[-1]) * scale >= 16:
        height, width = first.shape
        sizes.append((round(height * scale ** len(sizes)), round(width * scale ** len(sizes))))
    return _tvl1(first, second, np.array(sizes), f32(attachment), f32(tightness), f32(step), warps, iterations)


def _luma(image: np.ndarray, name: str) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 2 or min(image.shape) < 16:
        raise ValueError(f"{name} has shape {image.shape}; expected luma [H, W] of at least 16 x 16 pixels")
    image = np.ascontiguousarray(image, f32)
    if not np.isfinite(image).all():
        raise ValueError(f"{name} holds values that are not finite; expected luma 0..255")
    return image


_kernel = njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@_kernel
def _clamp(value, low, high):
    return min(max(value, low), high)


@_kernel
def _shrink(source, target, smoothed, sigma):
    """Gaussian blur by `sigma` pixels (rows through `smoothed`), then bicubic sampling at the target's pixel centres."""
    height, width = source.shape
    to_height, to_width = target.shape
    radius = int(np.ceil(3 * sigma))
    taps = np.empty(2 * radius + 1, f32)
    for k in range(-radius, radius + 1):
        taps[k + radius] = np.exp(-0.5 * (k / sigma) ** 2)
    taps /= taps.sum()
    row = np.empty(width, f32)
    for y in range(height):
        row[:] = 0
        for k in range(-radius, radius + 1):
            line = source[_clamp(y + k, 0, height - 1)]
            weight = taps[k + radius]
            for x in range(width):
                row[x] += weight * line[x]
        for x in range(width):
            total = f32(0)
            for k in range(-radius, radius + 1):
                total += taps[k + radius] * row[_clamp(x + k, 0, width - 1)]
            smoothed[y, x] = total
    weight_x, weight_y = np.empty(4, f32), np.empty(4, f32)
    for y in range(to_height):
        at_y = (y + 0.5) * height / to_height - 0.5
        y0 = int(np.floor(at_y))
        _cubic(f32(at_y - y0), weight_y)
        for x in range(to_width):
            at_x = (x + 0.5) * width / to_width - 0.5
            x0 = int(np.floor(at_x))
            _cubic(f32(at_x - x0), weight_x)
            total = f32(0)
            for j in range(4):
                line = smoothed[_clamp(y0 + j - 1, 0, height - 1)]
                part = f32(0)
                for i in range(4):
                    part += weight_x[i] * line[_clamp(x0 + i - 1, 0, width - 1)]
                total += weight_y[j] * part
            target[y, x] = total


@_kernel
def _cubic(t, weights):
    """Weights of the four samples at -1, 0, 1, 2 for cubic convolution at t in [0, 1)."""
    weights[0] = f32(0.5) * t * (t * (f32(2) - t) - f32(1))
    weights[1] = f32(0.5) * (t * t * (f32(3) * t - f32(5)) + f32(2))
    weights[2] = f32(0.5) * t * (t * (f32(4) - f32(3) * t) + f32(1))
    weights[3] = f32(0.5) * t * t * (t - f32(1))


@_kernel
def _enlarge(source, target):
    """Bilinear resampling of one flow component, whose values grow with the image."""
    height, width = source.shape
    to_height, to_width = target.shape
    for y in range(to_height):
        at_y = _clamp((y + 0.5) * height / to_height - 0.5, 0.0, height - 1.0)
        y0 = min(int(at_y), height - 2)
        ty = f32(at_y - y0)
        for x in range(to_width):
            at_x = _clamp((x + 0.5) * width / to_width - 0.5, 0.0, width - 1.0)
            x0 = min(int(at_x), width - 2)
            tx = f32(at_x - x0)
            above = source[y0, x0] + tx * (source[y0, x0 + 1] - source[y0, x0])
            below = source[y0 + 1, x0] + tx * (source[y0 + 1, x0 + 1] - source[y0 + 1, x0])
            target[y, x] = above + ty * (below - above)


@_kernel
def _derivatives(image, out):
    """out[..., 0:3] = image and its 5-point derivatives (1 -8 0 8 -1)/12 along x and y, border replicated [3]."""
    height, width = image.shape
    near, far = f32(8 / 12), f32(1 / 12)
    for y in range(height):
        up, upper = image[max(y - 1, 0)], image[max(y - 2, 0)]
        down, lower = image[min(y + 1, height - 1)], image[min(y + 2, height - 1)]
        line = image[y]
        for x in range(width):
            left, right = line[max(x - 1, 0)], line[min(x + 1, width - 1)]
            lefter, righter = line[max(x - 2, 0)], line[min(x + 2, width - 1)]
            out[y, x, 0] = line[x]
            out[y, x, 1] = near * (right - left) - far * (righter - lefter)
            out[y, x, 2] = near * (down[x] - up[x]) - far * (lower[x] - upper[x])
            out[y, x, 3] = 0


@_kernel
def _linearise(first, second, u, v, rest, grad_x, grad_y, inverse):
    """Warp image and derivatives by (u, v), bicubic, and prepare the data term rho(u) = rest + grad . u of [1], with
    the inverse of |grad|^2. Where the flow leaves the image there is no data term."""
    height, width = first.shape
    for y in range(height):
        for x in range(width):
            at_x, at_y = x + u[y, x], y + v[y, x]
            if at_x < 0 or at_y < 0 or at_x > width - 1 or at_y > height - 1:
                rest[y, x] = grad_x[y, x] = grad_y[y, x] = inverse[y, x] = 0
                continue
            x0, y0 = int(at_x), int(at_y)
            t = at_x - f32(x0)
            a0 = f32(0.5) * t * (t * (f32(2) - t) - f32(1))
            a1 = f32(0.5) * (t * t * (f32(3) * t - f32(5)) + f32(2))
            a2 = f32(0.5) * t * (t * (f32(4) - f32(3) * t) + f32(1))
            a3 = f32(0.5) * t * t * (t - f32(1))
            t = at_y - f32(y0)
            b0 = f32(0.5) * t * (t * (f32(2) - t) - f32(1))
            b1 = f32(0.5) * (t * t * (f32(3) * t - f32(5)) + f32(2))
            b2 = f32(0.5) * t * (t * (f32(4) - f32(3) * t) + f32(1))
            b3 = f32(0.5) * t * t * (t - f32(1))
            xm, x1, x2 = max(x0 - 1, 0), min(x0 + 1, width - 1), min(x0 + 2, width - 1)
            value = ix = iy = f32(0)
            for j in range(4):
                line = second[_clamp(y0 + j - 1, 0, height - 1)]
                b = b0 if j == 0 else b1 if j == 1 else b2 if j == 2 else b3
                value += b * (a0 * line[xm, 0] + a1 * line[x0, 0] + a2 * line[x1, 0] + a3 * line[x2, 0])
                ix += b * (a0 * line[xm, 1] + a1 * line[x0, 1] + a2 * line[x1, 1] + a3 * line[x2, 1])
                iy += b * (a0 * line[xm, 2] + a1 * line[x0, 2] + a2 * line[x1, 2] + a3 * line[x2, 2])
            square = ix * ix + iy * iy
            grad_x[y, x], grad_y[y, x] = ix, iy
            rest[y, x] = value - first[y, x] - ix * u[y, x] - iy * v[y, x]
            inverse[y, x] = f32(1) / square if square > f32(1e-9) else f32(0)


@_kernel
def _primal(u, v, rest, grad_x, grad_y, inverse, px, py, py_up, qx, qy, qy_up, bound, tightness):
    """One row: thresholding of the data term [1, eq. 15], then u = v + theta div p [1, eq. 9]."""
    u[0], v[0] = _primal_pixel(
        u[0], v[0], rest[0], grad_x[0], grad_y[0], inverse[0], px[0] + py[0] - py_up[0], qx[0] + qy[0] - qy_up[0], bound, tightness
    )
    for x in range(1, u.size):
        u[x], v[x] = _primal_pixel(
            u[x], v[x], rest[x], grad_x[x], grad_y[x], inverse[x],
            (px[x] - px[x - 1]) + (py[x] - py_up[x]), (qx[x] - qx[x - 1]) + (qy[x] - qy_up[x]), bound, tightness,
        )  # fmt: skip


@_kernel
def _primal_pixel(u, v, rest, grad_x, grad_y, inverse, div_p, div_q, bound, tightness):
    rho = rest + grad_x * u + grad_y * v
    move = min(max(-rho * inverse, -bound), bound)
    return u + move * grad_x + tightness * div_p, v + move * grad_y + tightness * div_q


@_kernel
def _dual(u, u_down, px, py, rate):
    """One row of p = (p + tau/theta grad u) / (1 + tau/theta |grad u|) [2, eq. 16]."""
    last = u.size - 1
    for x in range(last):
        ux, uy = u[x + 1] - u[x], u_down[x] - u[x]
        shrink = f32(1) / (f32(1) + rate * np.sqrt(ux * ux + uy * uy))
        px[x] = (px[x] + rate * ux) * shrink
        py[x] = (py[x] + rate * uy) * shrink
    uy = u_down[last] - u[last]
    py[last] = (py[last] + rate * uy) / (f32(1) + rate * abs(uy))


@_kernel
def _iterate(u, v, rest, grad_x, grad_y, inverse, px, py, qx, qy, zeros, iterations, bound, tightness, rate):
    """Primal-dual iterations, fused: each row's primal update, then the dual update of the row above it."""
    height = u.shape[0]
    for _ in range(iterations):
        for y in range(height):
            py_up = py[y - 1] if y else zeros
            qy_up = qy[y - 1] if y else zeros
            _primal(
                u[y], v[y], rest[y], grad_x[y], grad_y[y], inverse[y],
                px[y], py[y], py_up, qx[y], qy[y], qy_up, bound, tightness,
            )  # fmt: skip
            if y:
                _dual(u[y - 1], u[y], px[y - 1], py[y - 1], rate)
                _dual(v[y - 1], v[y], qx[y - 1], qy[y - 1], rate)
        # below the last row the flow does not change
        _dual(u[height - 1], u[height - 1], px[height - 1], py[height - 1], rate)
        _dual(v[height - 1], v[height - 1], qx[height - 1], qy[height - 1], rate)


@_kernel
def _median(image, out, low, middle, high):
    """3 x 3 median, border replicated: columns sorted once, then the median of (the largest of the smallest, the median
    of the middle ones, the smallest of the largest). `low`, `middle`, `high`: scratch rows, two pixels wider."""
    height, width = image.shape
    for y in range(height):
        above, line, below = image[max(y - 1, 0)], image[y], image[min(y + 1, height - 1)]
        for x in range(width):
            a, b, c = above[x], line[x], below[x]
            a, b = min(a, b), max(a, b)
            low[x + 1], middle[x + 1], high[x + 1] = min(a, c), max(a, min(b, c)), max(b, c)
        for rank in (low, middle, high):
            rank[0], rank[width + 1] = rank[1], rank[width]
        for x in range(width):
            a = max(low[x], max(low[x + 1], low[x + 2]))
            c = min(high[x], min(high[x + 1], high[x + 2]))
            p, q, r = middle[x], middle[x + 1], middle[x + 2]
            b = max(min(p, q), min(max(p, q), r))
            out[y, x] = max(min(a, b), min(max(a, b), c))


@_kernel
def _tvl1(first, second, sizes, attachment, tightness, step, warps, iterations):
    height, width = first.shape
    levels = len(sizes)
    scale = sizes[-1][0] / height if levels == 1 else sizes[1][0] / height
    sigma = 0.6 * np.sqrt(1 / scale**2 - 1)  # [2]: what one level's shrinking must blur away
    begin = np.zeros(levels + 1, np.int64)
    for level in range(levels):
        begin[level + 1] = begin[level] + sizes[level, 0] * sizes[level, 1]
    pyramid = np.empty((2, begin[levels]), f32)
    buffers = np.empty((9, height * width), f32)
    pyramid[0, : begin[1]] = first.ravel()
    pyramid[1, : begin[1]] = second.ravel()
    for image in range(2):
        for level in range(1, levels):
            finer, size = sizes[level - 1], sizes[level]
            source = pyramid[image, begin[level - 1] : begin[level]].reshape(finer[0], finer[1])
            target = pyramid[image, begin[level] : begin[level + 1]].reshape(size[0], size[1])
            _shrink(source, target, buffers[0, : finer[0] * finer[1]].reshape(finer[0], finer[1]), sigma)

    flow = np.zeros((2, height * width), f32)
    second_derivatives = np.empty((height * width, 4), f32)
    for level in range(levels - 1, -1, -1):
        h, w = sizes[level]
        area = h * w
        u, v = flow[0, :area].reshape(h, w), flow[1, :area].reshape(h, w)
        if level < levels - 1:
            coarse_h, coarse_w = sizes[level + 1]
            coarse = buffers[0, : coarse_h * coarse_w]
            for component, growth in ((0, w / coarse_w), (1, h / coarse_h)):
                coarse[:] = flow[component, : coarse_h * coarse_w] * f32(growth)
                _enlarge(coarse.reshape(coarse_h, coarse_w), flow[component, :area].reshape(h, w))
        one = pyramid[0, begin[level] : begin[level + 1]].reshape(h, w)
        two = second_derivatives[:area].reshape(h, w, 4)
        _derivatives(pyramid[1, begin[level] : begin[level + 1]].reshape(h, w), two)
        rest, grad_x = buffers[0, :area].reshape(h, w), buffers[1, :area].reshape(h, w)
        grad_y, inverse = buffers[2, :area].reshape(h, w), buffers[3, :area].reshape(h, w)
        px, py = buffers[4, :area].reshape(h, w), buffers[5, :area].reshape(h, w)
        qx, qy = buffers[6, :area].reshape(h, w), buffers[7, :area].reshape(h, w)
        smooth = buffers[8, :area].reshape(h, w)
        scratch = np.zeros((4, w + 2), f32)
        buffers[4:8] = 0
        for _ in range(warps):
            _linearise(one, two, u, v, rest, grad_x, grad_y, inverse)
            _iterate(
                u, v, rest, grad_x, grad_y, inverse, px, py, qx, qy, scratch[3],
                iterations, attachment * tightness, tightness, step / tightness,
            )  # fmt: skip
            for component in (u, v):
                _median(component, smooth, scratch[0], scratch[1], scratch[2])
                component[:] = smooth
    out = np.empty((height, width, 2), f32)
    out[..., 0] = flow[0].reshape(height, width)
    out[..., 1] = flow[1].reshape(height, width)
    return out


BACKENDS = {"tvl1": tvl1}


def flow(first, second, backend="tvl1"):
    return BACKENDS[backend](first, second)
