"""Maps of videos on a page: still ones, and one that a script (pages/map.js) explores, which can be read without it, too."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from trainer.embeddings.sheets import moment, named
from trainer.embeddings.table import decoded
from trainer.pages.page import fill, image, join, page, paragraph

COLORS = ("#3a7fdd", "#d1495b", "#2a9d4e", "#e08e0b", "#9467d0", "#1a9aa8", "#c2489b", "#8a6d3b", "#6a7f10", "#7d7aa8")
_OTHER = "#9aa3ad"
_SIZE, _EDGE = (1000, 750), 30  # width and height of the drawing, and the empty space around the points
_FULL, _PICTURED = 1000, 10_000  # points with pictures as in the table; points with pictures at all
_LINES, _QUALITY = 60, 50  # of the smaller pictures: height in pixels, quality of the WebP
_LEAD = (
    "Points that are close together have similar features; distances across the map mean little. Choose a point to see its "
    "video and its nearest neighbours."
)
_KEYS = (
    "Arrow keys move to the next point, Enter to its video, + and - zoom, 0 shows the whole map. Drag the map, or pinch it; the "
    "wheel zooms with Ctrl."
)
_TOOLS = """<div class="tools" hidden>
<label>Search <input type="search" placeholder="name or {}" autocomplete="off" spellcheck="false"></label> <output></output>
<span><button type="button" data-zoom="2" aria-label="zoom in">+</button>
<button type="button" data-zoom="0.5" aria-label="zoom out">&minus;</button>
<button type="button" data-zoom="0">whole map</button></span>
<label><input type="checkbox"> pictures</label>
</div>
"""
_MAP = """<div class="explore"><div>{}{}{}<p class="muted keys" hidden>{}</p></div>
<div class="chosen" aria-live="polite"><p class="muted">Choose a point: its video and its neighbours appear here.</p></div></div>
"""


def map_page(
    title: str,
    places: np.ndarray,
    rows: Sequence[dict],
    kinds: Sequence[str],
    what: str,
    near: np.ndarray,
    folder: Path,
) -> str:
    """A page with a map of rows (id, path, start, end, thumbnail) at their places [n, 2], from 0 to 1, coloured by kind, and
    with an entry for each: its picture, its video, and links to the entries of its neighbours.

    what: the meaning of the kinds, of which the ten most frequent have different colours; near: neighbours of each row, best
    first, int64 [n, k]; folder: of the page, for links to the videos
    """
    colors, key = legend(kinds)
    points = join(
        fill(
            '<a href="#p{0}"><circle cx="{1:.1f}" cy="{2:.1f}" r="7" fill="{3}"><title>{4}</title></circle></a>\n',
            number,
            x,
            y,
            color,
            _name(row, kind),
        )
        for number, ((x, y), row, kind, color) in enumerate(
            zip(_placed(places, _SIZE), rows, kinds, colors, strict=True)
        )
    )
    template = '<svg class="map" viewBox="0 0 {} {}" role="group" aria-label="Map of {} points by {}">{}</svg>'
    drawn = fill(template, *_SIZE, len(rows), what, points)
    moments = len({row["id"] for row in rows}) < len(rows)
    names = [_name(row, "") if moments else row["id"] for row in rows]
    shown = set(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _PICTURED)).astype(int)).tolist())
    entries = join(
        _entry(number, rows, kind, near[number], number in shown, names, folder) for number, kind in enumerate(kinds)
    )
    explored = fill(_MAP, fill(_TOOLS, what.partition(",")[0]), key, drawn, _KEYS)
    about = "Each with its neighbours: of the other videos, those with the largest cosine of the features, the nearest first."
    listed = paragraph(about, "muted") + fill('<ul class="points">{}</ul>\n', entries)
    sections = [("map", f"Coloured by {what}", explored), ("points", f"All {title}", listed)]
    return page(title, _LEAD, "", sections, "", script="map.js")


def legend(kinds: Sequence[str]) -> tuple[list[str], Markup]:
    """The colour of each point, and what the colours mean. The ten most frequent kinds have colours of their own."""
    ranked = [kind for kind, _ in sorted(Counter(kinds).items(), key=lambda one: (-one[1], one[0]))]
    colors = dict(zip(ranked, COLORS, strict=False))
    names = [(colors[kind], kind or "none") for kind in ranked[: len(COLORS)]]
    names += [(_OTHER, f"{len(ranked) - len(COLORS)} others")] * (len(ranked) > len(COLORS))
    dot = '<li><svg viewBox="0 0 12 12"><circle cx="6" cy="6" r="5" fill="{}"/></svg>{}</li>'
    key = fill('<ul class="legend">{}</ul>\n', join(fill(dot, *name) for name in names))
    return [colors.get(kind, _OTHER) for kind in kinds], key


def _placed(places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return _EDGE + places * (np.array(size) - 2 * _EDGE)


def _name(row: dict, kind: str) -> str:
    return ", ".join(filter(None, (row["id"], moment(row), kind)))


def _entry(
    number: int, rows: Sequence[dict], kind: str, near: np.ndarray, pictured: bool, names: Sequence[str], folder: Path
) -> Markup:
    row, shown = rows[number], Markup()
    if pictured:
        picture = decoded(row["thumbnail"])
        if len(rows) <= _FULL:
            shown = image(row["thumbnail"], "jpeg", "", picture.shape[:2])
        else:
            width = max(1, round(_LINES * picture.shape[1] / picture.shape[0]))
            small = cv2.resize(picture, (width, _LINES), interpolation=cv2.INTER_AREA)
            data = cv2.imencode(".webp", small[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()
            shown = image(data, "webp", "", small.shape[:2])
    links = join(fill('<a href="#p{}">{}</a> ', int(other), names[other]) for other in near)
    template = '<li id="p{}">{}<p>{} <small>{}</small></p>{}</li>\n'
    about = ", ".join(filter(None, (moment(row), kind)))
    nearest = fill('<p class="near"><span>nearest:</span> {}</p>', links) if len(near) else ""
    return fill(template, number, shown, named(row, folder), about, nearest)


def drawing(
    places: np.ndarray, rows: Sequence[dict], kinds: Sequence[str], what: str, size: tuple[int, int]
) -> tuple[Markup, Markup]:
    """Legend, and a map with a point for each row (id, start, end, thumbnail) at its place, coloured by kind, with its picture
    on hover.

    what: the meaning of the kinds, of which the ten most frequent have different colours; size: width and height
    """
    colors, key = legend(kinds)
    drawn = join(
        fill(
            '<circle cx="{:.1f}" cy="{:.1f}" r="7" fill="{}" tabindex="0"><title>{}</title></circle>{}',
            x,
            y,
            color,
            (name := _name(row, kind)),
            _picture(x, y, row["thumbnail"], name, size),
        )
        for (x, y), row, kind, color in zip(_placed(places, size), rows, kinds, colors, strict=True)
    )
    template = '<svg class="map" viewBox="0 0 {} {}" role="img" aria-label="Map of {} points by {}"><g>{}</g></svg>'
    return key, fill(template, *size, len(rows), what, drawn)


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
