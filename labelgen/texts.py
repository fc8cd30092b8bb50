"""Names of files, labels and rows as they appear in pictures, CSV and Markdown."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

_FORMULA = re.compile("[=+@\t\r\n＝＋－＠-]")  # first characters of what a spreadsheet computes
_MARKUP = re.compile(r"([\\`*\[\]<|~$]|&(?=#?\w+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # not within a word


def draw(picture: np.ndarray, text: str, x: int, y: int, size: float) -> None:
    """Write a line of text into a picture, uint8 [H, W, 3], in black, with its lower left corner at (x, y); size: of
    OpenCV's font. Control characters and unpaired surrogates, which crash OpenCV, become question marks, as do
    characters that the font lacks: OpenCV 4 has ASCII only."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in unicodedata.normalize("NFC", text))
    cv2.putText(picture, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 1, cv2.LINE_AA)


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as text: bytes that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def csv_cells(values: Iterable[Any]) -> list[Any]:
    """Values as cells of a CSV file that no spreadsheet computes: a text that begins like a formula but is not a number
    gets an apostrophe in front. [OWASP, CSV injection]"""
    return [f"'{value}" if isinstance(value, str) and _computed(value) else value for value in values]


def from_csv(cell: str) -> str:
    """The text from which `csv_cells` made a cell."""
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
    """A text escaped for a line or table cell of Markdown: nothing in it is markup, and line ends become spaces."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
