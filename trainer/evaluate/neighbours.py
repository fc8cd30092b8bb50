"""Search for nearest neighbours: the two sides of a search, the search itself, and what its finds are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer import data
from trainer.evaluate.bench import parts
from trainer.evaluate.features import normalised
from trainer.evaluate.folds import of_splits, of_videos, splits_in_turn
from trainer.evaluate.progress import Progress

if TYPE_CHECKING:
    from trainer.evaluate.bench import Bench

_CHUNK = 512  # queries x gallery items compared at a time
_VOTERS = 256  # queries whose neighbours' vectors are in memory at a time
_SHOWN = 24  # queries whose neighbours are kept in the result
_PLACES = 2**30 - 1  # the last position in a gallery that a sort key holds


@dataclass(frozen=True)
class Side:
    """One side of a search: videos of a data set.

    source: the data set; videos: int64 [n], rows of source.videos; labels: str [n]; first: number of the first, which
    tells the videos of two data sets apart
    """

    source: data.Shards
    videos: np.ndarray
    labels: np.ndarray
    first: int = 0

    def items(self, items: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Its vectors float32 [n, d] among those of Extracted.items, and the video of each, int64 [n], counted from `first`."""
        vectors, owner = of_videos(items, self.videos)
        return vectors, np.searchsorted(self.videos, owner) + self.first


@dataclass(frozen=True)
class Search:
    """What is searched for where.

    sides: queries and gallery of every fold, the same where each video searches all others; mode: how they were chosen, in
    words; notes: for the reader; splits: the official split of each fold, where all of them are used; pooled: every query is
    asked once; scored: a neighbour may be of the query's class
    """

    sides: list[tuple[Side, Side]]
    mode: str
    notes: list[str]
    splits: tuple[str, ...] = ()
    pooled: bool = True
    scored: bool = True


def within(bench: Bench) -> Search:
    """Queries and gallery of one data set, see bench.parts and folds.splits_in_turn."""
    if sources := splits_in_turn(bench):
        masks, mode, notes, pooled = of_splits(sources)
        splits, source = tuple(source.split for source in sources), sources[0]
    else:
        source = bench.source()
        test, train, mode, notes = parts(source)
        masks, splits, pooled = [(test, train)], (), True
    labels, sides = np.array(source.text("videos/label")), []
    for test, train in masks:
        asking = Side(source, np.flatnonzero(test), labels[test])
        apart = not (test & train).any()
        searched = Side(source, np.flatnonzero(train), labels[train], len(test)) if apart else asking
        sides.append((asking, searched))
    return Search(sides, mode, notes, splits, pooled)


def across(asking: data.Shards, searched: data.Shards) -> Search:
    """The test part (or all) of one data set as queries, the training part (or all) of another as gallery; as of `within`.

    Classes are compared by name, queries whose class the gallery lacks are left out. Where it lacks them all, every query is
    asked and none is scored.
    """
    queries, gallery = parts(asking)[0], parts(searched)[1]
    labels, theirs = (np.array(source.text("videos/label")) for source in (asking, searched))
    known = queries & np.isin(labels, theirs[gallery])
    scored, notes = bool(known.any()), []
    if not scored:
        known = queries
        notes.append(
            f"{asking.dataset} and {searched.dataset} have no class in common: neighbours are listed, unscored"
        )
    elif lacking := int((queries & ~known).sum()):
        notes.append(f"{lacking} queries left out, whose class {searched.dataset} lacks")
    query = Side(asking, np.flatnonzero(known), labels[known])
    found = Side(searched, np.flatnonzero(gallery), theirs[gallery], len(labels))
    mode = f"{_part_of(asking, queries)} against {_part_of(searched, gallery)}"
    return Search([(query, found)], mode, notes, scored=scored)


def _part_of(source: data.Shards, chosen: np.ndarray) -> str:
    """A data set and which part of it was chosen, in words."""
    names = {data.TRAIN: "train part", data.VALIDATION: "validation part", data.TEST: "test part"}
    first, *others = set(source.part[chosen])
    return f"{source.dataset} ({'all videos' if others else names.get(first, 'all videos')})"


def examples(
    sides: list[tuple[Side, Side]], found: list[np.ndarray], vectors: list[tuple[np.ndarray, np.ndarray]]
) -> list[dict]:
    """A few queries, evenly spread, with the videos found for them (int64 [queries, k] of every fold) by name and class, and
    their cosines; vectors: of every fold those of the queries and of the gallery, float32 [n, d]."""
    names, theirs = (side.source.text("videos/id") for side in sides[0])
    queries = [
        (*of_fold, nearest[q], q, *pair)
        for of_fold, nearest, pair in zip(sides, found, vectors, strict=True)
        for q in range(len(nearest))
    ]
    return [
        {
            "query": names[asking.videos[q]],
            "label": str(asking.labels[q]),
            "nearest": [[theirs[searched.videos[g]], str(searched.labels[g])] for g in nearest[:5]],
            "cosines": (normalised(gallery[nearest[:5]]) @ normalised(asked[q : q + 1])[0]).tolist(),
        }
        for asking, searched, nearest, q, asked, gallery in (
            queries[i] for i in np.unique(np.linspace(0, len(queries) - 1, _SHOWN).astype(int))
        )
    ]


def hits(found: np.ndarray, query_video: np.ndarray, item_video: np.ndarray, targets: tuple) -> np.ndarray:
    """Whether one of the k nearest is of the query's class, bool [queries, k] for k = 1, 2, ..."""
    return np.logical_or.accumulate(targets[1][item_video[found]] == targets[0][query_video][:, None], axis=1)


def nearest(
    queries: tuple[np.ndarray, np.ndarray],
    gallery: tuple[np.ndarray, np.ndarray],
    k: int,
    device: torch.device,
    chunk: int = _CHUNK,
) -> np.ndarray:
    """The gallery items whose cosine to each query is largest, best first; of equals the one that stands first.

    queries, gallery: vectors float32 [n, d] of any length, and the video (or group) of each, int64 [n]: a query never finds an
    item of its own. Returns indices into the gallery, int64 [queries, k]; fewer columns where there are fewer items for some
    query. Exact to 2**-32: cosines are computed in float64 and rounded to that, so that computing breaks no tie. In memory
    bounded by chunk.
    """
    items_of_video = np.bincount(gallery[1], minlength=max(queries[1].max(initial=0), gallery[1].max(initial=0)) + 1)
    k = min(k, len(gallery[1]) - int(items_of_video[queries[1]].max()))
    found = np.empty((len(queries[1]), k), np.int64)
    with Progress("nearest neighbours", len(queries[1]), "item") as step:
        for start in range(0, len(queries[1]), chunk):
            query, query_video = _chunk(queries, start, chunk, device)
            best = torch.empty(len(query), 0, dtype=torch.int64, device=device)
            for begin in range(0, len(gallery[1]), chunk):
                item, item_video = _chunk(gallery, begin, chunk, device)
                keys = _sort_keys(query @ item.T, begin)
                keys[query_video[:, None] == item_video] = torch.iinfo(torch.int64).min
                best = torch.cat([best, keys], 1)
                best = best.topk(min(k, best.shape[1])).values
            found[start : start + chunk] = (-best & _PLACES).cpu().numpy()
            step(len(query))
    return found


def _chunk(items: tuple[np.ndarray, np.ndarray], begin: int, size: int, device: torch.device):
    vectors, video = (torch.from_numpy(np.array(array[begin : begin + size])).to(device) for array in items)
    vectors = vectors.double()
    vectors /= vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return vectors, video


def _sort_keys(cosine: torch.Tensor, first: int) -> torch.Tensor:
    """float64 [q, g] -> int64 keys that sort by cosine, to 32 bits, then by position in the gallery, lowest first: topk
    leaves the order of equal values open."""
    position = first + torch.arange(cosine.shape[1], device=cosine.device)
    return (cosine * 2**32).round().long() * (_PLACES + 1) - position


def findable(query: np.ndarray, gallery: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """How many videos each query may find, int64 [queries], and how many of them are of its class.

    query, gallery: classes of their videos, int64; groups: where they are the same videos, int64 [videos]: a query finds none
    of its own group.
    """
    items, same_class = np.full(len(query), len(gallery)), np.bincount(gallery, minlength=query.max() + 1)[query]
    if groups is not None:
        both = np.unique(np.stack([groups, query]), axis=1, return_inverse=True)[1].ravel()
        items, same_class = items - np.bincount(groups)[groups], same_class - np.bincount(both)[both]
    return items, same_class


def chance(
    query: np.ndarray, gallery: np.ndarray, views: int, ks: Sequence[int], groups: np.ndarray | None = None
) -> dict[int, float]:
    """Per cent of queries that a random order of the gallery would hit, for each k of ks (hypergeometric); see findable."""
    items, same_class = (views * count for count in findable(query, gallery, groups))
    drawn = np.arange(max(ks))[:, None]
    step = np.maximum(items - same_class - drawn, 0) / np.maximum(items - drawn, 1)
    miss = np.cumprod(np.where(drawn < items, step, 1), axis=0)
    return {k: 100 * float(1 - miss[k - 1].mean()) for k in ks}


def votes(
    queries: np.ndarray,
    gallery: np.ndarray,
    found: np.ndarray,
    classes: np.ndarray,
    ks: Sequence[int],
    temperature: float,
) -> np.ndarray:
    """Class with the largest sum of exp(cosine / temperature) among the k nearest, int64 [ks, queries]; of equals the first.

    queries, gallery: float32 [n, d]; found: int64 [queries, most], rows of the gallery, best first; classes: int64 of the
    gallery's rows.
    """
    predicted = np.empty((len(ks), len(queries)), np.int64)
    for start in range(0, len(queries), _VOTERS):
        part = slice(start, start + _VOTERS)
        cosine = np.einsum("qd,qkd->qk", normalised(queries[part]), normalised(gallery[found[part]]), dtype=np.float64)
        weights, query = np.exp(cosine / temperature), np.arange(len(cosine))[:, None]
        for place, k in enumerate(ks):
            sums = np.zeros((len(cosine), classes.max() + 1))
            np.add.at(sums, (query, classes[found[part, :k]]), weights[:, :k])
            predicted[place, part] = sums.argmax(1)
    return predicted
