"""Contact sheets: pictures side by side, each under its caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from labelgen.texts import draw

LINE, GAP = 20, 6  # height of a line of text, space between two pictures, pixels
_CHARACTER = 7.5  # width of a character, pixels
_SIZE = 0.45  # of OpenCV's font


def contact_sheet(
    title: str, tiles: Sequence[tuple[np.ndarray, Sequence[str]]], columns: int, least: int = 0
) -> np.ndarray:
    """Pictures RGB uint8 [H, W, 3], each under the lines of its caption, in rows under a title, as RGB uint8 [H, W, 3]. Lines
    that are too long are cut at their beginning, as the end of a path says more. least: smallest width of a column"""
    width = max(least, *(picture.shape[1] for picture, _ in tiles))
    above = LINE * max(len(lines) for _, lines in tiles)
    height = above + max(picture.shape[0] for picture, _ in tiles)
    rows, columns = math.ceil(len(tiles) / columns), min(columns, len(tiles))
    sheet = np.full((LINE + rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    draw(sheet, title, 2, 14, _SIZE)
    for place, (picture, lines) in enumerate(tiles):
        y, x = LINE + place // columns * (height + GAP), place % columns * (width + GAP)
        for number, line in enumerate(lines):
            draw(sheet, _end(line, width), x + 2, y + 14 + LINE * number, _SIZE)
        sheet[y + above : y + above + picture.shape[0], x : x + picture.shape[1]] = picture
    return sheet


def _end(line: str, width: int) -> str:
    room = int(width / _CHARACTER)
    return line if len(line) <= room else f"..{line[2 - room :]}"


def grey(magnitude: np.ndarray) -> np.ndarray:
    """Magnitudes float32 [H, W] as a grey picture, uint8 [H, W, 3], white from the 99.5th percentile on."""
    scaled = np.clip(magnitude / max(float(np.percentile(magnitude, 99.5)), 1e-3) * 255, 0, 255)
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, -1)
