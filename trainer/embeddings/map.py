"""A map of videos: points with similar features are close together, and a page shows a picture of each."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import torch

from labelgen.files import write_text
from labelgen.reading import read_text
from labelgen.texts import from_csv
from trainer.embeddings.clustering import Points, clusters, points, reduced
from trainer.embeddings.map_page import COLORS, map_page
from trainer.embeddings.table import Table
from trainer.errors import SettingError, TrainerError
from trainer.evaluate.features import Vectors
from trainer.evaluate.neighbours import nearest

_NEIGHBOURS = 6  # of each point
_SPREAD = 1e-6  # vectors of length 1 count as equal if no value differs by more


def write_map(
    table: Table,
    out: Path,
    level: str = "video",
    method: str = "tsne",
    column: str | None = None,
    color: Path | None = None,
) -> None:
    """Write the map of the videos or rows of a table, see `layout` and `map_page`.

    column: of the table or of a CSV file `color`, for the colours of points; default: label or, with `color`, group. If no
    column is given and no video has a label, points are coloured by cluster. Raises TrainerError if there is no such column.
    """
    found = points(table, level)
    what = column or ("group" if color else "label")
    kinds = _csv_values(color, what, found.fields) if color else _table_values(table.name, what, found.fields)
    places = layout(found.vectors, method)
    if not (column or color or any(kinds)):
        kinds, what = _clusters(found), "cluster, as no video has a label"
    pictures = table.take(found.rows, ("thumbnail",))
    rows = [field | picture for field, picture in zip(found.fields, pictures, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    noun = "videos" if level == "video" else "moments"
    write_text(out, map_page(f"{len(rows):,} {noun}", places, rows, kinds, what, _neighbours(found), out.parent))


def _clusters(found: Points) -> list[str]:
    """The name of each point's cluster, of k-means with at most as many clusters as a map has colours."""
    k = min(len(COLORS), max(2, round((len(found.fields) / 2) ** 0.5)))
    return [f"cluster {number}" for number in clusters(found.vectors, "kmeans", k)[0]]


def _neighbours(found: Points) -> np.ndarray:
    """The points of other videos with the largest cosine to each point, best first, int64 [n, at most 6]."""
    _, video = np.unique([f"{field['path']}\n{field['id']}" for field in found.fields], return_inverse=True)
    items = Vectors(found.vectors, np.arange(len(video)) if found.level == "video" else video)
    return nearest(items, items, _NEIGHBOURS, torch.device("cpu"))


def _table_values(name: str, column: str, fields: list[dict]) -> list[str]:
    if column not in fields[0]:
        raise SettingError(f"{name}: no column {column}, only {', '.join(fields[0])}; give a CSV file with --color")
    return [str(field[column]) for field in fields]


def _csv_values(path: Path, column: str, fields: list[dict]) -> list[str]:
    """Value of each point in a column of a CSV file, "" if it has none: by id, and by start if a video has several
    rows. Raises TrainerError for other files."""
    reader = csv.DictReader(io.StringIO(read_text(path, encoding="utf-8-sig"), newline=""))
    try:
        names, rows = list(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise TrainerError(f"{path}: not a CSV file ({error})") from error
    if absent := {"id", column} - set(names):
        raise TrainerError(f"{path}: no column {', '.join(sorted(absent))}, only {', '.join(names)}")
    by_id = {from_csv(row["id"]): row[column] or "" for row in rows}
    if len(by_id) == len(rows):
        return [by_id.get(field["id"], "") for field in fields]
    by_moment = {(from_csv(row["id"]), row.get("start")): row[column] or "" for row in rows}
    if len(by_moment) < len(rows) or len({field["id"] for field in fields}) == len(fields):
        raise TrainerError(
            f"{path}: {len(rows):,} rows of {len(by_id):,} ids, expected one per video, or with --level row one per start"
        )
    return [by_moment.get((field["id"], "" if field["start"] is None else str(field["start"])), "") for field in fields]


def layout(vectors: np.ndarray, method: str = "tsne") -> np.ndarray:
    """Positions of vectors on a map, from their first 50 principal components.

    Parameters
    ----------
    vectors : float32 [n, d]
        Such as `Points.vectors`. Equal vectors, which no method can handle, are placed in a grid.
    method : str
        "tsne" (L. van der Maaten, G. Hinton, 2008), or "umap" (L. McInnes et al., 2018), which needs the package umap-learn.

    Returns
    -------
    float64 [n, 2]
        0 to 1.

    Raises
    ------
    TrainerError
        Without that package, and for fewer than 3 vectors.

    Examples
    --------
    >>> import numpy as np
    >>> from trainer.embeddings.map import layout
    >>> layout(np.ones((4, 8), np.float32)).tolist()  # equal vectors
    [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    """
    if (n := len(vectors)) < 3:
        raise TrainerError(f"a map of {n} points cannot be drawn, expected at least 3")
    if np.ptp(vectors, axis=0).max() < _SPREAD:
        columns = math.ceil(n**0.5)
        return np.stack([(np.arange(n) % columns + 0.5) / columns, (np.arange(n) // columns + 0.5) / columns], 1)
    x = reduced(vectors)
    if x.shape[1] == 1:
        x = np.hstack([x, 0 * x])  # t-SNE needs two components to start
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise TrainerError(f"UMAP needs the package umap-learn ({error}): pip install umap-learn") from error
        places = UMAP(n_neighbors=min(15, n - 1), init="spectral" if n > 3 else "random", random_state=0).fit_transform(
            x
        )
    else:
        from sklearn.manifold import TSNE

        places = TSNE(perplexity=min(30, (n - 1) / 3), init="pca", random_state=0).fit_transform(x)
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, 1e-12)
