"""The rows of a table that are nearest to a query, by the cosine of their vectors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labelgen.files import replacing
from trainer.embeddings.table import Table

EXACT_ROWS = 1_000_000  # from which on an index is used, where faiss is installed
_CANDIDATES = 2000  # rows among which moments that overlap a better one are left out
_SHOWN = ("id", "path", "label", "start", "end", "thumbnail")


def search(
    table: Table,
    query: np.ndarray,
    count: int = 10,
    per_video: int | None = None,
    own: tuple[str, float, float] | None = None,
    exact: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict]:
    """The `count` rows most similar to a query (float32 [d]), best first: columns of the table and "similarity".

    Of rows of one video that overlap in time the best one counts, and at most `per_video` of it. own: path, start and end
    of the query, whose own moments are left out. Every row is compared; in a table of more than EXACT_ROWS rows, unless
    `exact`, those that an index of faiss proposes, which is kept beside the table.
    """
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    near = _indexed if table.rows > EXACT_ROWS and not exact else _compared
    rows, similarity = near(table, query.astype(np.float32), max(_CANDIDATES, 20 * count), say)
    found: list[dict] = []
    taken: Counter[str] = Counter()
    texts = table.take(rows, _SHOWN[:-1])
    for row, value, hit in zip(rows.tolist(), similarity.tolist(), texts, strict=True):
        if len(found) == count:
            break
        if own and _same_file(own[0], hit["path"]) and _overlap(hit, {"start": own[1], "end": own[2]}):
            continue
        others = [other for other in found if other["id"] == hit["id"]]
        if taken[hit["id"]] == per_video or any(_overlap(hit, other) for other in others):
            continue
        taken[hit["id"]] += 1
        found.append({**hit, "row": row, "similarity": value})
    pictures = table.take([hit["row"] for hit in found], ("thumbnail",))
    return [hit | picture for hit, picture in zip(found, pictures, strict=True)]


def _same_file(query: str, path: str) -> bool:
    """Paths of shards are relative to a folder that the shards do not name."""
    return query == os.path.realpath(path) if os.path.isabs(path) else query.endswith(f"/{path}")


def _overlap(a: dict, b: dict) -> bool:
    if None in (a["start"], b["start"]):  # no times are known
        return True
    return a["start"] < b["end"] and b["start"] < a["end"]


def _compared(table: Table, query: np.ndarray, wanted: int, say: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and similarities of the best rows, by comparing all, block by block; equal ones in the order of the table."""
    rows, best, begin = np.empty(0, np.int64), np.empty(0), 0
    for (vectors,) in table.blocks("vector"):
        lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
        best = np.concatenate([best, vectors @ query / lengths])
        rows = np.concatenate([rows, np.arange(begin, begin + len(vectors))])
        begin += len(vectors)
        order = np.argsort(-best, kind="stable")[:wanted]
        rows, best = rows[order], best[order]
    return rows, best


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
    best, rows = index.search(query[None], min(wanted, table.rows), params=parameters)
    return rows[0][rows[0] >= 0], best[0][rows[0] >= 0]


def _lists(table: Table) -> int:
    return max(1, int(np.sqrt(table.rows)))


def _built(faiss, table: Table):
    """Inverted lists of vectors of length 1, learnt from up to 64 of them per list."""
    lists = _lists(table)
    keep = max(1, table.rows // (64 * lists))
    index = faiss.index_factory(table.width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.concatenate([_unit(vectors[::keep]) for (vectors,) in table.blocks("vector")]))
    for (vectors,) in table.blocks("vector"):
        index.add(_unit(vectors))
    return index


def _unit(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)
