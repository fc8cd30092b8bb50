"""The sheets that protocols drew, as sections of a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup

from labelgen.errors import ReadError
from labelgen.reading import read_bytes
from trainer.evaluate import PROTOCOLS, protocol_class
from trainer.evaluate.protocols.attention import overlay, tiles_of
from trainer.evaluate.results import Result
from trainer.pages.page import figure, fill, grid, join, paragraph, picture

_BYTES, _PIXELS = 1 << 26, 1 << 24  # of a sheet, at most


def drawn_sections(results: Sequence[Result], numbers: Callable[[Result], Markup]) -> list[tuple[str, str, Markup]]:
    """A section for every protocol that drew sheets: id, heading, content; numbers: makes the numbers of a result below its
    sheets."""
    sections = []
    for name in PROTOCOLS:
        if of_protocol := [result for result in results if result.kind == name and result.drawn]:
            protocol = protocol_class(name)
            parts = [paragraph(protocol.about_sheets), _color_scale(*protocol.scale)]
            for result in of_protocol:
                parts += [*(_sheet(result.run, sheet) for sheet in result.content["sheets"]), numbers(result)]
            sections.append((f"drawn-{name}", protocol.title, join(parts)))
    return sections


def _color_scale(low: str, high: str) -> Markup:
    """The colour scale of maps, with labels at its ends."""
    bar = overlay(np.full((16, 256, 3), 128, np.uint8), np.tile(np.linspace(0, 1, 256, dtype=np.float32), (16, 1)))
    shown = picture(bar, f"Colours from {low} to {high}")
    return fill('<p class="scale"><span>{}</span>{}<span>{}</span></p>\n', low, shown, high)


def _sheet(run: Path, sheet: dict) -> Markup:
    path = run / "results" / sheet["file"]
    caption = f"{sheet['video']} ({sheet['label']})" if sheet["label"] else sheet["video"]
    folder = os.path.realpath(run / "results") + os.sep  # nothing outside it is read
    inside = "\0" not in sheet["file"] and os.path.realpath(path).startswith(folder)
    drawn = read_png(path) if inside else None
    tiles = [] if drawn is None else tiles_of(drawn[..., ::-1], len(sheet["shown"]))
    if not tiles:
        return paragraph(f"{caption}: {path} is missing or damaged; measure again to draw it.")
    shown = zip(sheet["shown"], tiles, strict=True)
    pictures = (figure(name, picture(tile, f"{caption}: {name}")) for name, tile in shown)
    return join((paragraph(fill("<strong>{}</strong>", caption)), grid(pictures, "tiles-of-a-sheet")))


def read_png(path: Path) -> np.ndarray | None:
    """A picture BGR uint8 [H, W, 3]; None if it is missing, damaged or declares more pixels, or more bytes in a chunk, than a
    sheet has. OpenCV allocates the declared memory before it reads them."""
    try:
        content = read_bytes(path, _BYTES)
    except (ReadError, ValueError):
        return None
    size = int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    at, kind = 8, b""
    while at < len(content) and kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        at += 12 + length if kind in (b"IHDR", b"IDAT", b"IEND") else len(content)  # a sheet has no other chunks
    whole = content.startswith(b"\x89PNG") and at == len(content) and 0 < size <= _PIXELS
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if whole else None
