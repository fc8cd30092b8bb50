"""Motion statistics: place, direction and time of the largest motion in a clip [thesis 2.2.2, Alg. 1]."""

from __future__ import annotations

import numpy as np

from labelgen.compiled import njit
from labelgen.labels.patterns import BLOCKS, MIN_MOTION, areas, atoms, mirrored_blocks

LABELS = 14
_BLOCKS = np.array(BLOCKS)
# Magnitudes are summed as integers of 2^-20, so that sums and ties do not depend on the order of the pixels.
_UNIT = float(1 << 20)


def motion_statistics(boundaries: np.ndarray, corners: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """The 14 motion labels of a clip for each crop, plain and mirrored.

    boundaries: float32 [T - 1, 4, H, W], the motion boundaries of the clip's flows
    corners:    int16 [crops, 2], y and x of each crop's corner; crop: its side in pixels

    Returns labels uint8 [crops, 2, 14] in the order p_u o_u p_v o_v of patterns 1, 2, 3, then I_u I_v, and valid
    uint8 [crops, 2, 14], 0 where the component hardly moves, so that its label is meaningless. p is the block of the
    largest mean magnitude of the summed boundary, o its dominant orientation (sectors of 45 degrees, counter-clockwise
    from the right, each pixel votes with its magnitude), I the flow of the largest boundary. Ties go to the lowest id.
    """
    labels = np.zeros((len(corners), 2, LABELS), np.uint8)
    valid = np.zeros_like(labels)
    shapes = *atoms(crop), areas(crop), _BLOCKS, mirrored_blocks()
    _motion_statistics(boundaries, boundaries.sum(0), corners, *shapes, MIN_MOTION, labels, valid)
    return labels, valid


@njit(nogil=True)
def sector(x, y):
    """Sector 0..7 of the direction (x, y), y downward: floor(atan2(-y, x) / 45 degrees), computed without rounding."""
    if y <= 0:
        if x > 0:
            return 0 if -y < x else 1
        if -y > -x:
            return 2
        return 3 if y < 0 else 4
    if x < 0:
        return 4 if y < -x else 5
    return 6 if x < y else 7


@njit(nogil=True)
def _motion_statistics(boundaries, summed, corners, atom, members, area, blocks, mirror, least, labels, valid):
    flows, _, height, width = boundaries.shape
    crop = len(atom)
    magnitude = np.empty((2, height, width), np.int64)
    sectors = np.empty((2, 2, height, width), np.uint8)  # plain, mirrored
    for component in range(2):
        # mirroring turns (u_x, u_y) into (u_x, -u_y) and (v_x, v_y) into (-v_x, v_y)
        flip_x, flip_y = (1, -1) if component == 0 else (-1, 1)
        for y in range(height):
            for x in range(width):
                dx, dy = summed[2 * component, y, x], summed[2 * component + 1, y, x]
                magnitude[component, y, x] = _fixed(dx, dy)
                sectors[component, 0, y, x] = sector(dx, dy)
                sectors[component, 1, y, x] = sector(flip_x * dx, flip_y * dy)

    when, moves = np.zeros((len(corners), 2), np.uint8), np.zeros((len(corners), 2), np.uint8)
    _largest_flow(boundaries, corners, crop, when)
    atom_votes, votes = np.empty((2, len(members), 8), np.int64), np.empty((3, 16, 8), np.int64)
    for c in range(len(corners)):
        top, left = corners[c]
        for component in range(2):
            atom_votes[:] = 0
            for y in range(crop):
                for x in range(crop):
                    weight = magnitude[component, top + y, left + x]
                    atom_votes[0, atom[y, x], sectors[component, 0, top + y, left + x]] += weight
                    atom_votes[1, atom[y, x], sectors[component, 1, top + y, left + x]] += weight
            for mirrored in range(2):
                votes[:] = 0
                for a in range(len(members)):
                    for pattern in range(3):
                        block = mirror[pattern, members[a, pattern]] if mirrored else members[a, pattern]
                        votes[pattern, block] += atom_votes[mirrored, a]
                for pattern in range(3):
                    block, most = 0, -1.0
                    for b in range(blocks[pattern]):
                        mean = votes[pattern, b].sum() / (_UNIT * area[pattern, b])
                        if mean > most:
                            block, most = b, mean
                    orientation = 0
                    for k in range(1, 8):
                        if votes[pattern, block, k] > votes[pattern, block, orientation]:
                            orientation = k
                    at = 4 * pattern + 2 * component
                    labels[c, mirrored, at], labels[c, mirrored, at + 1] = block, orientation
                    if most >= least:
                        valid[c, mirrored, at : at + 2] = 1
                        moves[c, component] = 1
            for mirrored in range(2):
                labels[c, mirrored, 12 + component] = when[c, component]
                valid[c, mirrored, 12 + component] = moves[c, component]


@njit(nogil=True)
def _fixed(dx, dy):
    return np.int64(np.sqrt(np.float64(dx) * dx + np.float64(dy) * dy) * _UNIT + 0.5)


@njit(nogil=True)
def _largest_flow(boundaries, corners, crop, when):
    """Index of the flow whose boundary magnitude, summed over the crop, is largest, by integral images."""
    flows, _, height, width = boundaries.shape
    integral = np.zeros((height + 1, width + 1), np.int64)
    for component in range(2):
        largest = np.full(len(corners), -1, np.int64)
        for t in range(flows):
            for y in range(height):
                row = np.int64(0)
                for x in range(width):
                    row += _fixed(boundaries[t, 2 * component, y, x], boundaries[t, 2 * component + 1, y, x])
                    integral[y + 1, x + 1] = integral[y, x + 1] + row
            for c in range(len(corners)):
                y, x = corners[c]
                total = integral[y + crop, x + crop] - integral[y, x + crop] - integral[y + crop, x] + integral[y, x]
                if total > largest[c]:
                    largest[c], when[c, component] = total, t
