"""The rows of a table that are nearest to a query, by the cosine of their vectors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labelgen.files import replacing
from trainer.embeddings.table import Table, unit

EXACT_ROWS = 1_000_000  # from which on an index is used, where faiss is installed
_CANDIDATES = 2000  # rows among which moments are sought first
_SHOWN = ("id", "path", "label", "start", "end")
_SAMPLE, _PLACES = 1000, 16  # rows of random pairs, and of how many places of a table they are, at most
_ROUNDING = 1e-6  # cosines that differ by less are equal


def search(
    table: Table,
    query: np.ndarray,
    count: int = 10,
    per_video: int | None = None,
    own: tuple[str, float, float] | None = None,
    exact: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict]:
    """The `count` rows most similar to a query (float32 [d]), best first: columns of the table and "similarity"; and "above", the
    share of random pairs of rows of different videos that are less similar, None where there is one video alone.

    Of rows of one video that overlap in time the best one counts, and at most `per_video` of it. own: path, start and end
    of the query, whose own moments are left out. Every row is compared; of a file of more than EXACT_ROWS rows, unless
    `exact`, those that an index of faiss proposes, which is kept beside it.
    """
    query = unit(query[None].astype(np.float64))[0]
    wanted = max(_CANDIDATES, 20 * count)
    while True:
        rows, similarity = _nearest(table, query, wanted, exact, say)
        found = _apart(table, rows, similarity, count, per_video, own)
        if len(found) == count or len(rows) == table.rows:
            break
        exact = len(rows) < min(wanted, table.rows)  # more the indices do not propose
        wanted *= 8
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
    own: tuple[str, float, float] | None,
) -> list[dict]:
    """The first `count` of these rows that neither overlap one before them or the query, nor are too many of a video."""
    found: dict[tuple[str, str], list[dict]] = {}
    hits: list[dict] = []
    same_file = functools.cache(functools.partial(_same_file, own[0] if own else ""))
    begin, end = 0, max(_CANDIDATES, 20 * count)
    while begin < len(rows) and len(hits) < count:
        texts = table.take(rows[begin:end], _SHOWN)
        for row, value, hit in zip(rows[begin:end].tolist(), similarity[begin:end].tolist(), texts, strict=True):
            of_video = found.setdefault((hit["id"], hit["path"]), [])
            if len(of_video) == per_video or any(_overlap(hit, other) for other in of_video):
                continue
            if own and same_file(hit["path"]) and _overlap(hit, {"start": own[1], "end": own[2]}):
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
    vectors = unit(np.stack([row["vector"] for row in found]).astype(np.float64))
    one, other = np.triu_indices(len(found), 1)
    return np.sort((vectors @ vectors.T)[one, other][video[one] != video[other]])


def _share_below(by_chance: np.ndarray, hit: dict) -> float | None:
    below = np.searchsorted(by_chance, hit["similarity"] - _ROUNDING)
    return float(below / len(by_chance)) if len(by_chance) else None


def _nearest(table: Table, query: np.ndarray, wanted: int, exact: bool, say: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and similarities of rows, the best first, equal ones in the order of the table: of all rows, or at least `wanted`
    of each file that has an index, as long as that proposes so many."""
    rows, best, begin = [], [], 0
    for part in table.parts:
        near = _indexed if part.rows > EXACT_ROWS and not exact else _compared
        of_part, values = near(part, query, wanted, say)
        rows.append(begin + of_part)
        best.append(values)
        begin += part.rows
    similarity = np.concatenate(best)
    order = np.argsort(-similarity, kind="stable")
    return np.concatenate(rows)[order], similarity[order]


def _compared(table: Table, query: np.ndarray, wanted: int, say: Callable) -> tuple[np.ndarray, np.ndarray]:
    """All rows in their order, and their similarities, computed block by block."""
    cosines = [unit(vectors.astype(np.float64)) @ query for (vectors,) in table.blocks("vector")]
    return np.arange(table.rows), np.concatenate([*cosines, np.empty(0)])


def _indexed(table: Table, query: np.ndarray, wanted: int, say: Callable) -> tuple[np.ndarray, np.ndarray]:
    try:
        import faiss
    except ImportError:
        say(f"{table.rows:,} rows are compared one by one; an index is faster: pip install faiss-cpu")
        return _compared(table, query, wanted, say)
    path = Path(f"{table.path}.faiss")
    if path.exists() and path.stat().st_mtime >= table.path.stat().st_mtime:
        index = faiss.read_index(str(path))
    else:
        say(f"building an index of {table.rows:,} rows, {path}")
        index = _built(faiss, table)
        with replacing(path, RuntimeError) as temporary:
            faiss.write_index(index, str(temporary))
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = max(8, _lists(table) // 16)
    best, rows = index.search(query[None].astype(np.float32), min(wanted, table.rows), params=parameters)
    return rows[0][rows[0] >= 0], best[0][rows[0] >= 0]


def _lists(table: Table) -> int:
    return max(1, int(np.sqrt(table.rows)))


def _built(faiss, table: Table):
    """Inverted lists of vectors of length 1, learnt from up to 64 of them per list."""
    lists = _lists(table)
    keep = max(1, table.rows // (64 * lists))
    index = faiss.index_factory(table.width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.concatenate([unit(vectors[::keep]) for (vectors,) in table.blocks("vector")]))
    for (vectors,) in table.blocks("vector"):
        index.add(unit(vectors))
    return index
