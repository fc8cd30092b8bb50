"""The kernels of `tvl1`: the solver of one level, and the pyramid that drives it; for the references see tv_l1.py."""

from __future__ import annotations

import numpy as np

from labelgen.compiled import njit

f32 = np.float32

# The kernels work on planes. A plane is a flat float32 array that holds an image of `height` x `width` inside a border
# of PAD pixels; its rows are _stride(width) long. Stencils thus run over many rows in one loop without checking for the
# image's border, which on small images is several times as fast as loops over rows.

PAD = 2
BAND = 8192  # pixels worked on at a time: their state, 40 bytes each, stays in the second-level cache

# Inlining compiles all of it as one: otherwise the run that compiles and those that load the cache may call different
# copies of a kernel, which round differently.
_kernel = njit(nogil=True, fastmath=True, error_model="numpy", forceinline=True)


@_kernel
def _stride(width):
    return (width + 2 * PAD + 15) // 16 * 16


@_kernel
def _replicate(plane, height, width):
    """Fill the border with copies of the nearest pixel of the image."""
    stride = _stride(width)
    top, bottom = PAD * stride, (height + PAD) * stride
    for row in range(top, bottom, stride):
        left, right = row + PAD, row + PAD + width - 1
        for k in range(1, PAD + 1):
            plane[left - k] = plane[left]
            plane[right + k] = plane[right]
    for k in range(PAD):
        for x in range(stride):
            plane[k * stride + x] = plane[top + x]
            plane[bottom + k * stride + x] = plane[bottom - stride + x]


@_kernel
def _gauss(index, growth, sigma, weights):
    """Where a pixel of the coarse level samples the fine level, which is `growth` times as large: first tap and 4 weights."""
    at = (index + 0.5) * growth - 0.5
    begin = int(np.floor(at)) - 1
    total = 0.0
    for k in range(4):
        weights[k] = np.exp(-0.5 * ((begin + k - at) / sigma) ** 2)
        total += weights[k]
    for k in range(4):
        weights[k] /= total
    return begin


@_kernel
def _shrink(source, height, width, target, to_height, to_width, sigma):
    """The next level of the pyramid: Gaussian weights of 4 x 4 pixels around each new pixel's centre."""
    stride, to_stride = _stride(width), _stride(to_width)
    across, begins = np.empty((4, to_width), f32), np.empty(to_width, np.int64)
    for x in range(to_width):
        begins[x] = _gauss(x, width / to_width, sigma, across[:, x])
    w0, w1, w2, w3 = across[0], across[1], across[2], across[3]
    down, line = np.empty(4, f32), np.empty(stride, f32)
    for y in range(to_height):
        b = (_gauss(y, height / to_height, sigma, down) + PAD) * stride
        rows = source[b : b + 4 * stride]
        for x in range(stride):
            upper = down[0] * rows[x] + down[1] * rows[x + stride]
            line[x] = upper + (down[2] * rows[x + 2 * stride] + down[3] * rows[x + 3 * stride])
        b = (y + PAD) * to_stride + PAD
        out = target[b : b + to_width]
        for x in range(to_width):
            k = begins[x] + PAD
            out[x] = (w0[x] * line[k] + w1[x] * line[k + 1]) + (w2[x] * line[k + 2] + w3[x] * line[k + 3])
    _replicate(target, to_height, to_width)


@_kernel
def _enlarge(source, height, width, target, to_height, to_width, growth):
    """One component of the flow on the next finer level: bilinear, its values times `growth`."""
    stride, to_stride = _stride(width), _stride(to_width)
    begins, parts = np.empty(to_width, np.int64), np.empty(to_width, f32)
    for x in range(to_width):
        at = (x + 0.5) * width / to_width - 0.5
        begins[x] = int(np.floor(at))
        parts[x] = at - begins[x]
    line = np.empty(stride, f32)
    for y in range(to_height):
        at = (y + 0.5) * height / to_height - 0.5
        begin = int(np.floor(at))
        part = f32(at - begin)
        b = (begin + PAD) * stride
        above, below = source[b : b + stride], source[b + stride : b + 2 * stride]
        for x in range(stride):
            line[x] = growth * (above[x] + part * (below[x] - above[x]))
        b = (y + PAD) * to_stride + PAD
        out = target[b : b + to_width]
        for x in range(to_width):
            k = begins[x] + PAD
            out[x] = line[k] + parts[x] * (line[k + 1] - line[k])


@_kernel
def _double(image, height, width, out):
    """Bicubic enlargement to flat [2 height, 2 width]: pixel (y, x) is at (2 y, 2 x), with half pixels in between."""
    stride, wide = _stride(width), 2 * width
    near, far = f32(9 / 16), f32(1 / 16)
    for y in range(height):
        b = (y + PAD) * stride + PAD - 1
        line, even = image[b : b + width + 3], out[2 * y * wide : (2 * y + 1) * wide]
        for x in range(width):
            even[2 * x] = line[x + 1]
            even[2 * x + 1] = near * (line[x + 1] + line[x + 2]) - far * (line[x] + line[x + 3])
    for y in range(height):
        a, b = 2 * max(y - 1, 0) * wide, 2 * y * wide
        c, d = 2 * min(y + 1, height - 1) * wide, 2 * min(y + 2, height - 1) * wide
        upper, above, below, lower = out[a : a + wide], out[b : b + wide], out[c : c + wide], out[d : d + wide]
        odd = out[b + wide : b + 2 * wide]
        for x in range(wide):
            odd[x] = near * (above[x] + below[x]) - far * (upper[x] + lower[x])


@_kernel
def _gradient(image, height, width, grad_x, grad_y):
    """5-point derivatives (1 -8 0 8 -1) / 12 along x and y [3], zero in the border, which has no data term."""
    stride = _stride(width)
    b, e = PAD * stride + PAD, (height + PAD) * stride - PAD
    for grad, one in ((grad_x, 1), (grad_y, stride)):
        two = 2 * one
        before, after = image[b - one : e - one], image[b + one : e + one]
        further_before, further_after = image[b - two : e - two], image[b + two : e + two]
        out = grad[b:e]
        for i in range(out.size):
            out[i] = f32(8 / 12) * (after[i] - before[i]) - f32(1 / 12) * (further_after[i] - further_before[i])
        for row in range(PAD * stride, (height + PAD) * stride, stride):
            grad[row : row + PAD] = 0
            grad[row + PAD + width : row + stride] = 0


@_kernel
def _positions(u, v, column, row, last_x, last_y, index, part_x, part_y, inside):
    """Where the flow points to in the doubled image, clamped to its border: pixel and fraction; 1 inside, 0 outside."""
    wide = np.int32(2) * (np.int32(last_x) + np.int32(1))
    for i in range(u.size):
        x, y = column[i] + u[i], row[i] + v[i]
        held_x, held_y = min(max(x, f32(0)), last_x), min(max(y, f32(0)), last_y)
        x0, y0 = np.int32(f32(2) * held_x), np.int32(f32(2) * held_y)
        part_x[i], part_y[i] = f32(2) * held_x - f32(x0), f32(2) * held_y - f32(y0)
        index[i] = y0 * wide + x0
        inside[i] = f32(1) if (x == held_x) & (y == held_y) else f32(0)


@_kernel
def _sample(above, below, index, part_x, part_y, out):
    """Bilinear samples of an image; `below` is `above` from its second row on."""
    one = np.uint32(1)
    for i in range(index.size):
        k = np.uint32(index[i])  # unsigned, or each access checks for a negative index
        upper = above[k] + part_x[i] * (above[k + one] - above[k])
        lower = below[k] + part_x[i] * (below[k + one] - below[k])
        out[i] = upper + part_y[i] * (lower - upper)


@_kernel
def _data_term(first, u, v, grad_x, grad_y, rest, inverse):
    for i in range(u.size):
        rest[i] = rest[i] - first[i] - grad_x[i] * u[i] - grad_y[i] * v[i]
        inverse[i] = inverse[i] / max(grad_x[i] * grad_x[i] + grad_y[i] * grad_y[i], f32(1e-9))


@_kernel
def _linearise(first, doubled, flow, grid, data, height, width, index, part_x, part_y):
    """Warp the second image by the flow and prepare the data term rho(u) = rest + grad . u of [1].

    data: planes grad_x, grad_y of the first image [4]; rest; and 1 / |grad|^2, which is 0 where the flow leaves the image
    """
    stride = _stride(width)
    end = (height + PAD) * stride
    below = doubled[2 * width :]
    for b in range(PAD * stride, end, BAND):
        e = min(b + BAND, end)
        n = e - b
        u, v, rest, inverse = flow[0, b:e], flow[1, b:e], data[2, b:e], data[3, b:e]
        _positions(
            u, v, grid[0, b:e], grid[1, b:e], f32(width - 1), f32(height - 1),
            index[:n], part_x[:n], part_y[:n], inverse,
        )  # fmt: skip
        _sample(doubled, below, index[:n], part_x[:n], part_y[:n], rest)
        _data_term(first[b:e], u, v, data[0, b:e], data[1, b:e], rest, inverse)


@_kernel
def _primal(u, v, grad_x, grad_y, rest, inverse, px, px_left, py, py_up, qx, qx_left, qy, qy_up, bound, tightness):
    """Thresholding of the data term [1, eq. 15], then u = v + theta div p [1, eq. 9]."""
    for i in range(u.size):
        rho = rest[i] + grad_x[i] * u[i] + grad_y[i] * v[i]
        move = min(max(-rho * inverse[i], -bound), bound)
        u[i] += move * grad_x[i] + tightness * ((px[i] - px_left[i]) + (py[i] - py_up[i]))
        v[i] += move * grad_y[i] + tightness * ((qx[i] - qx_left[i]) + (qy[i] - qy_up[i]))


@_kernel
def _dual(u, u_right, u_down, v, v_right, v_down, px, py, qx, qy, rate):
    """(p, q) = (p, q) + tau/theta grad (u, v), projected into the unit ball [6], which both share [5]."""
    for i in range(u.size):
        a, b = px[i] + rate * (u_right[i] - u[i]), py[i] + rate * (u_down[i] - u[i])
        c, d = qx[i] + rate * (v_right[i] - v[i]), qy[i] + rate * (v_down[i] - v[i])
        shrink = f32(1) / np.sqrt(max(f32(1), (a * a + b * b) + (c * c + d * d)))
        px[i], py[i], qx[i], qy[i] = a * shrink, b * shrink, c * shrink, d * shrink


@_kernel
def _iterate(flow, data, dual, height, width, iterations, bound, tightness, rate):
    """Primal-dual iterations in bands of rows, each iteration one row behind the previous one: the arithmetic has the
    order of whole images, but a band stays in the cache for all iterations.

    dual: planes px, py, qx, qy, zero in the border above and to the left
    """
    stride = _stride(width)
    u, v = flow[0], flow[1]
    px, py, qx, qy = dual[0], dual[1], dual[2], dual[3]
    band = max(1, BAND // stride)
    for front in range(0, height + iterations, band):
        for k in range(iterations):
            top, bottom = max(front - k, 0), min(front + band - k, height)
            if top < bottom:
                b, e = (top + PAD) * stride, (bottom + PAD) * stride
                _primal(
                    u[b:e], v[b:e], data[0, b:e], data[1, b:e], data[2, b:e], data[3, b:e],
                    px[b:e], px[b - 1 : e - 1], py[b:e], py[b - stride : e - stride],
                    qx[b:e], qx[b - 1 : e - 1], qy[b:e], qy[b - stride : e - stride], bound, tightness,
                )  # fmt: skip
                # the flow does not change across the image's border
                for left in range(b + PAD, e, stride):
                    right = left + width - 1
                    u[left - 1], u[right + 1] = u[left], u[right]
                    v[left - 1], v[right + 1] = v[left], v[right]
                if bottom == height:
                    u[e : e + stride] = u[e - stride : e]
                    v[e : e + stride] = v[e - stride : e]
            top, bottom = max(front - k - 1, 0), min(front + band - k - 1, height)
            if top < bottom:
                b, e = (top + PAD) * stride, (bottom + PAD) * stride
                _dual(
                    u[b:e], u[b + 1 : e + 1], u[b + stride : e + stride],
                    v[b:e], v[b + 1 : e + 1], v[b + stride : e + stride], px[b:e], py[b:e], qx[b:e], qy[b:e], rate,
                )  # fmt: skip


@_kernel
def _sort2(a, b):
    return min(a, b), max(a, b)


@_kernel
def _sort3(a, b, c):
    a, b = _sort2(a, b)
    b, c = _sort2(b, c)
    a, b = _sort2(a, b)
    return a, b, c


@_kernel
def _median9(a, b, c, d, e, f, g, h, i, out):
    """Median of each three columns: of the largest low, the middle one of the middle ones, and the smallest high."""
    for x in range(out.size):
        low0, middle0, high0 = _sort3(a[x], b[x], c[x])
        low1, middle1, high1 = _sort3(d[x], e[x], f[x])
        low2, middle2, high2 = _sort3(g[x], h[x], i[x])
        low, high = max(low0, max(low1, low2)), min(high0, min(high1, high2))
        _, middle, _ = _sort3(middle0, middle1, middle2)
        _, out[x], _ = _sort3(low, middle, high)


@_kernel
def _median(image, height, width, out):
    """Median of 9 of 5 x 5 pixels, every other one: nearly as good as that of all 25, and much cheaper."""
    _replicate(image, height, width)
    stride = _stride(width)
    b, e, s = PAD * stride + PAD, (height + PAD) * stride - PAD, 2 * stride
    _median9(
        image[b - 2 - s : e - 2 - s], image[b - 2 : e - 2], image[b - 2 + s : e - 2 + s],
        image[b - s : e - s], image[b:e], image[b + s : e + s],
        image[b + 2 - s : e + 2 - s], image[b + 2 : e + 2], image[b + 2 + s : e + 2 + s], out[b:e],
    )  # fmt: skip


@_kernel
def _begins(sizes):
    """Where the plane of each level begins in the array of all planes, and where the last one ends."""
    begin = np.zeros(len(sizes) + 1, np.int64)
    for level in range(len(sizes)):
        begin[level + 1] = begin[level] + (sizes[level, 0] + 2 * PAD) * _stride(sizes[level, 1])
    return begin


@_kernel
def pyramid(image, sizes, sigma):
    """All levels of an image, float32 [H, W], for `coarse_to_fine`: their planes one after the other, the finest first.

    sizes: int64 [levels, 2], height and width of each level; sigma: see `_shrink`
    """
    height, width = image.shape
    stride, begin = _stride(width), _begins(sizes)
    out = np.zeros(begin[-1], f32)
    for y in range(height):
        for x in range(width):
            out[(y + PAD) * stride + PAD + x] = image[y, x]
    _replicate(out, height, width)
    for level in range(1, len(sizes)):
        fine, coarse = out[begin[level - 1] :], out[begin[level] :]
        h, w, to_h, to_w = sizes[level - 1, 0], sizes[level - 1, 1], sizes[level, 0], sizes[level, 1]
        _shrink(fine, h, w, coarse, to_h, to_w, sigma)
    return out


@_kernel
def _column_and_row(height, width, grid):
    """Write the column and the row of each pixel, counted from the image's corner, into grid[0] and grid[1]."""
    stride = _stride(width)
    for y in range(height):
        b = (y + PAD) * stride
        for x in range(stride):
            grid[0, b + x], grid[1, b + x] = x - PAD, y


@_kernel
def _solve_level(
    one, flow, other, data, dual, doubled, grid, work, height, width, bound, tightness, rate, warps, iterations
):
    """TV-L1 flow at one size, starting from `flow`: warp and linearise, iterate, take the median, `warps` times.

    one: plane of the first image; doubled: the second one, see `_double`; data: planes, the first two the gradient of `one`;
    work: index, part_x, part_y of `_linearise`. Returns the flow and the free planes: `flow` and `other`, in either order.
    """
    index, part_x, part_y = work
    dual[:] = 0
    for _ in range(warps):
        _linearise(one, doubled, flow, grid, data, height, width, index, part_x, part_y)
        _iterate(flow, data, dual, height, width, iterations, bound, tightness, rate)
        for component in range(2):
            _median(flow[component], height, width, other[component])
        flow, other = other, flow
    return flow, other


@_kernel
def coarse_to_fine(first, second, sizes, bound, tightness, rate, warps, iterations):
    """The flow, float32 [H, W, 2], between two images given by their pyramids, solved level by level from the coarsest,
    each starting from the enlarged flow of the level before.

    first, second, sizes: see `pyramid`; the others: see `tvl1`
    """
    levels, begin = len(sizes), _begins(sizes)
    height, width = sizes[0, 0], sizes[0, 1]
    flow, other = np.zeros((2, begin[1]), f32), np.zeros((2, begin[1]), f32)
    data, dual, grid = np.zeros((4, begin[1]), f32), np.empty((4, begin[1]), f32), np.zeros((2, begin[1]), f32)
    doubled = np.empty(4 * height * width, f32)
    work = np.empty(BAND, np.int32), np.empty(BAND, f32), np.empty(BAND, f32)
    for level in range(levels - 1, -1, -1):
        h, w = sizes[level, 0], sizes[level, 1]
        if level < levels - 1:
            coarse_h, coarse_w = sizes[level + 1, 0], sizes[level + 1, 1]
            for component, growth in ((0, w / coarse_w), (1, h / coarse_h)):
                _replicate(flow[component], coarse_h, coarse_w)
                _enlarge(flow[component], coarse_h, coarse_w, other[component], h, w, f32(growth))
            flow, other = other, flow
        one, two = first[begin[level] :], second[begin[level] :]
        _gradient(one, h, w, data[0], data[1])
        _double(two, h, w, doubled)
        _column_and_row(h, w, grid)
        flow, other = _solve_level(
            one, flow, other, data, dual, doubled, grid, work, h, w, bound, tightness, rate, warps, iterations
        )
    out = np.empty((height, width, 2), f32)
    stride = _stride(width)
    for y in range(height):
        for x in range(width):
            i = (y + PAD) * stride + PAD + x
            out[y, x, 0], out[y, x, 1] = flow[0, i], flow[1, i]
    return out
