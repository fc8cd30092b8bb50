"""The rows of a table that are nearest to a query, by the cosine of their vectors."""

from __future__ import annotations

import functools
import os

import numpy as np

from trainer.embeddings.table import Table
from trainer.evaluate.features import normalised

_CANDIDATES = 2000  # rows among which moments are sought first
_SHOWN = ("id", "path", "label", "start", "end")
_SAMPLE, _PLACES = 1000, 16  # rows of random pairs, and of how many places of a table they are, at most
_ROUNDING = 1e-6  # cosines that differ by less are equal


def search(
    table: Table,
    query: np.ndarray,
    count: int = 10,
    per_video: int | None = None,
    query_span: tuple[str, float, float] | None = None,
) -> list[dict]:
    """The `count` rows most similar to a query (float32 [d]), best first: columns of the table and "similarity"; and "above", the
    share of random pairs of rows of different videos that are less similar, None if there is only one video.

    Of rows of one video that overlap in time the best one counts, and at most `per_video` of it. query_span: path, start and end
    of the query, whose moments are left out. Every row is compared; equal ones come in the order of the table.
    """
    query = normalised(query[None].astype(np.float64))[0]
    cosines = [
        normalised(vectors.astype(np.float64)) @ query for part in table.parts for (vectors,) in part.blocks("vector")
    ]
    similarity = np.concatenate([*cosines, np.empty(0)])
    rows = np.argsort(-similarity, kind="stable")
    found = _apart(table, rows, similarity[rows], count, per_video, query_span)
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
    query_span: tuple[str, float, float] | None,
) -> list[dict]:
    """The first `count` of these rows that neither overlap one before them or the query, nor are too many of a video."""
    found: dict[tuple[str, str], list[dict]] = {}
    hits: list[dict] = []
    same_file = functools.cache(functools.partial(_same_file, query_span[0] if query_span else ""))
    begin, end = 0, max(_CANDIDATES, 20 * count)
    while begin < len(rows) and len(hits) < count:
        texts = table.take(rows[begin:end], _SHOWN)
        for row, value, hit in zip(rows[begin:end].tolist(), similarity[begin:end].tolist(), texts, strict=True):
            of_video = found.setdefault((hit["id"], hit["path"]), [])
            if len(of_video) == per_video or any(_overlap(hit, other) for other in of_video):
                continue
            if query_span and same_file(hit["path"]) and _overlap(hit, {"start": query_span[1], "end": query_span[2]}):
                continue
            of_video.append({**hit, "row": row, "similarity": value})
            hits.append(of_video[-1])
            if len(hits) == count:
                break
        begin, end = end, 8 * end
    return hits


def _same_file(query: str, path: str) -> bool:
    """Paths of shards are relative to a folder that the shards do not name."""
    return query == os.path.realpath(path) if os.path.isabs(path) else query.endswith(f"/{path}")


def _overlap(a: dict, b: dict) -> bool:
    if None in (a["start"], b["start"]):  # no times are known
        return True
    return a["start"] < b["end"] and b["start"] < a["end"]


def _random_pairs(table: Table) -> np.ndarray:
    """Cosines of the pairs of some rows of different videos, float64, sorted. The rows are spread over the table, but read from a
    few places alone."""
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
