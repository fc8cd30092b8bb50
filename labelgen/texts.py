"""Names of files, labels and rows in what is written: pictures, CSV, Markdown."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

_FORMULA = re.compile("[=+@\t\r\n＝＋－＠-]")  # begins what a spreadsheet computes
_MARKUP = re.compile(
    r"([\\`*\[\]<|~$]|&(?=#?\w+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))"
)  # not what stands within a word


def draw(picture: np.ndarray, text: str, x: int, y: int, size: float) -> None:
    """Write a line of text into a picture, uint8 [H, W, 3], black, from its lower left corner (x, y) on; size: of OpenCV's font.
    What cannot be drawn, control characters and unpaired surrogates, which kill OpenCV, is a question mark, as is what the font
    lacks: OpenCV 4 has ASCII alone."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in unicodedata.normalize("NFC", text))
    cv2.putText(picture, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as text: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def csv_cells(values: Iterable[Any]) -> list[Any]:
    """Values as cells of a CSV file that no spreadsheet computes: a text that begins like a formula, and is no number, has an
    apostrophe before it. [OWASP, CSV injection]"""
    return [f"'{value}" if isinstance(value, str) and _computed(value) else value for value in values]


def from_csv(cell: str) -> str:
    """The text that `csv_cells` made a cell of."""
    return cell[1:] if cell[:1] == "'" and _computed(cell[1:]) else cell


def _computed(text: str) -> bool:
    if not _FORMULA.match(text):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def markdown(text: str) -> str:
    """A text as Markdown shows it, in a line or a cell of a table: nothing in it is markup, and line ends are spaces."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
