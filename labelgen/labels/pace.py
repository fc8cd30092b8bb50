"""Pace: the speed at which a clip of a video is played [thesis 4.2.2]."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from labelgen.labels.kind import NO_ROW, Arrays, Field, Kind, Labels, Settings, histogram
from labelgen.labels.sampling import crossed, sound_starts

if TYPE_CHECKING:
    from labelgen.config import Config


def pace_offsets(pace: Fraction, length: int) -> np.ndarray:
    """Offsets floor(i * pace), int64 [length], relative to the first frame shown. Negative paces play backwards."""
    return np.array([i * pace.numerator // pace.denominator for i in range(length)], np.int64)


def pace_frames(start: int, pace: Fraction, length: int) -> np.ndarray:
    """Frames of a clip at a pace, int64 [length]: start + floor(i * pace) [thesis 4.2.2]."""
    return start + pace_offsets(pace, length)


def pace_rows(
    n_frames: int,
    paces: tuple[Fraction, ...],
    rows: int,
    length: int,
    rng: np.random.Generator,
    allow_wrap: bool = False,
    wrap_any: bool = False,
    damage: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Draw `rows` pace clips of a video: first the pace, uniformly from the set, then the start among those that fit.

    Returns start int32 [rows], label uint8 [rows] (index into `paces`) and wrapped uint8 [rows]; None if the video is
    too short for the largest pace. With `allow_wrap` such a video is kept: a row that does not fit continues from the
    video's first frame and is marked. With `wrap_any`, the rule of the authors' code, each row starts uniformly among
    all frames, and if it passes the end it continues likewise, so that a cut gives less of the pace away. damage: see
    `sound_starts`; a damaged video is not wrapped, because a wrapped clip may show all of it.
    """
    offsets = [pace_offsets(pace, length) for pace in paces]
    spans = [int(offset.max() - offset.min()) for offset in offsets]
    fitting = [sound_starts(n_frames, span, damage) for span in spans]
    sound = damage is None or not damage.any()
    if not all(map(len, fitting)) and not (sound and (allow_wrap or wrap_any)):
        return None
    label = rng.integers(len(paces), size=rows)
    position = rng.random(rows)
    if wrap_any and sound:
        start = (position * n_frames).astype(np.int32)
        low, high = np.array([(offset.min(), offset.max()) for offset in offsets])[label].T
        return start, label.astype(np.uint8), ((start + low < 0) | (start + high >= n_frames)).astype(np.uint8)
    start = np.empty(rows, np.int32)
    wrapped = np.zeros(rows, np.uint8)
    for row, pace in enumerate(label):
        if found := len(fitting[pace]):
            # a clip that plays backwards starts at its highest frame
            start[row] = fitting[pace][int(position[row] * found)] - int(offsets[pace].min())
        else:
            start[row], wrapped[row] = int(position[row] * n_frames), 1
    return start, label.astype(np.uint8), wrapped


def _of_video(
    n_frames: int, config: Config, rng: np.random.Generator, damage: np.ndarray | None = None
) -> Labels | None:
    wrap = config.allow_wrap, config.wrap_any
    rows = pace_rows(n_frames, config.fractions, config.rows, config.clip_length, rng, *wrap, damage)
    return rows and dict(zip(("pace/start", "pace/pace", "pace/wrapped"), rows, strict=True))


@functools.lru_cache(maxsize=16)
def _limits(paces: tuple[str, ...], length: int) -> np.ndarray:
    """The lowest and the highest offset of each pace, int64 [paces, 2]."""
    offsets = [pace_offsets(Fraction(pace), length) for pace in paces]
    return np.array([(offset.min(), offset.max()) for offset in offsets])


def _faults(arrays: Arrays, config: Settings) -> Iterator[tuple[str, bool]]:
    lengths = arrays["videos/n_frames"][:, None].astype(np.int64)
    pace, begin, wrapped = arrays["pace/pace"], arrays["pace/start"], arrays["pace/wrapped"]
    limits = _limits(tuple(config["paces"]), config["clip_length"])
    used, known = pace != NO_ROW, pace < len(limits)
    yield "pace/pace", bool((used.any(1) != used.all(1)).any())
    yield "pace/wrapped", bool((wrapped > (config["allow_wrap"] or config.get("wrap_any", False))).any())
    low, high = np.moveaxis(limits[np.where(known, pace, 0)], -1, 0)
    outside = np.where(wrapped, (begin < 0) | (begin >= lengths), (begin + low < 0) | (begin + high >= lengths))
    yield "pace/start", bool((outside & known).any() or (begin[~used] != -1).any())
    first, last = np.where(wrapped, 0, begin + low), np.where(wrapped, lengths - 1, begin + high)
    yield "pace/start", bool(crossed(arrays, np.nonzero(known)[0], first[known], last[known]).any())


def _lines(arrays: Arrays, config: Settings) -> Iterator[str]:
    rows = arrays["pace/pace"]
    shares = histogram("pace", rows[rows != NO_ROW], len(config["paces"]))
    yield f"{shares}; {PACE.too_short(arrays).sum()} videos too short"


_ROWS = ("videos", "rows")
PACE = Kind(
    name="pace",
    version=1,
    settings=("paces",),
    fields=(
        Field("pace/start", np.int32, _ROWS, "frame `i` of the clip is `start + floor(i * pace)`", missing=-1),
        Field(
            "pace/pace",
            np.uint8,
            _ROWS,
            "index into the attribute `paces` of `/pace` (JSON, fractions as strings)",
            lambda config: len(config["paces"]),
            missing=NO_ROW,
        ),
        Field("pace/wrapped", np.uint8, _ROWS, "1 if the clip continues from the first frame", lambda config: 2),
    ),
    of_video=_of_video,
    faults=_faults,
    lines=_lines,
)
