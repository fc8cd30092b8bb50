"""Which frames a pretext task shows: labelled clips, pace rows and order rows."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import permutations

import numpy as np

CLIP_LENGTH = 16
ORDER_GAP = 8  # frames between two clips of an order row


def generator(seed: int, purpose: str, video_id: str) -> np.random.Generator:
    """A generator that depends on its arguments alone, never on worker, order or restart."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{video_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.frombuffer(digest, np.uint32)))


def pace_offsets(pace: Fraction) -> np.ndarray:
    """Offsets floor(i * pace), int64 [16], relative to the first frame shown. Negative paces play backwards."""
    return np.array([i * pace.numerator // pace.denominator for i in range(CLIP_LENGTH)], np.int64)


def pace_frames(start: int, pace: Fraction) -> np.ndarray:
    """Frames of a clip at a pace, int64 [16]: start + floor(i * pace) [thesis 4.2.2]."""
    return start + pace_offsets(pace)


def pace_rows(
    n_frames: int, paces: tuple[Fraction, ...], rows: int, rng: np.random.Generator, allow_wrap: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Draw `rows` pace clips of a video: pace first, uniformly from the set, then the start among those that fit.

    Returns start int32 [rows], label uint8 [rows] (index into `paces`) and wrapped uint8 [rows]; None when the video is
    too short for the widest pace. With `allow_wrap` such a video is kept: a row that does not fit runs on from the
    video's first frame and is marked.
    """
    offsets = [pace_offsets(pace) for pace in paces]
    spans = [int(offset.max() - offset.min()) for offset in offsets]
    if n_frames <= max(spans) and not allow_wrap:
        return None
    label = rng.integers(len(paces), size=rows)
    position = rng.random(rows)
    start = np.empty(rows, np.int32)
    wrapped = np.zeros(rows, np.uint8)
    for row, pace in enumerate(label):
        fitting = n_frames - spans[pace]
        if fitting > 0:
            # a clip that plays backwards starts at the highest of its frames
            start[row] = int(position[row] * fitting) - int(offsets[pace].min())
        else:
            start[row], wrapped[row] = int(position[row] * n_frames), 1
    return start, label.astype(np.uint8), wrapped


def order_permutations(clips: int) -> np.ndarray:
    """All orders of `clips` clips in lexicographic order, uint8 [clips!, clips]; element i of a row is the original
    index of the clip shown at position i [vcop 3.1]."""
    return np.array(list(permutations(range(clips))), np.uint8)


def order_rows(n_frames: int, clips: int, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw `rows` tuples of `clips` clips of 16 frames, 8 frames apart, start and permutation uniform [vcop 3.1].

    Returns start int32 [rows, clips] and permutation uint8 [rows]; None when the video is too short.
    """
    step = CLIP_LENGTH + ORDER_GAP
    span = clips * step - ORDER_GAP
    if n_frames < span:
        return None
    first = rng.integers(n_frames - span + 1, size=rows)
    permutation = rng.integers(len(order_permutations(clips)), size=rows)
    return (first[:, None] + step * np.arange(clips)).astype(np.int32), permutation.astype(np.uint8)


def clip_starts(n_frames: int, clips: int | None, rng: np.random.Generator) -> np.ndarray:
    """First frames of the labelled clips, sorted int32 [n]: every non-overlapping clip (`clips` None), or `clips`
    different random starts."""
    if clips is None:
        return np.arange(0, n_frames - CLIP_LENGTH + 1, CLIP_LENGTH, dtype=np.int32)
    fitting = max(0, n_frames - CLIP_LENGTH + 1)
    return np.sort(rng.choice(fitting, min(clips, fitting), replace=False)).astype(np.int32)
