"""Motion boundaries: the spatial derivatives of optical flow [thesis eq. 2.1, 2.2]."""

from __future__ import annotations

import numpy as np

from labelgen.compiled import njit

f32 = np.float32


def motion_boundaries(flow: np.ndarray) -> np.ndarray:
    """Motion boundaries: the spatial derivatives of a flow, 3 x 3 Prewitt divided by 6, with a replicated border.

    Parameters
    ----------
    flow : float32 [H, W, 2]
        (u, v) in pixels per frame.

    Returns
    -------
    float32 [4, H, W]
        u_x, u_y, v_x, v_y in pixels per frame and pixel.

    Examples
    --------
    >>> y, x = np.mgrid[:16, :16]
    >>> u_x, u_y, v_x, v_y = motion_boundaries(np.dstack([3 * x, -y]))
    >>> float(u_x[8, 8]), float(u_y[8, 8]), float(v_x[8, 8]), float(v_y[8, 8])
    (3.0, 0.0, 0.0, -1.0)
    """
    return _motion_boundaries(np.ascontiguousarray(flow, f32))


@njit(nogil=True, error_model="numpy")
def _motion_boundaries(flow):
    # The two outer terms are added first, so that a mirrored flow gives the mirrored result to the last bit.
    height, width = flow.shape[:2]
    out = np.empty((4, height, width), f32)
    across, along = np.empty(width + 2, f32), np.empty(width + 2, f32)
    for component in range(2):
        for y in range(height):
            above, line, below = flow[max(y - 1, 0)], flow[y], flow[min(y + 1, height - 1)]
            for x in range(width):
                across[x + 1] = (above[x, component] + below[x, component]) + line[x, component]
                along[x + 1] = below[x, component] - above[x, component]
            for sums in (across, along):
                sums[0], sums[width + 1] = sums[1], sums[width]
            along_x, along_y = out[2 * component, y], out[2 * component + 1, y]
            for x in range(width):
                along_x[x] = (across[x + 2] - across[x]) / f32(6)
                along_y[x] = ((along[x] + along[x + 2]) + along[x + 1]) / f32(6)
    return out
