"""Appearance statistics: the blocks whose colours change most and least, and their dominant colours [thesis 2.2.3, Alg. 2]."""

from __future__ import annotations

import numpy as np

from labelgen.compiled import njit
from labelgen.labels.patterns import BLOCKS, atoms, mirrored_blocks

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
    atom, members = atoms(crop)
    labels = np.empty((len(corners), 2, LABELS), np.uint8)
    counts = np.empty((len(members), 256), np.uint16 if crop * crop < 1 << 16 else np.uint32)
    frames = np.ascontiguousarray(frames)
    _appearance_statistics(frames, corners, atom, members, _BLOCKS, mirrored_blocks(), labels, counts)
    return labels


@njit(nogil=True)
def _appearance_statistics(frames, corners, atom, members, blocks, mirror, labels, counts):
    length, height, width, _ = frames.shape
    crop, n_atoms = len(atom), len(members)
    planes = np.empty((3, length, height, width), np.uint8)
    for channel in range(3):
        planes[channel] = frames[..., channel]
    colour = _colours(frames)

    histogram = np.empty((28, 256), counts.dtype)  # the blocks of all three patterns
    smallest, largest = np.empty_like(histogram), np.empty_like(histogram)
    atom_colours, block_colours = np.empty((n_atoms, 8), np.int32), np.empty((28, 8), np.int32)
    score = np.empty(28)
    for c in range(len(corners)):
        top, left = corners[c]
        score[:] = 0
        for channel in range(3):
            smallest[:], largest[:] = crop * crop, 0
            for t in range(length):
                counts[:] = 0
                for y in range(crop):
                    line = planes[channel, t, top + y, left : left + crop]
                    for x in range(crop):
                        counts[atom[y, x], line[x]] += 1
                _join_atoms(counts, members, blocks, histogram)
                for block in range(28):
                    for k in range(256):
                        smallest[block, k] = min(smallest[block, k], histogram[block, k])
                        largest[block, k] = max(largest[block, k], histogram[block, k])
            for block in range(28):
                low, high = np.int64(0), np.int64(0)
                for k in range(256):
                    low += smallest[block, k]
                    high += largest[block, k]
                score[block] += low / high

        atom_colours[:] = 0
        for y in range(crop):
            for x in range(crop):
                for k in range(8):
                    atom_colours[atom[y, x], k] += colour[top + y, left + x, k]
        _join_atoms(atom_colours, members, blocks, block_colours)

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


@njit(nogil=True)
def _at(mirror, pattern, block, mirrored):
    return mirror[pattern, block] if mirrored else block


@njit(nogil=True)
def _colours(frames):
    """The number of frames in which each pixel has each of the 8 colours."""
    length, height, width, _ = frames.shape
    colour = np.zeros((height, width, 8), np.int32)
    for t in range(length):
        for y in range(height):
            for x in range(width):
                r, g, b = frames[t, y, x]
                colour[y, x, (r >> 7 << 2) | (g >> 7 << 1) | (b >> 7)] += 1
    return colour


@njit(nogil=True)
def _join_atoms(counts, members, blocks, joined):
    """Histograms of the blocks of all patterns, from the histograms of their atoms."""
    joined[:] = 0
    for a in range(len(members)):
        base = 0
        for pattern in range(3):
            block = base + members[a, pattern]
            for k in range(counts.shape[1]):  # a loop is several times as fast as adding slices
                joined[block, k] += counts[a, k]
            base += blocks[pattern]
