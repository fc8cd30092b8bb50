"""Duplicates among the videos of a table: the same, mirrored, and with a part in common; as a CSV file and a page."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.files import write_text
from labelgen.progress import counted
from trainer.embeddings.copies import SIMILAR, Match, Signatures, matches, windows
from trainer.embeddings.pictures import PIXELS, RATE
from trainer.embeddings.sheets import Film, Moving, figures, moment
from trainer.embeddings.table import Table, decoded
from trainer.errors import TrainerError
from trainer.evaluate.features import normalised
from trainer.evaluate.results import csv_text
from trainer.pages.films import PLAY
from trainer.pages.page import figure, grid, page, paragraph

_BLOCK = 2048  # videos compared with all others at a time
_CANDIDATES = 20  # videos compared picture by picture
_FLAT = 1.0  # grey levels; a picture with a smaller standard deviation is flat
_PICTURE = 32, 24  # width and height of the pictures of videos in which nothing moves
_SAME_PICTURE = 0.995  # smallest correlation of these
_SHOWN, _GROUPS, _FILMS = 18, 200, 60  # pairs of a group and groups on a page, pairs that move


@dataclass(frozen=True)
class Video:
    """A video of a table: its texts, the time of its first frame (None if unknown), and its rows."""

    id: str
    path: str
    label: str
    start: float | None
    row: int
    rows: int


@dataclass(frozen=True)
class Pair:
    """Two videos, by number, and their common part. kind: "same", "mirrored", "excerpt" (of which `first` is one),
    "mirrored excerpt", "shared part" or "mirrored shared part"; spans: seconds in each, None if times are unknown."""

    first: int
    second: int
    kind: str
    spans: tuple[tuple[float, float] | None, tuple[float, float] | None]
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """All pairs of duplicates. group: number of each video's group, int64 [videos], -1 for none; videos of one group are
    connected by pairs."""

    table: Table
    videos: Sequence[Video]
    pairs: Sequence[Pair]
    group: np.ndarray

    @property
    def count(self) -> int:
        return int(self.group.max(initial=-1)) + 1

    @property
    def title(self) -> str:
        """The number of pairs, groups and videos, in words."""
        return (
            f"{counted(len(self.pairs), 'pair')} of duplicates in {counted(self.count, 'group')}, of "
            f"{counted(len(self.videos), 'video')}"
        )

    def describe(self, pair: Pair) -> str:
        """A pair in words: its kind, both videos with the times of the common part, and the similarity."""
        one, other = (
            " ".join(filter(None, (self.videos[video].id, _span(span))))
            for video, span in zip((pair.first, pair.second), pair.spans, strict=True)
        )
        return f"{pair.kind}: {one} {'of' if 'excerpt' in pair.kind else 'and'} {other} ({pair.similarity:.3f})"

    def write(self, folder: Path, film: Film) -> list[Path]:
        """Write duplicates.csv, one row per pair, and index.html; returns their paths. An interrupted call leaves no page that
        differs from the CSV file."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, page_file = folder / "duplicates.csv", folder / "index.html"
        page_file.unlink(missing_ok=True)
        write_text(rows, self._csv())
        write_text(page_file, self._page(folder, Moving(film)))
        return [rows, page_file]

    def _csv(self) -> str:
        rows = []
        for pair in self.pairs:
            row = {"group": self.group[pair.first], "kind": pair.kind}
            for prefix, number, span in zip(("", "other "), (pair.first, pair.second), pair.spans, strict=True):
                video = self.videos[number]
                start, end = ("", "") if span is None else (f"{time:.3f}" for time in span)
                values = {"id": video.id, "start": start, "end": end, "path": video.path, "label": video.label}
                row |= {prefix + name: value for name, value in values.items()}
            rows.append(row | {"similarity": f"{pair.similarity:.6f}"})
        names = ("id", "start", "end", "path", "label")
        return csv_text(rows, ["group", "kind", *names, *(f"other {name}" for name in names), "similarity"])

    def _page(self, folder: Path, moving: Moving) -> str:
        sections = [
            (f"group-{number}", f"Group {number}", self._draw(folder, number, moving))
            for number in range(self.count)[:_GROUPS]
        ]
        lead = (
            "Each pair with its kind, the time of the common part in both videos, and how similar it is: the correlation of "
            "what changes there or, if nothing moves, of the pictures."
        )
        if self.count > _GROUPS:
            lead += f" These are the first {_GROUPS} groups; duplicates.csv has all of them."
        foot = f"{self.table.name}: {counted(self.table.rows, 'row')}."
        if moving.still:
            foot += f" {moving.still:,} pictures do not move, as their videos cannot be read."
        return page(self.title, lead, PLAY, sections, foot, moving.style())

    def _draw(self, folder: Path, number: int, moving: Moving) -> Markup:
        """The section of a group."""
        pairs = [(place, pair) for place, pair in enumerate(self.pairs) if self.group[pair.first] == number]
        kinds = Counter(pair.kind for _, pair in pairs)
        head = f"{counted((self.group == number).sum(), 'video')}; " + ", ".join(
            f"{count:,} {kind}" for kind, count in kinds.items()
        )
        if len(pairs) > _SHOWN:
            head += f"; the first {_SHOWN} pairs are shown, duplicates.csv has all of them"
        shown = []
        for place, pair in pairs[:_SHOWN]:
            rows = [
                self._picture(video, span) for video, span in zip((pair.first, pair.second), pair.spans, strict=True)
            ]
            caption = f"{pair.kind[0].upper()}{pair.kind[1:]}, similarity {pair.similarity:.3f}"
            films = moving if place < _FILMS and None not in pair.spans else None
            shown.append(figure(caption, figures(rows, [*map(_span, pair.spans)], folder, films)))
        return paragraph(head, "muted") + grid(shown)

    def _picture(self, number: int, span: tuple[float, float] | None) -> dict:
        """The row of a video in the middle of a span, which its times are."""
        video = self.videos[number]
        rows = range(video.row, video.row + video.rows)
        row = rows[len(rows) // 2]
        if span is not None:
            times = self.table.take(rows, ("start", "end"))
            row = min(rows, key=lambda i: abs(sum(times[i - video.row].values()) - sum(span)))
        found = self.table.take([row], ("id", "path", "thumbnail"))[0]
        start, end = span or (None, None)
        return found | {"start": start, "end": end}


def _span(span: tuple[float, float] | None) -> str:
    return "" if span is None else moment({"start": span[0], "end": span[1]})


def duplicates(table: Table, similar: float = SIMILAR) -> Duplicates:
    """All duplicates among the videos of a table, see copies.matches; similar: smallest correlation of what changes.

    Videos in which nothing moves are compared with each other by their thumbnails, as a signature shows too little of them.
    Raises TrainerError for a damaged table.
    """
    with tempfile.TemporaryFile() as file:
        videos, signatures = _signatures(table, file)
        if len(videos) < 2:
            raise TrainerError(f"{table.name}: {counted(len(videos), 'video')} to compare, expected at least 2")
        pairs = [_pair(videos, signatures, match) for match in matches(signatures, similar)]
        lengths = np.diff(signatures.bounds)
        still = [video for video in np.flatnonzero(lengths).tolist() if not len(windows(signatures[video])[0])]
    pairs += _still_pairs(table, videos, still)
    group = _groups(len(videos), [(pair.first, pair.second) for pair in pairs])
    return Duplicates(
        table, videos, sorted(pairs, key=lambda pair: (group[pair.first], min(pair.first, pair.second))), group
    )


def _signatures(table: Table, file: IO[bytes]) -> tuple[list[Video], Signatures]:
    """The videos of a table and their signatures, which are kept in a temporary file, so that memory does not grow with them."""
    videos: list[Video] = []
    bytes_of: list[int] = []
    row = 0
    for part in table.parts:
        new = True  # videos of two files are different
        for columns in part.blocks("id", "path", "label", "start", "signature"):
            for id, path, label, start, signature in zip(*columns, strict=True):
                if new or videos[-1].id != id:
                    videos.append(Video(id, path, label, start, row, 0))
                    bytes_of.append(0)
                videos[-1] = replace(videos[-1], rows=videos[-1].rows + 1)
                bytes_of[-1] += len(signature)
                file.write(signature)
                new, row = False, row + 1
    if any(count % PIXELS for count in bytes_of):
        raise TrainerError(f"{table.name}: damaged (a signature); make it again with `vssl embed`")
    file.flush()
    bounds = np.cumsum([0, *bytes_of]) // PIXELS
    shape = int(bounds[-1]), PIXELS
    pictures = np.memmap(file, np.uint8, "r", shape=shape) if bounds[-1] else np.empty(shape, np.uint8)
    return videos, Signatures(pictures, bounds)


def _pair(videos: Sequence[Video], signatures: Signatures, match: Match) -> Pair:
    lengths = np.diff(signatures.bounds)[[match.a, match.b]]
    kind = match.kind(*lengths.tolist())
    one, other = match.a, match.b
    spans = _times(videos[one], match.begin_a, match.count), _times(videos[other], match.begin_b, match.count)
    if kind == "excerpt" and lengths[1] < lengths[0]:
        one, other, spans = other, one, spans[::-1]
    if match.mirrored:
        kind = "mirrored" if kind == "same" else f"mirrored {kind}"
    return Pair(one, other, kind, spans, match.similarity)


def _times(video: Video, begin: float, count: int) -> tuple[float, float] | None:
    """Begin and end of pictures of a video in seconds, None if they are unknown."""
    return None if video.start is None else (video.start + begin / RATE, video.start + (begin + count) / RATE)


def _groups(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The connected components of pairs of `count` videos, numbered in order, -1 for videos without a pair, int64 [count]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    _, group = connected_components(coo_array((np.ones(len(first)), (first, second)), (count, count)), directed=False)
    alone = np.bincount(group)[group] == 1
    return np.where(alone, -1, np.searchsorted(np.unique(group[~alone]), group))


def _still_pairs(table: Table, videos: Sequence[Video], still: Sequence[int]) -> list[Pair]:
    """Pairs among videos in which nothing moves: the mean correlation of each picture of the shorter one with the best of the
    other is at least .995. Videos of a single colour are compared by that. Each video is compared with the 20 nearest ones
    by mean picture."""
    if len(still) < 2:
        return []
    pictures, bounds = _pictures(table, [videos[number] for number in still])
    pairs: dict[tuple[int, int], Pair] = {}
    for kind in ("same", "mirrored"):
        turned = pictures if kind == "same" else _mirrored(pictures)
        means, others = (normalised(np.add.reduceat(one, bounds[:-1])) for one in (pictures, turned))
        for begin in range(0, len(means), _BLOCK):
            similar = means[begin : begin + _BLOCK] @ others.T
            for a, candidates in enumerate(np.argsort(-similar, axis=1, kind="stable")[:, : _CANDIDATES + 1], begin):
                for b in candidates[candidates != a].tolist():
                    pair = min(a, b), max(a, b)
                    one, other = pictures[bounds[a] : bounds[a + 1]], turned[bounds[b] : bounds[b + 1]]
                    products = one @ other.T if len(one) <= len(other) else other @ one.T
                    value = min(1.0, float(products.max(1).mean()))
                    if value >= _SAME_PICTURE and (pair not in pairs or value > pairs[pair].similarity + 1e-6):
                        pairs[pair] = Pair(still[pair[0]], still[pair[1]], kind, (None, None), value)
    return list(pairs.values())


def _mirrored(pictures: np.ndarray) -> np.ndarray:
    width, height = _PICTURE
    turned = pictures[:, : width * height].reshape(-1, height, width)[..., ::-1].reshape(len(pictures), -1)
    return np.hstack([turned, pictures[:, width * height :]])


def _pictures(table: Table, videos: Sequence[Video]) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails of all rows of videos as vectors of length 1 whose products are correlations, float32 [rows, 774]; and the
    first one of each video, int64 [videos + 1].

    A vector is the grey picture minus its mean. Flat pictures correlate with nothing: if all of a video are flat, the vector is
    the mean colour as three angles from 0 to 180 degrees, so that black and white are opposites; otherwise it is zero.
    """
    wanted = np.zeros(table.rows, bool)
    for video in videos:
        wanted[video.row : video.row + video.rows] = True
    found: list[np.ndarray] = []
    colors: list[np.ndarray] = []
    row = 0
    for (thumbnails,) in table.blocks("thumbnail"):
        for jpeg, chosen in zip(thumbnails, wanted[row : row + len(thumbnails)], strict=True):
            if chosen:
                grey = cv2.resize(decoded(jpeg, cv2.IMREAD_GRAYSCALE), _PICTURE, interpolation=cv2.INTER_AREA).ravel()
                found.append(grey.astype(np.float32))
                colors.append(decoded(jpeg).mean((0, 1)) if grey.std() < _FLAT else np.zeros(3))
        row += len(thumbnails)
    pictures = np.stack(found)
    bounds = np.cumsum([0, *(video.rows for video in videos)])
    flat = pictures.std(1) < _FLAT
    wholly: np.ndarray = np.repeat(np.logical_and.reduceat(flat, bounds[:-1]), np.diff(bounds))[:, None]
    angle = np.pi / 255 * np.stack(colors)
    centred = np.where(flat[:, None], 0, pictures - pictures.mean(1, keepdims=True))
    vectors = np.hstack([centred, wholly * np.cos(angle), wholly * np.sin(angle)])
    return normalised(vectors).astype(np.float32), bounds
