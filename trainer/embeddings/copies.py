"""Common parts of videos, found by their signatures: the same changes of the same pictures, at any time of both, mirrored or not.

1. Of each window of two seconds in which something moves, a descriptor: the lowest frequencies of its pictures in time and
   space. Neighbours among the descriptors of other videos give candidates: two videos and a shift between their times.
2. A candidate is accepted for those seconds in which, picture by picture, both show the same, and change in the same way.
   Two videos of one fixed camera show the same while nothing moves in both; only changes tell a copy from another take.

The time of the first step grows as n^1.5 with the number of windows, see `near`, that of the second one with the number of
candidates, of which each window gives at most a few. The only draw has a fixed seed, so that equal signatures give equal results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.embeddings.pictures import PIXELS, RATE, SHAPE

SIMILAR = 0.9  # smallest correlation of the changes of a common part
_SHORT, _STRICTER = 2.5, 0.4  # seconds, below which a part may differ by this share of what others may
LEAST = 4.5  # seconds of an excerpt; the ends of one of five seconds may be lost
SAME, WHOLE = 0.85, 0.9  # shares of the longer and of the shorter video that "same" and "excerpt" cover
_WINDOW, _EVERY, _ASKED = (
    2 * RATE,
    2,
    RATE,
)  # pictures: length of a window, steps between those that are found, and asked for
_LAG, _AROUND = (
    4,
    4,
)  # pictures: a change is a difference over half a second; changes within half a second before and after agree
_STILL = 0.5  # root mean square of a change, in levels of a signature, below which nothing moves
_SLOW = 0.1  # likewise, of the lowest frequencies of a window
_ROUNDING = PIXELS / 6  # variance of a change by the rounding of two pictures, summed over its pixels
_ALIKE, _AGREE = 0.85, 0.4  # smallest correlations of pictures, and of changes within a second
_CONTRAST = 2.0  # levels, below which a picture counts as flat
_BRIGHTNESS = 40.0  # levels, largest difference of the means of two pictures
_MOVING = 1.5  # seconds with changes in an excerpt; in a shorter video, half of it
_GAP = 6  # pictures between two parts of a second and more that are one, such as those around a cut
_NEAR = 0.7  # smallest cosine of neighbouring descriptors
_EXACT, _PROBED, _NEAREST = 1 << 16, 8, 10  # windows compared with all others; cells searched; neighbours of each
_BLOCK = 1 << 23  # products in memory
_SHIFTS = 3  # candidates of two videos


@dataclass(frozen=True)
class Match:
    """Pictures begin_a to begin_a + count of video a show what those of video b from begin_b on show, left and right
    exchanged if mirrored. begin_b: a multiple of 1/2; similarity: correlation of their changes, 0 to 1."""

    a: int
    b: int
    mirrored: bool
    begin_a: int
    begin_b: float
    count: int
    similarity: float

    def kind(self, length_a: int, length_b: int) -> str:
        """What the part is in videos of these lengths: "same", "excerpt", "shared part", or "" if it is too short."""
        if self.count >= SAME * max(length_a, length_b):
            return "same"
        if self.count < LEAST * RATE:
            return ""
        return "excerpt" if self.count >= WHOLE * min(length_a, length_b) else "shared part"


def _waves(length: int, count: int) -> np.ndarray:
    """The lowest frequencies of the orthonormal DCT-II, float32 [count, length]."""
    k, x = np.arange(count)[:, None], np.arange(length) + 0.5
    return (np.sqrt((2 - (k == 0)) / length) * np.cos(np.pi * k * x / length)).astype(np.float32)


_V, _H = (grid.ravel() for grid in np.mgrid[:4, :4])
_SPACE = np.einsum("vy,hx->vhyx", _waves(SHAPE[0], 4), _waves(SHAPE[1], 4)).reshape(16, PIXELS)[1:]
_TIME = _waves(_WINDOW, 5)[1:]
# natural changes fall with the frequency; half of that is made up for
_WEIGHT = (np.hypot(_V, _H)[1:, None] * np.arange(1, 5)).ravel().astype(np.float32) ** 0.5
_TURN: np.ndarray = np.repeat(np.where(_H[1:] % 2, -1, 1), 4).astype(np.float32)  # a mirrored window has these signs


def windows(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First pictures of the windows in which something moves, int64 [w], and their descriptors of length 1, float32 [w, 60].

    pictures: uint8 [n, 192]; the last one is held if n is less than a window.
    """
    levels = pictures.astype(np.float32) @ _SPACE.T
    if 0 < len(levels) < _WINDOW:
        levels = np.vstack([levels, np.repeat(levels[-1:], _WINDOW - len(levels), 0)])
    begins = np.arange(0, max(0, len(levels) - _WINDOW + 1), _EVERY)
    if not len(begins):
        return begins, np.empty((0, len(_WEIGHT)), np.float32)
    found = np.lib.stride_tricks.sliding_window_view(levels, _WINDOW, 0)[begins] @ _TIME.T  # [w, 15, 4]
    found = found.reshape(len(begins), -1)
    moving = np.sqrt((found**2).sum(1) / (_WINDOW * PIXELS)) >= _SLOW
    found = found[moving] * _WEIGHT
    return begins[moving], found / np.linalg.norm(found, axis=1, keepdims=True)


def near(
    base: np.ndarray, of_base: np.ndarray, query: np.ndarray, of_query: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Neighbours of each query among the base, at most ten per cell, as (rows of the query, rows of the base, cosines).

    base, query: descriptors float32 [n, 60]; of_base, of_query: their videos [n]; neighbours are of other videos. Up to
    65,536 descriptors are compared with all; more are divided into 2 sqrt(n) cells around as many of them, drawn by a
    fixed seed, and each query is compared with those of the eight nearest cells.
    """
    cells = 1 if len(base) <= _EXACT else int(2 * len(base) ** 0.5)
    centres = base[np.sort(np.random.default_rng(0).choice(len(base), cells, replace=False))]
    of_cell = _nearest_cells(base, centres, 1)[:, 0]
    members: np.ndarray = np.argsort(of_cell, kind="stable")
    begins = np.cumsum([0, *np.bincount(of_cell, minlength=cells)])
    probed = _nearest_cells(query, centres, _PROBED).ravel()
    asking: np.ndarray = np.argsort(probed, kind="stable")
    asked = np.cumsum([0, *np.bincount(probed, minlength=cells)])
    for cell in range(cells):
        rows = members[begins[cell] : begins[cell + 1]]
        queries: np.ndarray = asking[asked[cell] : asked[cell + 1]] // (len(probed) // len(query))
        step = max(1, _BLOCK // max(1, len(rows)))
        for some in (queries[begin : begin + step] for begin in range(0, len(queries), step)):
            cosines = query[some] @ base[rows].T
            cosines[of_query[some][:, None] == of_base[rows]] = -1
            place, column = np.nonzero(cosines >= _NEAR)
            values = cosines[place, column]
            order = np.lexsort((column, -values, place))
            rank = np.arange(len(order)) - np.searchsorted(place, place)  # place is sorted, before and after
            kept = order[rank < _NEAREST]
            yield some[place[kept]], rows[column[kept]], values[kept]


def _nearest_cells(vectors: np.ndarray, centres: np.ndarray, count: int) -> np.ndarray:
    """The nearest centres of vectors, int64 [n, count], or [n, centres] if there are fewer."""
    count = min(count, len(centres))
    found: np.ndarray = np.empty((len(vectors), count), np.int64)
    step = max(1, _BLOCK // len(centres))
    for begin in range(0, len(vectors), step):
        cosines = vectors[begin : begin + step] @ centres.T
        found[begin : begin + step] = np.argpartition(-cosines, count - 1, 1)[:, :count]
    return found


@dataclass(frozen=True)
class Signatures:
    """The signatures of videos. pictures: uint8 [m, 192], of all videos, may be a map of a file; bounds: first picture of each
    video and the end of the last one, int64 [videos + 1]."""

    pictures: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, video: int) -> np.ndarray:
        return self.pictures[self.bounds[video] : self.bounds[video + 1]]

    def levels(self, video: int, mirrored: bool = False) -> np.ndarray:
        """The pictures of a video, or their mirror images, float32 [n, 192]."""
        levels: np.ndarray = self[video].astype(np.float32)
        return levels.reshape(-1, *SHAPE)[..., ::-1].reshape(-1, PIXELS) if mirrored else levels


@dataclass(frozen=True)
class Candidate:
    """Videos a < b that may have a common part: picture `at` of a may be picture at + shift of b."""

    a: int
    b: int
    mirrored: bool
    at: int
    shift: int


def candidates(signatures: Signatures) -> list[Candidate]:
    """Pairs of videos with neighbouring windows, and the most frequent shifts between their times."""
    found = [windows(signatures[video]) for video in range(len(signatures))]
    owner: np.ndarray = np.repeat(np.arange(len(found)), [len(begins) for begins, _ in found])
    if not len(owner):
        return []
    begins, base = (np.concatenate(parts) for parts in zip(*found, strict=True))
    asked = np.flatnonzero((begins % _ASKED == 0) | (np.diff(owner, prepend=-1) != 0))
    votes = []
    for mirrored in (False, True):
        query = base[asked] * _TURN if mirrored else base[asked]
        for of_query, of_base, cosines in near(base, owner, query, owner[asked]):
            one, other = asked[of_query], of_base
            swapped = owner[one] > owner[other]
            one, other = np.where(swapped, other, one), np.where(swapped, one, other)
            shift = begins[other] - begins[one]
            votes.append((owner[one], owner[other], np.full(len(one), mirrored), shift, begins[one], cosines))
    a, b, mirrored, shift, at, cosines = (np.concatenate(column) for column in zip(*votes, strict=True))
    return list(_most_frequent(a, b, mirrored, shift, at, cosines)) if len(a) else []


def _most_frequent(
    a: np.ndarray, b: np.ndarray, mirrored: np.ndarray, shift: np.ndarray, at: np.ndarray, cosines: np.ndarray
) -> Iterator[Candidate]:
    """The shifts with the largest sums of cosines of each pair, each with the picture of its best one."""
    places: np.ndarray = shift // _LAG
    order = np.lexsort((at, -cosines, places, mirrored, b, a))
    keys = np.stack([a, b, mirrored, places])[:, order]
    first = np.flatnonzero(np.append(True, (np.diff(keys) != 0).any(0)))
    weight = np.add.reduceat(cosines[order], first)
    best = order[first]
    ranked = np.lexsort((best, -weight, mirrored[best], b[best], a[best]))
    taken: tuple = ()
    for row in best[ranked]:
        pair = int(a[row]), int(b[row]), bool(mirrored[row])
        taken = (*taken, row) if taken and taken[0] == pair else (pair, row)
        if len(taken) <= _SHIFTS + 1:
            yield Candidate(*pair, int(at[row]), int(shift[row]))


@dataclass(frozen=True)
class Changes:
    """Two videos at a shift. begin_a, begin_b: their first pictures that meet; pictures: sums over the pixels of the
    products and both squares of these, float32 [3, n]; near: whether both are of similar brightness [n]; products, of_a, of_b:
    such sums of the changes from picture i to i + 4, [n - 4]; rounding_b: the part of of_b that is the rounding of its
    pictures."""

    begin_a: int
    begin_b: float
    pictures: np.ndarray
    near: np.ndarray
    products: np.ndarray
    of_a: np.ndarray
    of_b: np.ndarray
    rounding_b: float

    def similarity(self, begin: int, end: int) -> float:
        """The correlation of the changes among pictures begin to end, without what is their rounding."""
        part = slice(begin, max(begin, end - _LAG))
        products, of_a, of_b = (values[part].sum() for values in (self.products, self.of_a, self.of_b))
        of_a, of_b = self._unrounded(of_a, of_b, len(self.products[part]))
        return min(1.0, float(products / np.sqrt(of_a * of_b))) if of_a * of_b > 0 else 0.0

    def moving(self, begin: int, end: int) -> float:
        """Seconds with changes among pictures begin to end of both."""
        part = slice(begin, max(begin, end - _LAG))
        squares = self._unrounded(self.of_a[part], self.of_b[part], 1)
        return float((np.minimum(*squares) >= _STILL**2 * PIXELS).sum()) / RATE

    def alike(self, around: int) -> np.ndarray:
        """Whether the pictures from `around` before to `around` after each show the same, [n]."""
        products, of_a, of_b = (_sums(values, around) for values in self.pictures)
        return self.near & (products >= _ALIKE * np.sqrt(of_a * of_b))

    def agree(self, around: int) -> np.ndarray:
        """Whether the changes within `around` pictures before and after each agree, or nothing moves in either, [n - 4]."""
        products, of_a, of_b = (_sums(values, around) for values in (self.products, self.of_a, self.of_b))
        count = _sums(np.ones_like(self.of_a), around)
        of_a, of_b = self._unrounded(of_a, of_b, count)
        return (np.maximum(of_a, of_b) < _STILL**2 * PIXELS * count) | (products >= _AGREE * np.sqrt(of_a * of_b))

    def _unrounded(self, of_a: np.ndarray, of_b: np.ndarray, count: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of `count` squares less the variance of the rounding, at most by half."""
        return np.maximum(of_a - count * _ROUNDING, of_a / 2), np.maximum(of_b - count * self.rounding_b, of_b / 2)


def _sums(values: np.ndarray, around: int) -> np.ndarray:
    """Sums of the values from i - around to i + around, as far as there are."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    i = np.arange(len(values))
    return total[np.minimum(i + around + 1, len(values))] - total[np.maximum(i - around, 0)]


def changes(a: np.ndarray, b: np.ndarray, shift: float) -> Changes | None:
    """Compare picture i of a with picture i + shift of b, None if fewer than five meet. a, b: levels float32 [n, 192]; shift: a
    multiple of 1/2, at which pictures are the means of two."""
    whole = int(np.floor(shift))
    between = shift != whole
    begin, end = max(0, -whole), min(len(a), len(b) - whole - between)
    if end - begin <= _LAG:
        return None
    one, other = a[begin:end], b[begin + whole : end + whole]
    if between:
        other = (other + b[begin + whole + 1 : end + whole + 1]) / 2
    means = one.mean(1), other.mean(1)
    x, y = one - means[0][:, None], other - means[1][:, None]
    flat = _CONTRAST**2 * PIXELS
    pictures = np.stack([np.einsum("ij,ij->i", *pair) + flat for pair in ((x, y), (x, x), (y, y))])
    dx, dy = x[_LAG:] - x[:-_LAG], y[_LAG:] - y[:-_LAG]
    products, of_a, of_b = (np.einsum("ij,ij->i", *pair) for pair in ((dx, dy), (dx, dx), (dy, dy)))
    bright = np.abs(means[0] - means[1]) <= _BRIGHTNESS
    return Changes(begin, begin + shift, pictures, bright, products, of_a, of_b, _ROUNDING / (1 + between))


def common_parts(found: Changes) -> Iterator[tuple[int, int]]:
    """Begin and end of the longest parts in which pictures are alike and changes agree, counted from the first pictures that
    meet."""
    n = len(found.near)
    single, alike, steady = found.agree(0), found.alike(0), found.alike(_AROUND)
    good = steady[:-_LAG] & steady[_LAG:] & found.agree(_AROUND)
    edges = np.flatnonzero(np.diff(good, prepend=False, append=False)).reshape(-1, 2)
    runs: list[tuple[int, int]] = []
    for begin, end in edges[edges[:, 1] - edges[:, 0] >= min(RATE, len(good))].tolist():
        if runs and begin - runs[-1][1] <= _GAP:
            runs[-1] = runs[-1][0], end
        else:
            runs.append((begin, end))
    last = 0
    for begin, end in runs:
        begin = begin + _LAG // 2 if begin else 0  # a change is that of the picture between
        end = end + _LAG // 2 if end < len(good) else n
        while begin > last and alike[begin - 1] and (begin + _LAG > n or single[begin - 1]):
            begin -= 1
        while end < n and alike[end] and (end < _LAG or single[end - _LAG]):
            end += 1
        if end > last:
            yield max(begin, last), end
            last = end


def matches(signatures: Signatures, similar: float = SIMILAR) -> list[Match]:
    """All common parts of two videos that are the same, an excerpt or a shared part, by videos and time.

    similar: smallest correlation of their changes
    """
    found: dict[tuple[int, int], list[Match]] = {}
    for candidate in candidates(signatures):
        found.setdefault((candidate.a, candidate.b), []).extend(_of_candidate(signatures, candidate, similar))
    kept: list[Match] = []
    for pair in sorted(found):
        best: list[Match] = []
        for match in sorted(found[pair], key=lambda match: -match.similarity * match.count):
            if not any(_overlap(match, other) for other in best):
                best.append(match)
        kept += sorted(best, key=lambda match: (match.begin_a, match.begin_b))
    return kept


def _overlap(one: Match, other: Match) -> bool:
    """Whether two parts of the same videos have pictures of both in common."""
    return all(
        begin < other_begin + other.count and other_begin < begin + one.count
        for begin, other_begin in ((one.begin_a, other.begin_a), (one.begin_b, other.begin_b))
    )


def _of_candidate(signatures: Signatures, candidate: Candidate, similar: float) -> Iterator[Match]:
    a, b = signatures.levels(candidate.a), signatures.levels(candidate.b, candidate.mirrored)
    window = slice(max(0, candidate.at), candidate.at + _WINDOW)
    at_once = changes(a[window], b, window.start + candidate.shift)
    if at_once is None or not at_once.alike(0).any():
        return  # most candidates, of different scenes
    best: tuple[float, float] = (-1.0, 0.0)
    for half in range(-6, 7):
        shift = candidate.shift + half / 2
        begin = max(0, candidate.at - _WINDOW)
        near_by = changes(a[begin : candidate.at + 2 * _WINDOW], b, begin + shift)
        if near_by is not None:
            best = max(best, (near_by.similarity(0, len(near_by.near)), shift))
    found = changes(a, b, best[1]) if best[0] > 0 else None
    if found is None:
        return
    lengths = len(a), len(b)
    for begin, end in common_parts(found):
        similarity = found.similarity(begin, end)
        match = Match(
            candidate.a,
            candidate.b,
            candidate.mirrored,
            found.begin_a + begin,
            found.begin_b + begin,
            end - begin,
            similarity,
        )
        enough = found.moving(begin, end) >= min(_MOVING, match.count / 2 / RATE)
        differs = (1 - similarity) / (_STRICTER if match.count < _SHORT * RATE else 1)
        if differs <= 1 - similar and enough and match.kind(*lengths):
            yield match
