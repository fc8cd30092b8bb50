"""Videos as pictures: contact sheets, and a page of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from labelgen.files import write_png, write_text
from labelgen.sheets import contact_sheet
from trainer.embeddings.table import decoded
from trainer.pages.films import PLAY, Films
from trainer.pages.page import fill, image, join, page

_WIDTH = 180  # smallest width of captions, pixels


def moment(row: dict) -> str:
    """The time span of a row: 12.3 to 12.8 s."""
    return "" if row["start"] is None else f"{row['start']:.1f} to {row['end']:.1f} s"


def above(hit: dict) -> str:
    """The share of random pairs that are less similar than query and hit, rounded down: 99.9 %; "" if there are none."""
    share = hit.get("above")
    return "" if share is None else f"{math.floor(1000 * share) / 10:.1f} %"


def thumbnails_sheet(title: str, pictures: Sequence[tuple[bytes, Sequence[str]]]) -> np.ndarray:
    """JPEG pictures, each under the lines of its caption, six in a row, as RGB uint8 [H, W, 3]."""
    return contact_sheet(title, [(decoded(jpeg), lines) for jpeg, lines in pictures], 6, _WIDTH)


def link(path: str, folder: Path) -> str:
    """The link to a file (absolute) on a page in a folder: a relative one if both are below a common folder, so that
    they can be moved together."""
    here = os.path.abspath(folder)
    if os.path.commonpath([here, path]) == os.path.sep:
        return Path(path).as_uri()
    return quote(os.path.relpath(path, here))


def named(row: dict, folder: Path) -> Markup:
    """The id of a row, linked to its moment in the video if the path is known. folder: of the page."""
    if not Path(row["path"]).is_absolute():
        return fill("{}", row["id"])
    at = "" if row["start"] is None else f"#t={row['start']:.2f},{row['end']:.2f}"
    return fill('<a href="{}">{}</a>', link(row["path"], folder) + at, row["id"])


# about a second of a row's moment: frames RGB uint8 [n, H, W, 3], at most 240 pixels wide and high, and the seconds of each [n];
# None if its file cannot be read
Film = Callable[[dict], "tuple[np.ndarray, np.ndarray] | None"]


class Moving:
    """The moving pictures of the rows on a page; rows whose file cannot be read have their thumbnail. film: of a row"""

    def __init__(self, film: Film):
        self._films, self._film = Films({}), film
        self.still = 0  # rows without a film so far

    def picture(self, row: dict) -> Markup:
        """The film of a row, or its thumbnail."""
        found = self._film(row)
        if found is None:
            self.still += 1
            return _thumbnail(row)
        frames, seconds = found
        return self._films.clip(frames, seconds, _alt(row), frames.shape[1], alone=True)

    def style(self) -> Markup:
        """The style rules of the films."""
        return self._films.style()


def figures(rows: Sequence[dict], lines: Sequence[str], folder: Path, moving: Moving | None = None) -> Markup:
    """Rows with their thumbnails, or moving, each with its name, linked to its moment in the video, and a line. folder: of the
    page."""
    template = "<figure>{}<figcaption>{}<small>{}</small></figcaption></figure>\n"
    picture = _thumbnail if moving is None else moving.picture
    drawn = join(fill(template, picture(row), named(row, folder), line) for row, line in zip(rows, lines, strict=True))
    return fill('<div class="thumbs">{}</div>\n', drawn)


def entries(rows: Sequence[dict], lines: Sequence[str], folder: Path) -> Markup:
    """Rows as a list of small pictures, for those that have a thumbnail, with their names and lines."""
    template = "<li>{}<p>{} <small>{}</small></p></li>\n"
    drawn = (
        fill(template, _thumbnail(row) if row.get("thumbnail") else "", named(row, folder), line)
        for row, line in zip(rows, lines, strict=True)
    )
    return fill('<ul class="points">{}</ul>\n', join(drawn))


def _thumbnail(row: dict) -> Markup:
    return image(row["thumbnail"], "jpeg", _alt(row), decoded(row["thumbnail"]).shape[:2])


def _alt(row: dict) -> str:
    return ", ".join(filter(None, (row["id"], moment(row))))


def write_hits(path: Path, query: Sequence[dict], hits: Sequence[dict], film: Film) -> None:
    """Write a query (id, path, start, end and thumbnail of each example) and the hits of a search as a contact sheet (.png) or
    as a page, on which they move."""
    title = f"nearest to {', '.join(row['id'] for row in query)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        pictures = [(row["thumbnail"], ["query", row["id"]]) for row in query]
        for hit in hits:
            value = ", ".join(filter(None, (f"{hit['similarity']:.4f}", above(hit))))
            pictures.append((hit["thumbnail"], [hit["id"], value, moment(hit)]))
        write_png(path, thumbnails_sheet(title, pictures))
        return
    moving = Moving(film)
    lines = []
    for hit in hits:
        share = f"nearer than {above(hit)} of random pairs" if above(hit) else ""
        lines.append("; ".join(filter(None, (moment(hit), share, f"cosine {hit['similarity']:.4f}"))))
    sections = [
        ("query", "Query", figures(query, [""] * len(query), path.parent, moving)),
        ("found", "Nearest moments", figures(hits, lines, path.parent, moving)),
    ]
    lead = (
        "The nearest first. The cosine of the features is nearly 1 for any two videos in many networks; therefore the share of "
        "random pairs of moments of different videos that are less similar stands before it: 50 % is chance."
    )
    still = f"Pictures of {moving.still:,} moments do not move, as their videos cannot be read." if moving.still else ""
    write_text(path, page(f"N{title[1:]}", lead, PLAY, sections, still, moving.style()))
