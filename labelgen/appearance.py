"""Appearance statistics: where colours change most and least, and which colour is there [thesis 2.2.3, Alg. 2]."""

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from labelgen.patterns import BLOCKS, mirrored_blocks, patterns

LABELS = 13
_BLOCKS = np.array(BLOCKS)


def appearance_statistics(frames: np.ndarray, corners: np.ndarray, crop: int) -> np.ndarray:
    """The 13 appearance labels of a clip for each crop, plain and mirrored.

    frames:  RGB uint8 [T, H, W, 3]
    corners: int16 [crops, 2], y and x of each crop's corner; crop: its side in pixels

    Returns uint8 [crops, 2, 13] in the order p_l c_l p_s c_s of patterns 1, 2, 3, then C. p_l is the block whose colour
    histograms (256 bins per channel) overlap least over the frames, p_s the one where they overlap most, c_l and c_s the
    dominant of 8 colours of that block, C that of the crop. Ties go to the lowest id.
    """
    atoms, members = _atoms(crop)
    labels = np.empty((len(corners), 2, LABELS), np.uint8)
    _appearance_statistics(np.ascontiguousarray(frames), corners, atoms, members, _BLOCKS, mirrored_blocks(), labels)
    return labels


@functools.cache
def _atoms(crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces that no pattern cuts: atom of each pixel uint8 [crop, crop], and its block in each pattern uint8 [atoms, 3].
    A pixel is then counted once, not once per pattern."""
    ids = patterns(crop).reshape(3, -1)
    members, atoms = np.unique(ids.T, axis=0, return_inverse=True)
    return atoms.reshape(crop, crop).astype(np.uint8), members


@njit(cache=True, nogil=True)
def _appearance_statistics(frames, corners, atoms, members, blocks, mirror, labels):
    length, height, width, _ = frames.shape
    crop, n_atoms = atoms.shape[0], len(members)
    colour = np.empty((length, height, width), np.uint8)
    for t in range(length):
        for y in range(height):
            for x in range(width):
                r, g, b = frames[t, y, x]
                colour[t, y, x] = (r >> 7 << 2) | (g >> 7 << 1) | (b >> 7)
    planes = np.empty((3, length, height, width), np.uint8)
    for channel in range(3):
        planes[channel] = frames[..., channel]

    counts = np.empty((n_atoms, 256), np.uint16)
    histogram = np.empty((28, 256), np.uint16)  # blocks of the three patterns, one after the other
    smallest, largest = np.empty((28, 256), np.uint16), np.empty((28, 256), np.uint16)
    colours = np.empty((n_atoms, 8), np.int64)
    block_colours = np.empty((28, 8), np.int64)
    score = np.empty(28)
    for c in range(len(corners)):
        top, left = corners[c]
        score[:] = 0
        for channel in range(3):
            for t in range(length):
                counts[:] = 0
                for y in range(crop):
                    line = planes[channel, t, top + y, left : left + crop]
                    for x in range(crop):
                        counts[atoms[y, x], line[x]] += 1
                histogram[:] = 0
                for atom in range(n_atoms):
                    base = 0
                    for pattern in range(3):
                        histogram[base + members[atom, pattern]] += counts[atom]
                        base += blocks[pattern]
                if t == 0:
                    smallest[:] = histogram
                    largest[:] = histogram
                else:
                    smallest[:] = np.minimum(smallest, histogram)
                    largest[:] = np.maximum(largest, histogram)
            for block in range(28):
                low, high = np.int64(0), np.int64(0)
                for k in range(256):
                    low += smallest[block, k]
                    high += largest[block, k]
                score[block] += low / high

        colours[:] = 0
        for t in range(length):
            for y in range(crop):
                line = colour[t, top + y, left : left + crop]
                for x in range(crop):
                    colours[atoms[y, x], line[x]] += 1
        block_colours[:] = 0
        for atom in range(n_atoms):
            base = 0
            for pattern in range(3):
                block_colours[base + members[atom, pattern]] += colours[atom]
                base += blocks[pattern]

        for mirrored in range(2):
            base = 0
            for pattern in range(3):
                diverse = stable = -1
                for b in range(blocks[pattern]):
                    here = base + (mirror[pattern, b] if mirrored else b)
                    if diverse < 0 or score[here] < score[base + _at(mirror, pattern, diverse, mirrored)]:
                        diverse = b
                    if stable < 0 or score[here] > score[base + _at(mirror, pattern, stable, mirrored)]:
                        stable = b
                labels[c, mirrored, 4 * pattern] = diverse
                labels[c, mirrored, 4 * pattern + 1] = np.argmax(
                    block_colours[base + _at(mirror, pattern, diverse, mirrored)]
                )
                labels[c, mirrored, 4 * pattern + 2] = stable
                labels[c, mirrored, 4 * pattern + 3] = np.argmax(
                    block_colours[base + _at(mirror, pattern, stable, mirrored)]
                )
                base += blocks[pattern]
            labels[c, mirrored, 12] = np.argmax(block_colours[:16].sum(0))


@njit(cache=True, nogil=True)
def _at(mirror, pattern, block, mirrored):
    return mirror[pattern, block] if mirrored else block
