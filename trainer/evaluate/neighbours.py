"""Search for nearest neighbours: the two sides of a search, the search itself, and what its finds are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from trainer import data
from trainer.errors import TrainerError
from trainer.evaluate.bench import parts
from trainer.evaluate.features import Features, normalised

_CHUNK = 1024  # queries x gallery items compared at a time
_VOTERS = 256  # queries whose neighbours' vectors are in memory at a time
_SHOWN = 24  # queries whose neighbours are kept in the result


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

    def items(self, found: Features, key: tuple[str, str], level: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [items, d] and the video of each, int64 [items], counted from `first`."""
        if level == "clip":
            return found.arrays[key], found.owner + self.first
        return found.video_means(key), np.arange(len(self.videos)) + self.first


def within(source: data.Shards) -> tuple[Side, Side, str, list[str]]:
    """Queries and gallery of one data set, see bench.parts; how they were chosen, in words, and notes."""
    test, train, mode, notes = parts(source)
    labels = np.array(source.text("videos/label"))
    if not (test & train).any():
        sides = (
            Side(source, np.flatnonzero(mask), labels[mask], first) for mask, first in ((test, 0), (train, len(test)))
        )
        return *sides, mode, notes
    side = Side(source, np.flatnonzero(test), labels[test])
    return side, side, mode, notes


def across(asking: data.Shards, searched: data.Shards) -> tuple[Side, Side, str, list[str]]:
    """The test part (or all) of one data set as queries, the training part (or all) of another as gallery; as of `within`.

    Classes are compared by name, queries whose class the gallery lacks are left out. Raises TrainerError where all are.
    """
    queries, gallery = parts(asking)[0], parts(searched)[1]
    labels, theirs = (np.array(source.text("videos/label")) for source in (asking, searched))
    known = queries & np.isin(labels, theirs[gallery])
    if not known.any():
        raise TrainerError(f"{asking.dataset} and {searched.dataset} have no class in common")
    lacking = int((queries & ~known).sum())
    notes = [f"{lacking} queries left out, whose class {searched.dataset} lacks"] if lacking else []
    query = Side(asking, np.flatnonzero(known), labels[known])
    return (
        query,
        Side(searched, np.flatnonzero(gallery), theirs[gallery], len(labels)),
        f"{_part_of(asking, queries)} against {_part_of(searched, gallery)}",
        notes,
    )


def _part_of(source: data.Shards, chosen: np.ndarray) -> str:
    """A data set and which part of it was chosen, in words."""
    names = {data.TRAIN: "train part", data.VALIDATION: "validation part", data.TEST: "test part"}
    first, *others = set(source.part[chosen])
    return f"{source.dataset} ({'all videos' if others else names.get(first, 'all videos')})"


def examples(asking: Side, searched: Side, nearest_items: np.ndarray) -> list[dict]:
    """A few queries, evenly spread, with the videos found for them, by name and class."""
    names, theirs = asking.source.text("videos/id"), searched.source.text("videos/id")
    chosen = np.unique(np.linspace(0, len(asking.videos) - 1, _SHOWN).astype(int))
    return [
        {
            "query": names[asking.videos[q]],
            "label": str(asking.labels[q]),
            "nearest": [[theirs[searched.videos[g]], str(searched.labels[g])] for g in nearest_items[q, :5]],
        }
        for q in chosen
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

    queries, gallery: vectors float32 [n, d] of any length, and the video of each, int64 [n]: a query never finds an item
    of its own video. Returns indices into the gallery, int64 [queries, k]; fewer columns where there are fewer items for
    some query. Exact, in memory bounded by chunk.
    """
    items_of_video = np.bincount(gallery[1], minlength=max(queries[1].max(initial=0), gallery[1].max(initial=0)) + 1)
    k = min(k, len(gallery[1]) - int(items_of_video[queries[1]].max()))
    excluded = torch.iinfo(torch.int64).min
    found = np.empty((len(queries[1]), k), np.int64)
    for start in range(0, len(queries[1]), chunk):
        query, query_video = _chunk(queries, start, chunk, device)
        best = torch.full((len(query), k), excluded, device=device)
        for begin in range(0, len(gallery[1]), chunk):
            item, item_video = _chunk(gallery, begin, chunk, device)
            keys = _sort_keys(query @ item.T, begin)
            keys[query_video[:, None] == item_video] = excluded
            best = torch.cat([best, keys], 1).topk(k).values
        found[start : start + chunk] = 0xFFFFFFFF - (best & 0xFFFFFFFF).cpu().numpy()
    return found


def _chunk(items: tuple[np.ndarray, np.ndarray], begin: int, size: int, device: torch.device):
    vectors, video = (torch.from_numpy(np.array(array[begin : begin + size])).to(device) for array in items)
    return F.normalize(vectors, dim=1), video


def _sort_keys(similarity: torch.Tensor, first: int) -> torch.Tensor:
    """float32 [q, g] -> int64 keys that sort by similarity, then by position in the gallery, lowest first: topk leaves
    the order of equal values open."""
    bits = (similarity + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 and 0.0 the same
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # a float's bits, taken as an integer, sort like it
    position = first + torch.arange(similarity.shape[1], device=similarity.device)
    return (ordered << 32) | (0xFFFFFFFF - position)


def chance(query: np.ndarray, gallery: np.ndarray, views: int, same: bool, ks: Sequence[int]) -> dict[int, float]:
    """Per cent of queries that a random order of the gallery would hit, for each k of ks (hypergeometric).

    query, gallery: classes of their videos, int64; same: they are the same videos, of which a query finds all others.
    """
    itself = int(same)
    items = views * (len(gallery) - itself)
    same_class = views * (np.bincount(gallery, minlength=query.max() + 1)[query] - itself)
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
