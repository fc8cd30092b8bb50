"""The rows of a table nearest to a query, by the cosine of vectors."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np

from trainer.embeddings.table import Table
from trainer.evaluate.features import normalised

_CANDIDATES = 2000  # rows among which moments are searched first
_SHOWN = ("id", "path", "label", "start", "end")
_SAMPLE, _PLACES = 1000, 16  # rows of random pairs, and places of a table that they come from, at most
_ROUNDING = 1e-6  # cosines count as equal if they differ by less


def search(
    table: Table,
    query: np.ndarray,
    count: int = 10,
    per_video: int | None = None,
    query_spans: Sequence[tuple[str, float, float]] = (),
) -> list[dict]:
    """The rows most similar to a query, by the cosine. Every row is compared; equal ones keep the order of the table. Among
    overlapping rows of a video only the best is kept.

    Parameters
    ----------
    table : Table
        Of features.
    query : float32 [d]
        A vector of the same network and settings.
    count : int
        Number of rows.
    per_video : int
        Largest number of rows of a video; None for any.
    query_spans : sequence of (path, start, end)
        Of each example of the query, in seconds, whose moments are left out.

    Returns
    -------
    list of dict
        Best first: columns of the table, "similarity", and "above": the share of random pairs of rows of different videos that
        are less similar, None if there is only one video.

    Examples
    --------
    >>> from trainer.embeddings.search import search
    >>> from trainer.embeddings.table import Table
    >>> table = Table("features.parquet")
    >>> query = table.take([0], ["vector"])[0]["vector"]
    >>> best = search(table, query, count=3)[0]
    >>> best["id"], round(best["similarity"], 3)
    ('00000_0', 1.0)
    """
    query = normalised(query[None].astype(np.float64))[0]
    cosines = [
        normalised(vectors.astype(np.float64)) @ query for part in table.parts for (vectors,) in part.blocks("vector")
    ]
    similarity = np.concatenate([*cosines, np.empty(0)])
    rows = np.argsort(-similarity, kind="stable")
    found = _apart(table, rows, similarity[rows], count, per_video, query_spans)
    by_chance = _random_pairs(table)
    pictures = table.take([hit["row"] for hit in found], ("thumbnail",))
    return [
        hit | {"above": _share_below(by_chance, hit)} | picture for hit, picture in zip(found, pictures, strict=True)
    ]


def _apart(
    table: Table,
    rows: np.ndarray,
    similarity: np.ndarray,
    count: int,
    per_video: int | None,
    query_spans: Sequence[tuple[str, float, float]],
) -> list[dict]:
    """The first `count` of these rows, without those that overlap the query or an earlier row, or exceed the number per
    video."""
    found: dict[str, list[dict]] = {}  # by path of the file, as several videos may be parts of it
    hits: list[dict] = []
    same_file = functools.cache(_same_file)
    begin, end = 0, max(_CANDIDATES, 20 * count)
    while begin < len(rows) and len(hits) < count:
        texts = table.take(rows[begin:end], _SHOWN)
        for row, value, hit in zip(rows[begin:end].tolist(), similarity[begin:end].tolist(), texts, strict=True):
            of_video = found.setdefault(hit["path"], [])
            if sum(other["id"] == hit["id"] for other in of_video) == per_video or any(
                _overlap(hit, other) for other in of_video
            ):
                continue
            spans = ((start, end) for path, start, end in query_spans if same_file(path, hit["path"]))
            if any(_overlap(hit, {"start": start, "end": end}) for start, end in spans):
                continue
            of_video.append({**hit, "row": row, "similarity": value})
            hits.append(of_video[-1])
            if len(hits) == count:
                break
        begin, end = end, 8 * end
    return hits


def _same_file(query: str, path: str) -> bool:
    """Compares paths, as those of shards are relative to a folder that shards do not record."""
    return query == os.path.realpath(path) if os.path.isabs(path) else query.endswith(f"/{path}")


def _overlap(a: dict, b: dict) -> bool:
    if None in (a["start"], b["start"]):  # times are unknown
        return True
    return a["start"] < b["end"] and b["start"] < a["end"]


def _random_pairs(table: Table) -> np.ndarray:
    """Sorted cosines of pairs of some rows of different videos, float64. The rows are spread over the table, but read
    from few places."""
    begins = np.cumsum([0, *table.groups])
    places = np.unique(np.linspace(0, len(table.groups) - 1, min(_PLACES, len(table.groups))).astype(int))
    each = -(-_SAMPLE // len(places))
    spread = [np.linspace(begins[place], begins[place + 1], each, endpoint=False) for place in places]
    rows = np.unique(np.concatenate(spread).astype(int))
    found = table.take(rows, ("id", "path", "vector"))
    _, video = np.unique([f"{row['path']}\n{row['id']}" for row in found], return_inverse=True)
    vectors = normalised(np.stack([row["vector"] for row in found]).astype(np.float64))
    one, other = np.triu_indices(len(found), 1)
    return np.sort((vectors @ vectors.T)[one, other][video[one] != video[other]])


def _share_below(by_chance: np.ndarray, hit: dict) -> float | None:
    below = np.searchsorted(by_chance, hit["similarity"] - _ROUNDING)
    return float(below / len(by_chance)) if len(by_chance) else None
