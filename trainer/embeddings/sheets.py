"""Videos as pictures: contact sheets, and a page of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from labelgen.files import write_png, write_text
from labelgen.sheets import contact_sheet
from trainer.embeddings.table import decoded
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


def figures(rows: Sequence[dict], lines: Sequence[str], folder: Path) -> Markup:
    """Thumbnails of rows, each linked to its moment in the video, with a line below the name. folder: of the page."""
    drawn = join(_figure(row, line, folder) for row, line in zip(rows, lines, strict=True))
    return fill('<div class="thumbs">{}</div>\n', drawn)


def _figure(row: dict, line: str, folder: Path) -> Markup:
    jpeg = row["thumbnail"]
    shown = image(jpeg, "jpeg", f"{row['id']}, {moment(row)}", decoded(jpeg).shape[:2])
    if Path(row["path"]).is_absolute():
        at = "" if row["start"] is None else f"#t={row['start']:.2f},{row['end']:.2f}"
        shown = fill('<a href="{}">{}</a>', link(row["path"], folder) + at, shown)
    template = "<figure>{}<figcaption>{}<br><small>{}</small></figcaption></figure>\n"
    return fill(template, shown, row["id"], line)


def write_hits(path: Path, query: Sequence[tuple[str, bytes]], hits: Sequence[dict]) -> None:
    """Write a query (name and picture of each example) and the hits of a search as a contact sheet (.png) or a page."""
    title = f"nearest to {', '.join(name for name, _ in query)}"
    values = [", ".join(filter(None, (f"{hit['similarity']:.4f}", above(hit)))) for hit in hits]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        pictures = [(thumbnail, ["query", name]) for name, thumbnail in query]
        pictures += [
            (hit["thumbnail"], [hit["id"], value, moment(hit)]) for hit, value in zip(hits, values, strict=True)
        ]
        write_png(path, thumbnails_sheet(title, pictures))
        return
    lines = ["; ".join(filter(None, (value, moment(hit)))) for hit, value in zip(hits, values, strict=True)]
    of_query = [{"id": name, "path": "", "start": None, "end": None, "thumbnail": shown} for name, shown in query]
    sections = [
        ("query", "Query", figures(of_query, [""] * len(query), path.parent)),
        ("found", "Nearest moments", figures(hits, lines, path.parent)),
    ]
    lead = (
        "The first number is the cosine of the features, which for many networks is nearly 1 for any two videos; the second one "
        "is the share of random pairs of moments of different videos that are less similar."
    )
    if any(Path(hit["path"]).is_absolute() for hit in hits):
        lead += " A picture opens the video at its moment."
    write_text(path, page(f"N{title[1:]}", lead, "", sections, ""))
