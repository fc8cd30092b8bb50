"""Groups of videos or moments: clusters by features, and near-duplicates by pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from trainer.embeddings.table import Table, decoded
from trainer.errors import TrainerError
from trainer.evaluate.features import normalised

_DIMENSIONS = 50  # principal components for clustering and maps
_BLOCK = 2048  # videos compared with all others at a time
_CANDIDATES = 20  # videos compared picture by picture
_FLAT = 1.0  # grey levels; a picture with a smaller standard deviation is flat


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


def duplicates(table: Table, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The group of near-duplicates of every video of a table, int64 [videos], -1 for none, and its similarity to the
    nearest other video [videos].

    Pictures are compared instead of features, in which two videos of one person in one room can be as close as
    duplicates. The similarity of two videos is the mean correlation of each thumbnail (grey, 16 x 12) of the shorter
    one with the best of the other, so that duplicates of another size, quality or beginning are found. Videos of a
    single colour are compared by that. Each video is compared with the 20 nearest ones by mean picture.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pictures, bounds = _pictures(table)
    means = normalised(np.add.reduceat(pictures, bounds[:-1]))
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
    """Thumbnails of all rows as vectors of length 1 whose products are correlations, float32 [rows, 198]; and the first
    row of each video, int64 [videos + 1].

    A vector is the grey picture minus its mean. Flat pictures correlate with nothing: if all of a video are flat, the vector is
    the mean colour as three angles from 0 to 180 degrees, so that black and white are opposites; otherwise it is zero.
    """
    found: list[np.ndarray] = []
    colors: list[np.ndarray] = []
    begins: list[int] = []
    for part in table.parts:
        last = None
        for names, thumbnails in part.blocks("id", "thumbnail"):
            begins += [len(found) + row for row, name in enumerate(names) if name != (names[row - 1] if row else last)]
            last = names[-1]
            for jpeg in thumbnails:
                grey = cv2.resize(decoded(jpeg, cv2.IMREAD_GRAYSCALE), (16, 12), interpolation=cv2.INTER_AREA).ravel()
                found.append(grey.astype(np.float32))
                colors.append(decoded(jpeg).mean((0, 1)) if grey.std() < _FLAT else np.zeros(3))
    pictures = np.stack(found)
    bounds = np.array([*begins, len(pictures)])
    flat = pictures.std(1) < _FLAT
    wholly = np.repeat(np.logical_and.reduceat(flat, bounds[:-1]), np.diff(bounds))[:, None]
    angle = np.pi / 255 * np.stack(colors)
    centred = np.where(flat[:, None], 0, pictures - pictures.mean(1, keepdims=True))
    vectors = np.hstack([centred, wholly * np.cos(angle), wholly * np.sin(angle)])
    return normalised(vectors).astype(np.float32), bounds
