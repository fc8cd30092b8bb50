"""Groups of videos or moments by their features: clusters, and near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from trainer.embeddings.table import Table, decoded
from trainer.errors import TrainerError

_DIMENSIONS = 50  # that clustering and maps see, by PCA
_BLOCK = 2048  # videos that are compared at a time with all others
_CANDIDATES = 20  # videos that are compared picture by picture


@dataclass(frozen=True)
class Points:
    """Vectors float32 [n, d] of length 1, of videos or of rows; fields: id, path, label, split, start, end of each; rows: that of
    the table whose thumbnail stands for it, int64 [n]."""

    vectors: np.ndarray
    fields: list[dict]
    rows: np.ndarray


def points(table: Table, level: str) -> Points:
    """The rows of a table ("row"), or one point for each of its videos, the mean of its rows ("video")."""
    fields: list[dict] = []
    vectors: list[np.ndarray] = []
    rows: list[int] = []
    count: list[int] = []
    columns, begin = ("id", "path", "label", "split", "start", "end"), 0
    for block, *texts in table.blocks("vector", *columns):
        for number, values in enumerate(zip(*texts, strict=True)):
            field = dict(zip(columns, values, strict=True))
            if level == "video" and fields and fields[-1]["id"] == field["id"]:
                vectors[-1] += block[number]
                fields[-1]["end"], count[-1] = field["end"], count[-1] + 1
            else:
                vectors.append(block[number].copy())
                fields.append(field)
                rows.append(begin + number)
                count.append(1)
        begin += len(block)
    if len(fields) < 2:
        raise TrainerError(f"{table.path}: {len(fields)} of what is to be grouped, expected at least 2")
    return Points(_unit(np.stack(vectors)), fields, np.array(rows) + np.array(count) // 2)


def reduced(vectors: np.ndarray) -> np.ndarray:
    """Their first 50 principal components, or as many as there are; float32 [n, 50]."""
    from sklearn.decomposition import PCA

    return PCA(min(_DIMENSIONS, *vectors.shape), random_state=0).fit_transform(vectors)


def clusters(
    vectors: np.ndarray, method: str, k: int | None = None, smallest: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of every point, int64 [n], the largest first, -1 for none; and its distance from its cluster's mean [n].

    method: "kmeans" into k clusters (default sqrt(n / 2)), "hdbscan" into as many as are denser than what lies around
    them, of at least `smallest` points.
    """
    from sklearn.cluster import HDBSCAN, KMeans

    n = len(vectors)
    x = reduced(vectors)
    if method == "kmeans":
        k = max(2, round((n / 2) ** 0.5)) if k is None else k
        if k > n:
            raise TrainerError(f"{k} clusters of {n} points cannot be; ask for at most {n}")
        found = KMeans(k, n_init=10, random_state=0).fit_predict(x)
    else:
        found = HDBSCAN(min(smallest, n), copy=True).fit_predict(x)
    names, counts = np.unique(found[found >= 0], return_counts=True)
    rank = {name: place for place, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    ordered = np.array([rank.get(name, -1) for name in found])
    distance = np.zeros(n)
    for cluster in np.unique(ordered):
        own = ordered == cluster
        distance[own] = np.linalg.norm(x[own] - x[own].mean(0), axis=1)
    return ordered, distance


def duplicates(table: Table, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Group of every video of a table that shows nearly the same as another one, int64 [videos], -1 for the others, and
    its similarity to the nearest other one [videos].

    Pictures are compared, not features, to which two videos of one person in one room may be as near as a copy is: the
    similarity of two videos is the correlation of the thumbnails (grey, 16 x 12) of the shorter one with the best one of
    the other, on average, so that a copy of another size, quality or beginning is found. Of each video, the nearest 20 by
    the mean of their pictures are compared so.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pictures, bounds = _pictures(table)
    means = _unit(np.add.reduceat(pictures, bounds[:-1]))
    n, edges = len(means), []
    nearest = np.full(n, -1.0)
    for begin in range(0, n, _BLOCK):
        similar = means[begin : begin + _BLOCK] @ means.T
        for a, candidates in enumerate(np.argsort(-similar, axis=1, kind="stable")[:, : _CANDIDATES + 1], begin):
            for b in candidates[candidates != a]:
                one, other = pictures[bounds[a] : bounds[a + 1]], pictures[bounds[b] : bounds[b + 1]]
                pairs = one @ other.T if len(one) <= len(other) else other @ one.T
                value = float(pairs.max(1).mean())
                nearest[a], nearest[b] = max(nearest[a], value), max(nearest[b], value)
                if value >= threshold:
                    edges.append((a, b))
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    _, group = connected_components(coo_array((np.ones(len(first)), (first, second)), (n, n)), directed=False)
    alone = np.bincount(group)[group] == 1
    return np.where(alone, -1, np.searchsorted(np.unique(group[~alone]), group)), nearest


def _pictures(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails of all rows, grey, their mean taken off, of length 1, float32 [rows, 192]; and where the rows of each video
    begin, int64 [videos + 1]."""
    found, ids = [], []
    for names, thumbnails in table.blocks("id", "thumbnail"):
        ids += names
        grey = [decoded(jpeg, cv2.IMREAD_GRAYSCALE) for jpeg in thumbnails]
        small = [cv2.resize(picture, (16, 12), interpolation=cv2.INTER_AREA).ravel() for picture in grey]
        found.append(np.stack(small).astype(np.float32))
    pictures = np.concatenate(found)
    begins = [row for row, name in enumerate(ids) if not row or name != ids[row - 1]]
    return _unit(pictures - pictures.mean(1, keepdims=True)), np.array([*begins, len(ids)])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
