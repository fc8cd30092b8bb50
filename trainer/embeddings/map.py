"""A map of videos: points with similar features are close together, and a page shows a picture of each."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.files import write_text
from labelgen.reading import read_text
from labelgen.texts import from_csv
from trainer.embeddings.clustering import points, reduced
from trainer.embeddings.sheets import moment
from trainer.embeddings.table import Table
from trainer.errors import SettingError, TrainerError
from trainer.pages.page import fill, join, page, scroll

_SIZE, _EDGE = (1000, 640), 30  # width and height of the drawing, and the empty space around the points
_COLORS = ("#3a7fdd", "#d1495b", "#2a9d4e", "#e08e0b", "#9467d0", "#1a9aa8", "#c2489b", "#8a6d3b", "#6a7f10", "#5b6470")
_OTHER = "#9aa3ad"
_SPREAD = 1e-6  # vectors of length 1 count as equal if no value differs by more


def write_map(
    table: Table,
    out: Path,
    level: str = "video",
    method: str = "tsne",
    column: str = "label",
    color: Path | None = None,
) -> None:
    """Write the map of the videos or rows of a table, see `layout` and `map_page`.

    column: of the table or of a CSV file `color`, for the colours of points. Raises TrainerError if there is no such column.
    """
    found = points(table, level)
    kinds = _csv_values(color, column, found.fields) if color else _table_values(table.name, column, found.fields)
    places = layout(found.vectors, method)
    pictures = table.take(found.rows, ("thumbnail",))
    rows = [field | picture for field, picture in zip(found.fields, pictures, strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    noun = "videos" if level == "video" else "moments"
    write_text(out, map_page(f"{len(rows):,} {noun}", places, rows, kinds, column))


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


def map_page(title: str, places: np.ndarray, rows: Sequence[dict], kinds: Sequence[str], what: str) -> str:
    """A page with the map of `drawing`."""
    lead = (
        "Points that are close together have similar features. Point at one, or move to it with the tab key, to see it."
    )
    key, drawn = drawing(places, rows, kinds, what)
    return page(title, lead, "", [("map", f"Coloured by {what}", join((key, scroll("The map", drawn))))], "")


def drawing(
    places: np.ndarray, rows: Sequence[dict], kinds: Sequence[str], what: str, size: tuple[int, int] = _SIZE
) -> tuple[Markup, Markup]:
    """Legend, and a map with a point for each row (id, start, end, thumbnail) at its place, coloured by kind, with its picture
    on hover.

    what: the meaning of the kinds, of which the ten most frequent have different colours; size: width and height
    """
    ranked = [kind for kind, _ in Counter(kinds).most_common()]
    colors = dict(zip(ranked, _COLORS, strict=False))
    drawn = join(
        fill(
            '<circle cx="{:.1f}" cy="{:.1f}" r="7" fill="{}" tabindex="0"><title>{}</title></circle>{}',
            x,
            y,
            colors.get(kind, _OTHER),
            (name := ", ".join(filter(None, (row["id"], moment(row), kind)))),
            _picture(x, y, row["thumbnail"], name, size),
        )
        for (x, y), row, kind in zip(_EDGE + places * (np.array(size) - 2 * _EDGE), rows, kinds, strict=True)
    )
    template = '<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="Map of {} points by {}"><g>{}</g></svg>'
    whole = fill(template, *size, len(rows), what, drawn)
    names = [(colors[kind], kind or "none") for kind in ranked[: len(_COLORS)]]
    names += [(_OTHER, f"{len(ranked) - len(_COLORS)} others")] * (len(ranked) > len(_COLORS))
    dot = '<li><svg viewBox="0 0 12 12"><circle cx="6" cy="6" r="5" fill="{}"/></svg>{}</li>'
    return fill('<ul class="legend">{}</ul>\n', join(fill(dot, *name) for name in names)), whole


def _picture(x: float, y: float, jpeg: bytes, name: str, size: tuple[int, int]) -> Markup:
    """The thumbnail beside its point, towards the middle of the map, above its name."""
    width, height = 200, 150
    right, low = x < size[0] / 2, y < size[1] / 2
    left, top = x + 12 if right else x - 12 - width, y + 12 if low else y - 32 - height
    template = (
        '<g><image x="{:.0f}" y="{:.0f}" width="{}" height="{}" href="data:image/jpeg;base64,{}"/>'
        '<text x="{:.0f}" y="{:.0f}" text-anchor="{}">{}</text></g>\n'
    )
    source, anchor = base64.b64encode(jpeg).decode(), "start" if right else "end"
    at = (left if right else left + width, top + height + 16)
    return fill(template, left, top, width, height, source, *at, anchor, name)
