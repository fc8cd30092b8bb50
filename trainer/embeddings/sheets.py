"""Videos as pictures: contact sheets, and a page of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from labelgen.texts import draw
from trainer.embeddings.table import decoded
from trainer.pages.page import fill, image, join

_GAP, _LINE = 10, 16  # pixels
_LETTER = 6.3  # width of a letter of a caption, pixels


def moment(row: dict) -> str:
    """From when to when a row lasts: 12.3 to 12.8 s."""
    return "" if row["start"] is None else f"{row['start']:.1f} to {row['end']:.1f} s"


def above(hit: dict) -> str:
    """The share of random pairs that are less alike than query and hit, rounded down: 99.9 %; "" if there are none."""
    share = hit.get("above")
    return "" if share is None else f"{math.floor(1000 * share) / 10:.1f} %"


def contact_sheet(title: str, pictures: Sequence[tuple[bytes, Sequence[str]]], columns: int = 6) -> np.ndarray:
    """JPEG pictures, each over the lines of its caption, row by row, as RGB uint8 [H, W, 3]."""
    tiles = [decoded(jpeg) for jpeg, _ in pictures]
    width = max(150, *(tile.shape[1] for tile in tiles))
    height = max(tile.shape[0] for tile in tiles) + _LINE * max(len(lines) for _, lines in pictures) + _GAP
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((2 * _GAP + _LINE + rows * height, _GAP + columns * (width + _GAP), 3), 255, np.uint8)
    _write(sheet, title, _GAP, _GAP + 6, sheet.shape[1])
    for place, (tile, (_, lines)) in enumerate(zip(tiles, pictures, strict=True)):
        y, x = 2 * _GAP + _LINE + place // columns * height, _GAP + place % columns * (width + _GAP)
        sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        for number, line in enumerate(lines):
            _write(sheet, line, x, y + tile.shape[0] + _LINE * number + 12, width)
    return sheet


def _write(sheet: np.ndarray, text: str, x: int, y: int, width: int) -> None:
    room = int(width / _LETTER)
    text = text if len(text) <= room else f"..{text[2 - room :]}"  # the end of a path tells more
    draw(sheet, text, x, y, 0.38)


def figures(rows: Sequence[dict], lines: Sequence[str]) -> Markup:
    """Thumbnails of rows, each a link to its moment in the video, with a line beneath the name."""
    drawn = join(_figure(row, line) for row, line in zip(rows, lines, strict=True))
    return fill('<div class="thumbs">{}</div>\n', drawn)


def _figure(row: dict, line: str) -> Markup:
    jpeg = row["thumbnail"]
    shown = image(jpeg, "jpeg", f"{row['id']}, {moment(row)}", decoded(jpeg).shape[:2])
    if Path(row["path"]).is_absolute():
        at = "" if row["start"] is None else f"#t={row['start']:.2f},{row['end']:.2f}"
        shown = fill('<a href="{}">{}</a>', Path(row["path"]).as_uri() + at, shown)
    template = "<figure>{}<figcaption>{}<br><small>{}</small></figcaption></figure>\n"
    return fill(template, shown, row["id"], line)
