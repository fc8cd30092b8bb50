"""The three partitions of a crop into blocks, the grid of crops, and the mirror [thesis 2.2.2]."""

from __future__ import annotations

import functools

import numpy as np

BLOCKS = (16, 4, 8)  # number of blocks: grid, rings, triangles
GRID_STEP = 8  # pixels between neighbouring crops
MIN_MOTION = 1e-3  # pixels per frame and pixel; a block with a smaller mean magnitude does not move


@functools.cache
def patterns(crop: int) -> np.ndarray:
    """Block id of every pixel of a crop, uint8 [3, crop, crop]: grid 4 x 4, rings, triangles (methods: patterns 1 to 3).

    Grid: squares, row-major. Rings: centred squares of side crop/4 .. crop, 0 is the inner one. Triangles: cut by the two
    centre lines and the two diagonals, in the order top-left lower/upper, top-right upper/lower, bottom-left
    upper/lower, bottom-right lower/upper; a diagonal's pixels belong to the triangle at the crop's left or right side,
    so that the mask equals its own mirror image.

    Raises ValueError if the crop cannot be cut evenly.
    """
    if crop < 8 or crop % 8:
        raise ValueError(f"crop is {crop} pixels; expected a positive multiple of 8, such as 112")
    y, x = np.mgrid[:crop, :crop]
    grid = y * 4 // crop * 4 + x * 4 // crop
    from_edge = np.minimum.reduce([y, x, crop - 1 - y, crop - 1 - x])
    rings = 3 - from_edge * 8 // crop
    near_y, near_x = np.minimum(y, crop - 1 - y), np.minimum(x, crop - 1 - x)
    at_side = near_x <= near_y  # nearer to the left or right side than to the top or bottom
    quadrant = 2 * (y >= crop // 2) + (x >= crop // 2)
    side_id, other_id = np.array([0, 3, 4, 7]), np.array([1, 2, 5, 6])
    triangles = np.where(at_side, side_id[quadrant], other_id[quadrant])
    return _frozen(np.stack([grid, rings, triangles]).astype(np.uint8))


@functools.cache
def areas(crop: int) -> np.ndarray:
    """Pixels per block, int64 [3, 16]; zero where a pattern has fewer blocks."""
    return _frozen(np.stack([np.bincount(ids.ravel(), minlength=16) for ids in patterns(crop)]))


@functools.cache
def atoms(crop: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces that no pattern divides, so that each pixel is counted once, not once per pattern.

    Returns the atom of every pixel, uint8 [crop, crop], and each atom's block in each pattern, uint8 [atoms, 3].
    """
    members, atom = np.unique(patterns(crop).reshape(3, -1).T, axis=0, return_inverse=True)
    return _frozen(atom.reshape(crop, crop).astype(np.uint8)), _frozen(members)


@functools.cache
def mirrored_blocks() -> np.ndarray:
    """uint8 [3, 16]: the block in each block's place after the crop is mirrored."""
    ids = patterns(8)
    table = np.zeros((3, 16), np.uint8)
    for pattern in range(3):
        table[pattern][ids[pattern]] = ids[pattern][:, ::-1]
    return _frozen(table)


@functools.cache
def crop_grid(height: int, width: int, crop: int) -> np.ndarray:
    """Corners (y, x) of all labelled crops of a frame, int16 [crops, 2]: the centre crop and those 8, 16, ... pixels away.

    Raises ValueError if the crop does not fit into the frame.
    """
    if crop > min(height, width):
        raise ValueError(f"crop of {crop} pixels does not fit into frames of {height} x {width}")
    corners = [np.arange((size - crop) // 2 % GRID_STEP, size - crop + 1, GRID_STEP) for size in (height, width)]
    return _frozen(np.stack(np.meshgrid(*corners, indexing="ij"), -1).reshape(-1, 2).astype(np.int16))


def centre_crop(height: int, width: int, crop: int) -> int:
    """Index of the centre crop in `crop_grid`."""
    centre = [(height - crop) // 2, (width - crop) // 2]
    return int(np.flatnonzero((crop_grid(height, width, crop) == centre).all(1))[0])


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False  # cached and shared
    return array
