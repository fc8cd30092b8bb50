"""Groups of videos or moments by their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.embeddings.table import Table
from trainer.errors import TrainerError
from trainer.evaluate.features import normalised

_DIMENSIONS = 50  # principal components for clustering and maps


@dataclass(frozen=True)
class Points:
    """Vectors of videos or of rows.

    Parameters
    ----------
    level : str
        "video" or "row".
    vectors : float32 [n, d]
        Of length 1.
    fields : list of dict
        id, path, label, split, start and end (seconds) of each.
    rows : int64 [n]
        The row of the table with its thumbnail.
    """

    level: str
    vectors: np.ndarray
    fields: list[dict]
    rows: np.ndarray


def points(table: Table, level: str) -> Points:
    """The vectors of a table as points to cluster or to draw.

    Parameters
    ----------
    table : Table
        Of features.
    level : str
        "row", or "video" for one point per video, the mean of its rows.

    Returns
    -------
    Points
        In the order of the table.

    Raises
    ------
    TrainerError
        If there are fewer than two.

    Examples
    --------
    >>> from trainer.embeddings.clustering import points
    >>> from trainer.embeddings.table import Table
    >>> found = points(Table("features.parquet"), "video")
    >>> len(found.vectors) == len(found.fields) == 13
    True
    """
    fields: list[dict] = []
    vectors: list[np.ndarray] = []
    rows: list[int] = []
    count: list[int] = []
    columns, begin = ("id", "path", "label", "split", "start", "end"), 0
    for part in table.parts:
        new = True  # videos of two files are different
        for block, *texts in part.blocks("vector", *columns):
            for number, values in enumerate(zip(*texts, strict=True)):
                field = dict(zip(columns, values, strict=True))
                if level == "video" and not new and fields[-1]["id"] == field["id"]:
                    vectors[-1] += block[number]
                    fields[-1]["end"], count[-1] = field["end"], count[-1] + 1
                else:
                    vectors.append(block[number].astype(np.float64))
                    fields.append(field)
                    rows.append(begin + number)
                    count.append(1)
                new = False
            begin += len(block)
    if len(fields) < 2:
        noun = "rows" if level == "row" else "videos"
        raise TrainerError(f"{table.name}: {len(fields)} {noun} to cluster, expected at least 2")
    return Points(
        level, normalised(np.stack(vectors)).astype(np.float32), fields, np.array(rows) + np.array(count) // 2
    )


def reduced(vectors: np.ndarray) -> np.ndarray:
    """The first 50 principal components of vectors, or as many as there are; float32 [n, 50]."""
    from sklearn.decomposition import PCA

    return PCA(min(_DIMENSIONS, *vectors.shape), random_state=0).fit_transform(vectors)


def clusters(
    vectors: np.ndarray, method: str, k: int | None = None, smallest: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of vectors, from their first 50 principal components.

    Parameters
    ----------
    vectors : float32 [n, d]
        Such as `Points.vectors`.
    method : str
        "kmeans" for k clusters, "hdbscan" for all regions that are denser than their surroundings.
    k : int
        Number of clusters; default: sqrt(n / 2).
    smallest : int
        Points of the smallest cluster, with "hdbscan".

    Returns
    -------
    int64 [n], float64 [n]
        Cluster of every point, the largest first, -1 for none; and its distance from the mean of the cluster.

    Raises
    ------
    TrainerError
        If k exceeds the number of points.

    Examples
    --------
    >>> import numpy as np
    >>> from trainer.embeddings.clustering import clusters
    >>> group, distance = clusters(np.array([[0, 1], [0.1, 1], [1, 0], [0, 0.9]], np.float32), "kmeans", k=2)
    >>> group.tolist()
    [0, 0, 1, 0]
    """
    from sklearn.cluster import HDBSCAN, KMeans

    n = len(vectors)
    x = reduced(vectors)
    if method == "kmeans":
        k = max(2, round((n / 2) ** 0.5)) if k is None else k
        if k > n:
            raise TrainerError(f"k = {k} exceeds the {n} items to cluster; choose at most {n}")
        found = KMeans(k, n_init=10, random_state=0).fit_predict(x)
    else:
        found = HDBSCAN(min(smallest, n), copy=True).fit_predict(x)
    names, counts = np.unique(found[found >= 0], return_counts=True)
    rank = {name: place for place, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    ordered = np.array([rank.get(name, -1) for name in found])
    distance = np.zeros(n)
    for cluster in np.unique(ordered):
        members = ordered == cluster
        distance[members] = np.linalg.norm(x[members] - x[members].mean(0), axis=1)
    return ordered, distance
