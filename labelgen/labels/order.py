"""Clip order: the order in which a few clips of a video are shown [vcop 3.1]."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from labelgen.labels.kind import NO_ROW, Arrays, Field, Kind, Labels, Settings, histogram
from labelgen.labels.sampling import crossed, sound_starts

if TYPE_CHECKING:
    from labelgen.config import Config

GAP = 8  # frames between two clips of a row


def order_permutations(clips: int) -> np.ndarray:
    """All orders of `clips` clips in lexicographic order, uint8 [clips!, clips]; element i of a row is the original
    index of the clip shown at position i [vcop 3.1]."""
    return np.array(list(permutations(range(clips))), np.uint8)


def order_rows(
    n_frames: int, clips: int, rows: int, length: int, rng: np.random.Generator, damage: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw `rows` tuples of `clips` clips of `length` frames, 8 frames apart, start and permutation uniform [vcop 3.1].

    Returns start int32 [rows, clips] and permutation uint8 [rows]; None if the video is too short. damage: see `sound_starts`.
    """
    step = length + GAP
    fitting = sound_starts(n_frames, clips * step - GAP - 1, damage)
    if not len(fitting):
        return None
    first = fitting[rng.integers(len(fitting), size=rows)]
    permutation = rng.integers(math.factorial(clips), size=rows)
    return (first[:, None] + step * np.arange(clips)).astype(np.int32), permutation.astype(np.uint8)


def _of_video(
    n_frames: int, config: Config, rng: np.random.Generator, damage: np.ndarray | None = None
) -> Labels | None:
    rows = order_rows(n_frames, config.order_clips, config.rows, config.clip_length, rng, damage)
    return rows and dict(zip(("order/start", "order/permutation"), rows, strict=True))


def _classes(config: Settings) -> int:
    return math.factorial(config["order_clips"])


def _faults(arrays: Arrays, config: Settings) -> Iterator[tuple[str, bool]]:
    lengths = arrays["videos/n_frames"][:, None, None].astype(np.int64)
    start, used = arrays["order/start"].astype(np.int64), arrays["order/permutation"] != NO_ROW
    yield "order/permutation", bool((used.any(1) != used.all(1)).any())
    outside = (start < 0) | (start + config["clip_length"] > lengths)
    overlapping = np.diff(start, axis=-1) < config["clip_length"]
    yield "order/start", bool(outside[used].any() or overlapping[used].any() or (start[~used] != -1).any())
    first, last = start[used][:, 0], start[used][:, -1] + config["clip_length"] - 1
    yield "order/start", bool(crossed(arrays, np.nonzero(used)[0], first, last).any())


def _lines(arrays: Arrays, config: Settings) -> Iterator[str]:
    rows = arrays["order/permutation"]
    shares = histogram("order", rows[rows != NO_ROW], _classes(config))
    yield f"{shares}; {ORDER.too_short(arrays).sum()} videos too short"


ORDER = Kind(
    name="order",
    version=1,
    constants={"gap": GAP},
    fields=(
        Field(
            "order/start",
            np.int32,
            ("videos", "rows", "order_clips"),
            "first frames of the clips, in their original order",
            missing=-1,
        ),
        Field(
            "order/permutation",
            np.uint8,
            ("videos", "rows"),
            "index of the order in which they are shown, among the n! orders (lexicographic)",
            _classes,
            missing=NO_ROW,
        ),
    ),
    of_video=_of_video,
    faults=_faults,
    lines=_lines,
)
